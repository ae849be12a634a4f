"""DPM-Solver++ in several steps: integrate the data prediction exactly in log SNR."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.multistep import History, gauss, order_of_step, polynomial_weights
from optdiff.types import Sampler, data_prediction

SlopeRule = Callable[[Array, Array], Array]
"""`rule(h, rate)`: what a slope of 1 in log SNR adds to a step of h, over the rate."""


def exact_slope(h: Float[Array, "..."], rate: Float[Array, "..."]) -> Array:
    """Integrate the slope: `int_0^h e^{-rate (h - s)} s ds` (diffusers' and k-diffusion's "heun").

    >>> round(exact_slope(jnp.array(1.0), jnp.array(1.0)).item(), 4)
    0.3679
    """
    return exponential_moments(h, 2, rate)[1]


def midpoint_slope(h: Float[Array, "..."], rate: Float[Array, "..."]) -> Array:
    """Use the value in the middle for the whole step: `h/2 int_0^h e^{-rate (h - s)} ds`.

    >>> round(midpoint_slope(jnp.array(1.0), jnp.array(1.0)).item(), 4)
    0.3161
    """
    return h / 2 * exponential_moments(h, 1, rate)[0]


def dpmpp_2m(final_order: int | None = None, lower_below: int | None = None) -> Sampler:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2), in sigma-coordinates:

    `x' = (sigma'/sigma) x - (e^{-h} - 1) [(1 + 1/2r) D_0 - (1/2r) D_1]`

    with `h = log(sigma/sigma')`, `r = h_prev / h`, `D_0` the data prediction here and `D_1` the one
    before. The first step is DDIM, and so is one after a step of zero length. Second order in h;
    one evaluation per step; linear.

    Args:
      final_order: of the last step at most this. None: 2 throughout, as diffusers and k-diffusion,
        whose step to zero is our last denoising; where diffusers ends at its lowest level
        (`final_sigmas_type="sigma_min"`) it has 1, with `lower_below=16`.
      lower_below: as `dpmpp_3m`.

    Raises:
      ValueError: for a final_order below 1.

    >>> sampler = dpmpp_2m()
    """
    return dpmpp_multistep(2, midpoint_slope, final_order=final_order, lower_below=lower_below)


def dpmpp_3m(final_order: int | None = None, lower_below: int | None = None) -> Sampler:
    """DPM-Solver++(3M) (the multistep of order 3 in the code of arXiv 2211.01095), in
    sigma-coordinates, over the last three data predictions:

    `x' = (sigma'/sigma) x + (1 - e^{-h}) D_0 + (h - 1 + e^{-h}) D' + (h^2/2 - h + 1 - e^{-h}) D''`

    with `h = log(sigma/sigma')` and D', D'' from the parabola through the three points in log SNR:
    its slope now, and its curvature, of which the code has half, `D'' = f[0, 1, 2]`. The first step
    is DDIM, the second 2M's.

    That half makes it second order in h, with a smaller constant than 2M; `unip(3)`, which has the
    whole, is third. One evaluation per step; linear.

    Args:
      final_order: at most this on the last step, one more on the step before. None: 3 throughout.
      lower_below: lower the order at the end only in runs of fewer levels; None: in all. diffusers
        has `final_order=2, lower_below=15`: its step to zero is of first order (our last denoising)
        in every run, the one before of second in short ones. Where it ends at its lowest level
        instead (`final_sigmas_type="sigma_min"`) it has 1 and 16, that level being counted here.

    Raises:
      ValueError: for a final_order below 1.

    >>> sampler = dpmpp_3m(final_order=2, lower_below=15)
    """
    return dpmpp_multistep(3, midpoint_slope, final_order=final_order, lower_below=lower_below)


def dpmpp_multistep(
    order: int,
    slope: SlopeRule,
    *,
    rate: Array | float = 1.0,
    final_order: int | None = None,
    lower_below: int | None = None,
) -> Sampler:
    """What 2M, 3M and their forms with noise have in common: see those.

    Args:
      order: 2 or 3.
      slope: what the slope adds where two data predictions are used; with three it is integrated.
      rate: of forgetting in log SNR. Above 1, for `renoise`, the next level is where the
        deterministic part ends, `rate` times as far in log SNR as the step.
      final_order, lower_below: as `dpmpp_3m`.
    """
    at_order = order_of_step(order, final_order, lower_below)

    def init(x):
        return History.empty(x, order - 1)

    def update(eps, state, x, *, sigma, sigma_next, steps_left, **unused):
        past = state.and_now(data_prediction(x, eps, sigma), sigma)
        used = at_order(past.count, steps_left)
        h = jnp.log(sigma / sigma_next) / rate
        constant, exact, square = exponential_moments(h, 3, rate)
        first = jnp.where(used == 2, slope(h, jnp.asarray(rate)), exact)
        nodes = [jnp.log(sigma / level) for level in past.sigmas]
        weights = polynomial_weights(nodes, (constant, first, square / 2)[:order], used)
        terms = [(rate * w, field) for w, field in zip(weights, past.fields, strict=True)]
        return weighted_sum((sigma_next / sigma - 1, x), *terms), past.but_the_oldest()

    return optax.GradientTransformationExtraArgs(init, update)


_NODES, _WEIGHTS = gauss(8)


@partial(jax.jit, static_argnames="count")
def exponential_moments(h: Array, count: int, rate: Array | float = 1.0) -> list[Array]:
    """Integrals of `e^{rate (s - h)} s^k` from 0 to h, for k below count: what a polynomial in
    log SNR contributes to a step.

    >>> [round(moment.item(), 4) for moment in exponential_moments(jnp.array(1.0), 2)]
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
