"""The one reader of a checkpoint's `scheduler_config.json`.

A file is read by the class that it names, with that class's own fields and defaults (diffusers
0.42), and once: which noise the network was trained on, what it predicts, where its scheduler
steps, how it ends, and where it begins from an image. A field is honoured only for a class that has
it; published files carry left-overs of others.

A sampler of ours that is the method of a class of diffusers steps as that class would after
`Class.from_config(file)`: at its levels, and to its end. If the file's own class is of this method,
that is the one; a sampler that no class has steps as the file's own. `CLASSES` says which is which.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff import noise
from optdiff.denoisers import (
    ScalingFn,
    edm_scaling,
    eps_scaling,
    flow_scaling,
    v_scaling,
    without_time_conditioning,
    x0_scaling,
)
from optdiff.scheduler_config.classes import CLASSES
from optdiff.scheduler_config.levels import Fields, chosen, noise_of
from optdiff.types import Ending, Levels, NoiseSchedule, expand

MOST_TIMESTEPS = 100_000
"""A file that says more of them is damaged; a table of them would not fit into memory."""


class Route(NamedTuple):
    """Where to step: `levels`; where to begin, in normal noise of the standard deviation `spread`;
    and how to `finish`."""

    levels: Levels
    spread: Float[Array, ""]
    finish: Ending


@dataclass(frozen=True)
class SchedulerConfig:
    """What a scheduler's file says. Equal files are equal, and give the same functions.

    Attributes:
      name: the class that wrote the file.
      schedule: the noise that the network was trained on.
      scaling: what it predicts, and is asked with.
      file: names and values of the file that some class has.
      overrules: what the pipeline makes of its own scheduler's fields, whatever the file says.
    """

    name: str
    schedule: NoiseSchedule
    scaling: ScalingFn
    file: tuple[tuple[str, Any], ...]
    overrules: tuple[tuple[str, Any], ...] = ()

    def route(self, n: int, *, sampler: str = "", strength: float | int = 1.0) -> Route:
        """Where the scheduler would step, with n evaluations for a method of one a step.

        Args:
          n: number of levels, before `strength` takes some. A single one is the highest.
          sampler: the name of the sampler's function, such as "dpmpp_2m".
          strength: for image to image, see `from_strength`.

        Raises:
          ValueError: if the file asks for levels that are not derived from it, naming the field.

        >>> config = read({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "linear"})
        >>> config.schedule.t(config.route(4).levels).round().tolist()
        [999.0, 666.0, 333.0, 0.0]
        """
        name = self.stepping(sampler)
        known, fields = CLASSES[name], self.fields(name)
        its_method = sampler in known.samplers
        twice = its_method and known.second_twice and n > 2
        whole = known.grid(fields)(self.schedule, n - twice)
        levels = from_strength(whole, self.schedule, strength)
        if twice and len(levels) > 1:
            levels = jnp.concatenate([levels[:2], levels[1:]])
        # What is not scaled begins, by its spacing, with noise that data are added to or not.
        bare = known.in_sigma and fields.get("timestep_spacing") in ("linspace", "trailing")
        spread = levels[0] if bare else jnp.sqrt(1.0 + levels[0] ** 2)
        last = known.last(fields, self.schedule, whole)
        alpha = 1.0 if known.in_sigma else _alpha(noise_of(fields), last)
        ending = own_step if its_method and known.own_end(fields, len(whole)) else euler_step
        return Route(levels, spread, ending(last, alpha))

    def stepping(self, sampler: str) -> str:
        """The class that a sampler steps as: the file's own, or another that reads such a file."""
        if sampler in CLASSES[self.name].samplers:
            return self.name
        kind = noise_of(self.fields(self.name))
        of_the_method = (name for name, known in CLASSES.items() if sampler in known.samplers)
        return next((c for c in of_the_method if noise_of(self.fields(c)) == kind), self.name)

    def fields(self, name: str) -> Fields:
        """What this class makes of the file."""
        return _fields(name, dict(self.file), dict(self.overrules), own=name == self.name)


def read(
    config: Mapping[str, Any], *, overrules: Mapping[str, Any] | None = None
) -> SchedulerConfig:
    """Read a parsed `scheduler_config.json`.

    `time_conditioning = false`, a field of ours that diffusers does not know and ignores, is a
    network that is not told the level.

    Args:
      config: the file; without a `_class_name` it is DDIM's.
      overrules: fields that the pipeline sets in its own scheduler.

    Raises:
      ValueError: for a class, a field or a value that cannot be honoured, with its name.

    >>> betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    >>> config = read(betas | {"prediction_type": "v_prediction"})
    >>> config.scaling is v_scaling, config.schedule == noise.scaled_linear()
    (True, True)
    """
    name = config.get("_class_name", "DDIMScheduler")
    if not isinstance(name, str) or name not in CLASSES:
        raise ValueError(
            f"_class_name = {name!r} is no scheduler that can be read; those are "
            f"{', '.join(CLASSES)}"
        )
    of_some_class = {key for known in CLASSES.values() for key in known.fields}
    file = {key: _plain(key, config[key]) for key in sorted(of_some_class & {*config})}
    overrules = dict(overrules or {})
    fields = _fields(name, file, overrules, own=True)
    _check(name, fields)
    schedule, scaling = _schedule(fields), _scaling(name, fields)
    time_conditioning = config.get("time_conditioning", True)
    if not isinstance(time_conditioning, bool):
        raise ValueError(f"time_conditioning = {time_conditioning!r} must be true or false")
    if config.get("skip_prk_steps") is False and name == "PNDMScheduler":
        warnings.warn(
            f"{name}: skip_prk_steps = False asks for Runge-Kutta steps first; plms takes none",
            stacklevel=2,
        )
    if fields.get("rescale_betas_zero_snr") and scaling is eps_scaling:
        warnings.warn(
            f"{name}: rescale_betas_zero_snr ends in noise alone, where a network that predicts "
            "the noise (prediction_type = 'epsilon') says nothing about the image; diffusers' DDIM "
            f"divides by zero there, here sampling begins at sigma = {schedule.sigma_max:g}",
            stacklevel=2,
        )
    if not time_conditioning:
        scaling = without_time_conditioning(scaling)
    return SchedulerConfig(name, schedule, scaling, tuple(file.items()), tuple(overrules.items()))


def from_strength(
    levels: Levels, schedule: NoiseSchedule, strength: float | int
) -> Float[Array, "k"]:
    """The last `floor(strength n)` of n levels: where PyTorch's pipelines begin from an image.

    Where that is none, one evaluation at the level that is this share of the trained time, so that
    a strength means something whatever the number of steps (theirs take no step at all). Their PNDM
    begins a level higher, and from the third evaluation on tells the network the level below that
    of its samples; ours does not.

    Args:
      levels: the whole way from noise.
      schedule: whose time it is.
      strength: from 0, which keeps the image, to 1, all levels.

    >>> from optdiff.grids import leading
    >>> levels = leading(noise.scaled_linear(), 6, steps_offset=1)
    >>> noise.scaled_linear().t(from_strength(levels, noise.scaled_linear(), 0.6)).round().tolist()
    [333.0, 167.0, 1.0]
    """
    kept = int(len(levels) * strength)
    if kept:
        return levels[-kept:]
    low, high = (schedule.t(jnp.asarray(s)) for s in (schedule.sigma_min, float(levels[0])))
    return schedule.sigma(low + strength * (high - low))[None].astype(levels.dtype)


@cache
def euler_step(sigma_last: float, alpha: float = 1.0) -> Ending:
    """Finish with an Euler step to `sigma_last`, and read the result as the network's own
    coordinates do: `x0 = alpha (x - (sigma - sigma_last) eps)`.

    At 0 it is the last denoising. Published Stable Diffusion checkpoints say `set_alpha_to_one =
    false`: their DDIM (arXiv 2010.02502, eq. 12, in diffusers) ends at the lowest level it was
    trained at, and what is decoded keeps that noise.

    Args:
      sigma_last: where to stop, at most the last level.
      alpha: how much of x the network sees at that level.

    >>> x0 = euler_step(0.0)(lambda x, sigma: x / sigma, jnp.ones((1, 2)), jnp.array(2.0), None)
    >>> x0.tolist()
    [[0.0, 0.0]]
    """

    def finish(eps_fn, x, sigma, update):
        step = expand(sigma - sigma_last, x)
        return (alpha * (x - step * eps_fn(x, sigma))).astype(x.dtype)

    return finish


@cache
def own_step(sigma_last: float, alpha: float = 1.0) -> Ending:
    """Finish with the sampler's own step to `sigma_last`: what it remembers counts there too.

    Args: as `euler_step`.
    """

    def finish(eps_fn, x, sigma, update):
        dx = update(eps_fn(x, sigma), jnp.full_like(sigma, sigma_last))
        return (alpha * (x + dx)).astype(x.dtype)

    return finish


def _fields(name: str, file: Fields, overrules: Fields, *, own: bool) -> Fields:
    known = CLASSES[name].fields
    overruled = {k: v for k, v in overrules.items() if k in known and (own or k in file)}
    fields = {**known, **{k: v for k, v in file.items() if k in known}, **overruled}
    for key, value in fields.items():  # JSON has no integers: 1000.0 is one
        if type(known[key]) is int and isinstance(value, float) and value.is_integer():
            fields[key] = int(value)
    return fields


def _alpha(kind: str, sigma: float) -> float:
    """How much of x = x0 + sigma n is in the network's coordinates."""
    return 1.0 / (1.0 + sigma) if kind == "flow" else (1.0 + sigma**2) ** -0.5


def _schedule(fields: Fields) -> NoiseSchedule:
    kind = noise_of(fields)
    if kind == "edm":
        return noise.edm(fields["sigma_min"], fields["sigma_max"])
    if kind != "betas":
        return noise.flow_in_steps(fields["num_train_timesteps"])
    if fields.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"timestep_type = {fields['timestep_type']!r} is not supported, only 'discrete'"
        )
    betas = fields["trained_betas"]
    if betas is None:
        make = chosen("beta_schedule", fields["beta_schedule"], noise.BETAS)
        betas = make(fields["beta_start"], fields["beta_end"], fields["num_train_timesteps"])
    alphas_cumprod = np.cumprod(1.0 - np.asarray(betas, np.float64))
    if fields.get("rescale_betas_zero_snr"):
        alphas_cumprod = noise.end_in_noise(alphas_cumprod)
    return noise.from_alphas_cumprod(alphas_cumprod)


def _scaling(name: str, fields: Fields) -> ScalingFn:
    """What `prediction_type` means. EDM's schedulers call their network's answer "epsilon"."""
    known = {
        "betas": {"epsilon": eps_scaling, "sample": x0_scaling, "v_prediction": v_scaling},
        "edm": {"epsilon": _edm_scaling(fields.get("sigma_data"))},
    }.get(noise_of(fields), {"flow_prediction": flow_scaling})
    prediction = fields.get("prediction_type", "flow_prediction")
    return chosen(f"{name}: prediction_type", prediction, known)


@cache
def _edm_scaling(sigma_data: float | None) -> ScalingFn:
    return partial(edm_scaling, sigma_data=sigma_data)


def _check(name: str, fields: Fields) -> None:
    """Refuse values of another type than the class's own, and what latents are not made for."""
    for key, default in CLASSES[name].fields.items():
        value, number = fields[key], isinstance(fields[key], int | float)
        flag = isinstance(value, bool)
        good = {
            bool: flag or value is None,
            int: number and not flag and value % 1 == 0,
            float: number and not flag,
            str: isinstance(value, str),
        }.get(type(default), True)
        if not good:
            raise ValueError(f"{name}: {key} = {value!r} is not what {default!r} is one of")
    for key in ("clip_sample", "thresholding"):
        if fields.get(key):
            raise ValueError(f"{name}: {key} = True is for pixels; latents are not clipped")
    if not 1 < fields.get("num_train_timesteps", 1000) <= MOST_TIMESTEPS:
        raise ValueError(
            f"{name}: num_train_timesteps = {fields['num_train_timesteps']} must be 2 to "
            f"{MOST_TIMESTEPS}"
        )


def _plain(key: str, value: Any) -> Any:
    """A value that can be hashed."""
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return tuple(value)
    if isinstance(value, list | dict):
        raise ValueError(f"{key} = {str(value)[:60]} is neither one value nor a list of numbers")
    return value
