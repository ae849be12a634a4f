"""Samplers for models distilled to jump: denoise at once, then put noise back.

They run with any denoiser; few steps are good where it was trained for them.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from optdiff.samplers.ddim import ddim
from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.renoise import renoise
from optdiff.types import NoiseSchedule, Sampler, Sigma, data_prediction, within

Boundary = Callable[[Sigma], tuple[Array, Array]]
"""`boundary(sigma) -> (c_skip, c_out)`: the model's answer is `c_skip x + c_out D(x, sigma)`."""


def lcm(boundary: Boundary | None = None) -> Sampler:
    """Consistency sampling in several steps (arXiv 2303.01469, algorithm 1; latent consistency
    models, 2310.04378): `x' = c_skip x + c_out D(x, sigma) + sigma' z`.

    Without a boundary it is `renoise(ddim(), down = 0)`. The driver's last denoising has no
    boundary, where diffusers has it once more. One evaluation per step; affine.

    Args:
      boundary: the scalings that a consistency model was trained with, if its denoiser does not
        have them in itself; None is (0, 1). See `lcm_boundary`.

    >>> sampler = lcm()
    """

    def jump(eps, state, x, *, sigma, **unused):
        c_skip, c_out = boundary(sigma)
        x0 = data_prediction(x, eps, sigma)
        return weighted_sum((c_skip - 1, x), (c_out, x0)), state

    answer = optax.GradientTransformationExtraArgs(optax.init_empty_state, jump)
    inner = ddim() if boundary is None else answer
    return renoise(inner, lambda sigma, sigma_next: jnp.zeros_like(sigma_next))


@within(timestep_scaling="(0, inf)", sigma_data="(0, inf)")
def lcm_boundary(
    schedule: NoiseSchedule, *, timestep_scaling: float = 10.0, sigma_data: float = 0.5
) -> Boundary:
    """The scalings of latent consistency models (arXiv 2310.04378, eq. 9; diffusers):
    `c_skip = s^2 / (u^2 + s^2)`, `c_out = u / sqrt(u^2 + s^2)` with `u = timestep_scaling t` and
    `s = sigma_data`, for a sample in the model's own coordinates, `x / sqrt(1 + sigma^2)`.

    Args:
      schedule: that the model was trained on, variance-preserving.
      timestep_scaling, sigma_data: as the model was trained.

    >>> from optdiff.noise import scaled_linear
    >>> c_skip, c_out = lcm_boundary(scaled_linear())(jnp.array(1.0))
    >>> bool(c_skip < 1e-7) and bool(c_out > 1 - 1e-7)
    True
    """

    def boundary(sigma):
        u = timestep_scaling * schedule.t(sigma)
        c_skip = sigma_data**2 / (u**2 + sigma_data**2)
        return c_skip / jnp.sqrt(1 + sigma**2), u / jnp.sqrt(u**2 + sigma_data**2)

    return boundary


def tcd(schedule: NoiseSchedule, eta: float = 0.3) -> Sampler:
    """Strategic stochastic sampling for trajectory consistency models (TCD, arXiv 2402.19159,
    algorithm 4, whose gamma is `eta`): DDIM below the next level, at `(1 - eta)` of its trained
    time, then noise back up.

    `down = sigma((1 - eta) t(sigma'))`. diffusers rounds that time down to a trained one.

    First order; one evaluation per step; affine.

    Args:
      schedule: that the model was trained on.
      eta: from 0, DDIM, to 1, which goes to the lowest trained level each time.

    Raises:
      ValueError: for another eta.

    >>> from optdiff.noise import scaled_linear
    >>> sampler = tcd(scaled_linear(), eta=0.3)
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is 0 to 1, not {eta}")

    def down(sigma, sigma_next):
        t = schedule.t(sigma_next)
        # As a ratio, which is exactly 1 where nothing is to be taken off.
        return sigma_next * (schedule.sigma((1.0 - eta) * t) / schedule.sigma(t))

    return renoise(ddim(), down)
