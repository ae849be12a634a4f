"""The scheduler classes of diffusers (0.42): which sampler of ours is their method, what they read
of a file, where they step and where they end.

How they step is the business of `samplers`, whose functions a class names.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from optdiff.scheduler_config.levels import (
    Fields,
    always,
    ddim,
    distilled,
    dpm,
    edm,
    euler,
    final_alpha,
    final_sigmas,
    final_sigmas_or_stop,
    flow_match,
    lowest_trained,
    singlestep,
    stop,
    unipc,
    unless_short,
    unless_zero,
    zero,
)
from optdiff.types import Grid, Levels, NoiseSchedule


class Class(NamedTuple):
    """A scheduler class.

    Attributes:
      samplers: functions of ours that are its method, in one of its settings.
      fields: those that are honoured, with their defaults.
      grid: where it steps.
      last: `last(fields, schedule, levels)`, where its samples end: the level after the last.
      own_end: `own_end(fields, n)`, whether it goes there by its own rule; else by Euler's.
      in_sigma: whether its samples are ours, not scaled to the network's coordinates.
      second_twice: whether it evaluates the second level twice.
    """

    samplers: tuple[str, ...]
    fields: Fields
    grid: Callable[[Fields], Grid]
    last: Callable[[Fields, NoiseSchedule, Levels], float]
    own_end: Callable[[Fields, int], bool] = lambda fields, n: False
    in_sigma: bool = False
    second_twice: bool = False


# What they read, and its defaults.

_BETAS: Fields = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_K_BETAS = _BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
_CLIP: Fields = {"clip_sample": False}  # true by default in some, for pixels
_THRESHOLD: Fields = {"thresholding": False}
_ZERO_SNR: Fields = {"rescale_betas_zero_snr": False}
_LEADING: Fields = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE: Fields = {"timestep_spacing": "linspace", "steps_offset": 0}
_RANGE: Fields = {"sigma_min": None, "sigma_max": None}  # read by these classes, if not their own
_SIGMAS: Fields = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
_FLOW: Fields = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False}
_LOWER: Fields = {"lower_order_final": True}
_FINAL: Fields = {"final_sigmas_type": "zero"}
_EULER_FINAL: Fields = {"euler_at_final": False}
_CLIPPED: Fields = {"lambda_min_clipped": -np.inf}

_K = _K_BETAS | _LINSPACE | _SIGMAS | _RANGE
_DPM = _BETAS | _LINSPACE | _SIGMAS | _RANGE | _FLOW | _LOWER | _THRESHOLD
_DISTILLED = (
    _K_BETAS
    | {"beta_schedule": "scaled_linear", "original_inference_steps": 50}
    | _CLIP
    | _THRESHOLD
    | _ZERO_SNR
)
_EDM: Fields = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "prediction_type": "epsilon",
}
_FLOW_MATCH: Fields = {"num_train_timesteps": 1000, "shift": 1.0}


CLASSES: Mapping[str, Class] = {
    "DDIMScheduler": Class(
        ("ddim",),
        _BETAS | _LEADING | _CLIP | _THRESHOLD | _ZERO_SNR | {"set_alpha_to_one": True},
        ddim,
        final_alpha,
    ),
    "DDPMScheduler": Class(
        ("ddpm",), _BETAS | _LEADING | _CLIP | _THRESHOLD | _ZERO_SNR, ddim, zero
    ),
    "PNDMScheduler": Class(
        ("plms",),
        _BETAS | _LEADING | {"set_alpha_to_one": False},
        ddim,
        final_alpha,
        always,
        second_twice=True,
    ),
    "EulerDiscreteScheduler": Class(
        ("euler", "ddim"),
        _BETAS
        | _LINSPACE
        | _SIGMAS
        | _RANGE
        | _ZERO_SNR
        | _FINAL
        | {"interpolation_type": "linear", "timestep_type": "discrete"},
        euler,
        final_sigmas,
        in_sigma=True,
    ),
    "EulerAncestralDiscreteScheduler": Class(
        ("euler_ancestral", "ancestral"),
        _BETAS | _LINSPACE | _ZERO_SNR,
        euler,
        zero,
        in_sigma=True,
    ),
    "HeunDiscreteScheduler": Class(("heun",), _K | _CLIP, euler, zero, in_sigma=True),
    "LMSDiscreteScheduler": Class(
        ("lms",), _BETAS | _LINSPACE | _SIGMAS, euler, zero, always, in_sigma=True
    ),
    "KDPM2DiscreteScheduler": Class(("dpm2",), _K, euler, zero, in_sigma=True),
    "KDPM2AncestralDiscreteScheduler": Class(("dpm2_ancestral",), _K, euler, zero, in_sigma=True),
    "DPMSolverSDEScheduler": Class(
        ("dpmpp_sde",), _K_BETAS | _LINSPACE | _SIGMAS, euler, zero, in_sigma=True
    ),
    "DPMSolverMultistepScheduler": Class(
        ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde"),
        _DPM | _ZERO_SNR | _FINAL | _EULER_FINAL | _CLIPPED | {"use_lu_lambdas": False},
        dpm,
        final_sigmas,
        unless_short,
    ),
    "DPMSolverSinglestepScheduler": Class(
        (),
        {k: v for k, v in (_DPM | _FINAL | _CLIPPED).items() if k not in _LINSPACE},
        singlestep,
        final_sigmas,
    ),
    "DEISMultistepScheduler": Class(
        ("deis_log_rho", "deis", "deis_rho"), _DPM, dpm, stop, unless_short
    ),
    "UniPCMultistepScheduler": Class(
        ("unipc", "unip"),
        _DPM | _ZERO_SNR | _FINAL | {"shift_terminal": None},
        unipc,
        final_sigmas_or_stop,
        unless_zero,
    ),
    "SASolverScheduler": Class(("sa_solver",), _DPM | _CLIPPED, dpm, stop, always),
    "LCMScheduler": Class(("lcm",), _DISTILLED, distilled, zero),
    "TCDScheduler": Class(("tcd",), _DISTILLED, distilled, lowest_trained),
    "EDMEulerScheduler": Class(("euler", "ddim"), _EDM | _FINAL, edm, final_sigmas, in_sigma=True),
    "EDMDPMSolverMultistepScheduler": Class(
        ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde"),
        _EDM | _FINAL | _EULER_FINAL | _LOWER | _THRESHOLD,
        edm,
        final_sigmas,
        unless_short,
        in_sigma=True,
    ),
    "FlowMatchEulerDiscreteScheduler": Class(
        ("euler", "ddim"),
        _FLOW_MATCH
        | _SIGMAS
        | {"use_dynamic_shifting": False, "shift_terminal": None, "invert_sigmas": False},
        flow_match,
        zero,
    ),
    "FlowMatchHeunDiscreteScheduler": Class(("heun",), _FLOW_MATCH, flow_match, zero),
}
"""Every class that can be read. A sampler that is the method of several steps as the first of them
that reads the kind of file, unless the file's own is among them."""
