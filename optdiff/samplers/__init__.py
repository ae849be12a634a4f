"""Samplers: optax transformations that turn the denoiser's gradient into the next iterate.

A chain of field links (eps to eps) and exactly one integrator (eps to dx). Links and integrators
are `scale_by_*`; a method has its own name.
"""

from optdiff.samplers.adam import (
    adam_per_sample,
    adaptive_momentum,
    scale_by_adam_per_sample,
    scale_by_radam,
)
from optdiff.samplers.churn import churn, churn_down, churned
from optdiff.samplers.consistency import lcm, lcm_boundary, tcd
from optdiff.samplers.ddim import ddim, euler
from optdiff.samplers.deis import deis, deis_log_rho, deis_rho, vp_time
from optdiff.samplers.directions import (
    anneal,
    constant,
    eps,
    from_optimizer,
    from_transformation,
    per_sample,
    residual,
    scale_by_reading,
    scale_by_sigma_step,
    score,
    whole_batch,
)
from optdiff.samplers.dpm_solver import (
    dpm2,
    dpm2_ancestral,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3s,
)
from optdiff.samplers.dpmpp import dpmpp_2m, dpmpp_3m, exact_slope, midpoint_slope
from optdiff.samplers.dpmpp_sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from optdiff.samplers.er_sde import er_sde, er_sde_5, power_scale
from optdiff.samplers.fitting import (
    begin_beside,
    by_level,
    image_axes,
    scale_by_root_size,
    unless_at_rest,
    with_read_out,
)
from optdiff.samplers.foresight import eqm_nag, pfdiff
from optdiff.samplers.heun import heun
from optdiff.samplers.linear import linear
from optdiff.samplers.lms import ipndm_v, lms
from optdiff.samplers.momentum import (
    ghvb,
    momentum,
    nesterov,
    scale_by_ghvb,
    scale_by_heavy_ball,
)
from optdiff.samplers.multistep import (
    gradient_estimation,
    ipndm,
    scale_by_adams_bashforth,
    scale_by_gradient_estimation,
)
from optdiff.samplers.plms import plms
from optdiff.samplers.renoise import (
    ancestral,
    ancestral_down,
    ddpm,
    euler_ancestral,
    gamma_mu,
    mu_down,
    power_down,
    renoise,
)
from optdiff.samplers.restart import restart
from optdiff.samplers.sa_solver import sa_solver, tau_between
from optdiff.samplers.unipc import bh1, bh2, unip, unipc

__all__ = [
    "adam_per_sample",
    "adaptive_momentum",
    "ancestral",
    "ancestral_down",
    "anneal",
    "begin_beside",
    "bh1",
    "bh2",
    "by_level",
    "churn",
    "churn_down",
    "churned",
    "constant",
    "ddim",
    "ddpm",
    "deis",
    "deis_log_rho",
    "deis_rho",
    "dpm2",
    "dpm2_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_sde",
    "eps",
    "eqm_nag",
    "er_sde",
    "er_sde_5",
    "euler",
    "euler_ancestral",
    "exact_slope",
    "from_optimizer",
    "from_transformation",
    "gamma_mu",
    "ghvb",
    "gradient_estimation",
    "heun",
    "image_axes",
    "ipndm",
    "ipndm_v",
    "lcm",
    "lcm_boundary",
    "linear",
    "lms",
    "midpoint_slope",
    "momentum",
    "mu_down",
    "nesterov",
    "per_sample",
    "pfdiff",
    "plms",
    "power_down",
    "power_scale",
    "renoise",
    "residual",
    "restart",
    "sa_solver",
    "scale_by_adam_per_sample",
    "scale_by_adams_bashforth",
    "scale_by_ghvb",
    "scale_by_gradient_estimation",
    "scale_by_heavy_ball",
    "scale_by_radam",
    "scale_by_reading",
    "scale_by_root_size",
    "scale_by_sigma_step",
    "score",
    "tau_between",
    "tcd",
    "unip",
    "unipc",
    "unless_at_rest",
    "vp_time",
    "whole_batch",
    "with_read_out",
]
