"""Samplers: optax transformations that turn the denoiser's gradient into the next iterate.

A chain of field links (eps to eps) and exactly one integrator (eps to dx). Links and integrators
are `scale_by_*`; a method has its own name.
"""

from optdiff.samplers.adam import adam_per_sample, scale_by_adam_per_sample
from optdiff.samplers.ddim import ddim
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
from optdiff.samplers.dpmpp import dpmpp_2m
from optdiff.samplers.heun import heun
from optdiff.samplers.momentum import momentum, nesterov, scale_by_heavy_ball
from optdiff.samplers.multistep import (
    gradient_estimation,
    ipndm,
    scale_by_adams_bashforth,
    scale_by_gradient_estimation,
)
from optdiff.samplers.renoise import ancestral, ancestral_down, renoise

__all__ = [
    "adam_per_sample",
    "ancestral",
    "ancestral_down",
    "anneal",
    "constant",
    "ddim",
    "dpmpp_2m",
    "eps",
    "from_optimizer",
    "from_transformation",
    "gradient_estimation",
    "heun",
    "ipndm",
    "momentum",
    "nesterov",
    "per_sample",
    "renoise",
    "residual",
    "scale_by_adam_per_sample",
    "scale_by_adams_bashforth",
    "scale_by_gradient_estimation",
    "scale_by_heavy_ball",
    "scale_by_reading",
    "scale_by_sigma_step",
    "score",
    "whole_batch",
]
