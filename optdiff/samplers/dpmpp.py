"""DPM-Solver++: integrate the data prediction exactly in log SNR."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.multistep import History, polynomial_weights
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


def dpmpp_3m(final_order: int | None = None) -> Sampler:
    """DPM-Solver++(3M) (the multistep of order 3 in the code of arXiv 2211.01095), in
    sigma-coordinates, over the last three data predictions:

    `x' = (sigma'/sigma) x + (1 - e^{-h}) D_0 + (h - 1 + e^{-h}) D' + (h^2/2 - h + 1 - e^{-h}) D''`

    with `h = log(sigma/sigma')` and D', D'' from the parabola through the three points in log SNR:
    its slope now, and its curvature, of which the code has half, `D'' = f[0, 1, 2]`. The first step
    is DDIM, the second 2M's.

    That half makes it second order in h, with a smaller constant than 2M; `unip(3)`, which has the
    whole, is third. One evaluation per step; linear.

    Args:
      final_order: at most this on the last step, one more on the step before; diffusers has 2 (and
        1 for the denoising that follows). None: 3 throughout.

    Raises:
      ValueError: for a final_order below 1.

    >>> sampler = dpmpp_3m()
    """
    final_order = required_final_order(final_order, 3)

    def init(x):
        return History.empty(x, 2)

    def update(eps, state, x, *, sigma, sigma_next, steps_left, **unused):
        past = state.and_now((x - expand(sigma, x) * eps).astype(x.dtype), sigma)
        order = jnp.minimum(past.count, final_order + steps_left - 1)
        h = jnp.log(sigma / sigma_next)
        constant, slope, curvature = exponential_moments(h, 3)
        slope = jnp.where(order == 2, h * constant / 2, slope)
        weights = polynomial_weights(
            [jnp.log(sigma / level) for level in past.sigmas],
            (constant, slope, curvature / 2),
            order,
        )
        dx = weighted_sum((sigma_next / sigma - 1, x), *zip(weights, past.fields, strict=True))
        return dx, past.but_the_oldest()

    return optax.GradientTransformationExtraArgs(init, update)


def required_final_order(final_order: int | None, order: int) -> int:
    """The order of the last step, by default that of the others.

    Raises:
      ValueError: if it is below 1.

    >>> required_final_order(None, 3)
    3
    """
    if final_order is not None and final_order < 1:
        raise ValueError(f"final_order is at least 1, or None, not {final_order}")
    return order if final_order is None else final_order


_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(8) + np.array([[1.0], [0.0]])) / 2  # on [0, 1]


@partial(jax.jit, static_argnames="count")
def exponential_moments(h: Array, count: int, rate: Array | float = 1.0) -> list[Array]:
    """Integrals of `e^{rate (s - h)} s^k` from 0 to h, for k below count: what a polynomial in
    log SNR contributes to a step.

    >>> [moment.round(4).item() for moment in exponential_moments(jnp.array(1.0), 2)]
    [0.6321, 0.3679]
    """
    z = rate * h
    by_parts = [-jnp.expm1(-z) / rate]
    for k in range(1, count):
        by_parts.append((h**k - k * by_parts[-1]) / rate)
    # For short steps integration by parts cancels, and eight points of Gauss are exact to rounding.
    short = jnp.abs(z) < 1.0
    within = jnp.where(short, z, 0.0)
    decay = jnp.exp(jnp.multiply.outer(_NODES - 1.0, within))
    by_gauss = jnp.tensordot(_WEIGHTS * _NODES ** np.arange(count)[:, None], decay, 1)
    return [jnp.where(short, h ** (k + 1) * by_gauss[k], by_parts[k]) for k in range(count)]
