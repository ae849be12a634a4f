"""DPM-Solver++: integrate the data prediction exactly in log SNR."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from optdiff.samplers.directions import weighted_sum
from optdiff.types import Sampler, Samples, Sigma, expand


class ScaleByDpmpp2mState(NamedTuple):
    """The last data prediction and the level it was made at; `count` steps taken."""

    count: Int[Array, ""]
    x0: Samples
    sigma: Sigma


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), in sigma-coordinates:

    `x' = (sigma'/sigma) x - (e^{-h} - 1) [(1 + 1/2r) D_0 - (1/2r) D_1]`

    with `h = log(sigma/sigma')`, `r = h_prev / h`, `D_0` the data prediction here and `D_1` the one
    before. The first step is DDIM. Second order in h; one evaluation per step; linear.

    >>> sampler = dpmpp_2m()
    """

    def init(x):
        return ScaleByDpmpp2mState(
            jnp.zeros((), jnp.int32), jnp.zeros_like(x), jnp.ones(x.shape[0])
        )

    def update(eps, state, x, *, sigma, sigma_next, **unused):
        x0 = (x - expand(sigma, x) * eps).astype(x.dtype)
        h, h_prev = jnp.log(sigma / sigma_next), jnp.log(state.sigma / sigma)
        first = state.count == 0
        slope = jnp.where(first, 0.0, h / (2 * jnp.where(first, 1.0, h_prev)))  # 1 / 2r
        gain = -jnp.expm1(-h)
        dx = weighted_sum(
            (sigma_next / sigma - 1, x), (gain * (1 + slope), x0), (-gain * slope, state.x0)
        )
        sigma = jnp.broadcast_to(sigma, state.sigma.shape)
        return dx, ScaleByDpmpp2mState(state.count + 1, x0, sigma.astype(state.sigma.dtype))

    return optax.GradientTransformationExtraArgs(init, update)
