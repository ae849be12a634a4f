"""DPM-Solver++: integrate the data prediction exactly in log SNR."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdiff.samplers.directions import weighted_sum
from optdiff.types import Sampler, Samples, expand


class ScaleByDpmpp2mState(NamedTuple):
    """The last data prediction and the level it was made at, infinite before the first step."""

    x0: Samples
    sigma: Float[Array, "b"]


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), in sigma-coordinates:

    `x' = (sigma'/sigma) x - (e^{-h} - 1) [(1 + 1/2r) D_0 - (1/2r) D_1]`

    with `h = log(sigma/sigma')`, `r = h_prev / h`, `D_0` the data prediction here and `D_1` the one
    before. The first step is DDIM, and so is one after a step of zero length. Second order in h;
    one evaluation per step; linear.

    >>> sampler = dpmpp_2m()
    """

    def init(x):
        return ScaleByDpmpp2mState(jnp.zeros_like(x), jnp.full(x.shape[0], jnp.inf))

    def update(eps, state, x, *, sigma, sigma_next, **unused):
        x0 = (x - expand(sigma, x) * eps).astype(x.dtype)
        h, h_prev = jnp.log(sigma / sigma_next), jnp.log(state.sigma) - jnp.log(sigma)
        # A difference over no distance says nothing; over an infinite one, the slope is zero.
        slope = h / (2 * jnp.where(h_prev == 0, jnp.inf, h_prev))  # 1 / 2r
        gain = -jnp.expm1(-h)
        dx = weighted_sum(
            (sigma_next / sigma - 1, x), (gain * (1 + slope), x0), (-gain * slope, state.x0)
        )
        sigma = jnp.broadcast_to(sigma, state.sigma.shape)
        return dx, ScaleByDpmpp2mState(x0, sigma.astype(state.sigma.dtype))

    return optax.GradientTransformationExtraArgs(init, update)
