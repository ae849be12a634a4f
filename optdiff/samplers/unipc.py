"""Exponential Adams methods over the data prediction in log SNR: UniPC, and the rule it shares with
SA-Solver.
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import optax
from jaxtyping import Array

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.dpmpp import exponential_moments
from optdiff.samplers.multistep import History, order_of_step, polynomial_weights
from optdiff.types import Sampler, Sigma, data_prediction

B = Callable[[Array], Array]
"""UniPC's B, a function of `-h` that is `-h` plus terms of second order."""


def bh1(z: Array) -> Array:
    """UniPC's first choice, `B(z) = z` (arXiv 2302.04867, section 3.1)."""
    return z


def bh2(z: Array) -> Array:
    """UniPC's second choice, `B(z) = e^z - 1` (arXiv 2302.04867, section 3.1)."""
    return jnp.expm1(z)


def unip(order: int = 3, b: B = bh2, final_order: int | None = None) -> Sampler:
    """UniP, the predictor of `unipc` without its corrector (arXiv 2302.04867, algorithm 2).

    One evaluation per step; linear. Of its order once the history is full; the first steps leave
    an error of second order. With `bh2`, order 2 is DPM-Solver++(2M).

    Args and errors: as `unipc`.

    >>> sampler = unip(order=2)
    """
    _require_order(order)

    return exponential_adams(order, 0, partial(_slope, b), final_order=final_order)


def unipc(order: int = 3, b: B = bh2, final_order: int | None = None) -> Sampler:
    """UniPC (arXiv 2302.04867, algorithms 1 and 2, data prediction): the polynomial through the
    last `order` predictions of the data, integrated exactly in log SNR, and corrected with the one
    at the step's end, which is the next step's and costs nothing.

    In sigma-coordinates, with `h = log(sigma / sigma')` and `p` through `D` at past log SNR,

    `x' = (sigma'/sigma) x_c + integral from 0 to h of e^{s - h} p(s) ds`
    `x_c' = x' + the same integral of p with D(x', sigma') among its points, less that without`

    Where p is a straight line, which is the predictor of order 2 and the corrector of order 1, the
    integral of its slope is `-h B(-h) / 2`. The iterate is x', at which D is evaluated; `x_c` only
    adds to the next step, so whatever else moved x' (noise, say) is kept.

    One evaluation per step; linear. By the corrector of one order more than the predictor's once
    the history is full; at order 3 the first steps leave an error of third order.

    Args:
      order: 1 to 3, of the predictor; lower while the history fills.
      b: `bh1`, `bh2`, or another such function.
      final_order: at most this on the last step, one more on the step before, and so on; diffusers
        has 2 (and 1 for the denoising that follows). None: `order` throughout.

    Raises:
      ValueError: for another order.

    >>> sampler = unipc(order=2, b=bh1)
    """
    _require_order(order)

    return exponential_adams(order, order + 1, partial(_slope, b), final_order=final_order)


def _slope(b, h):
    """What a slope of 1 adds, where the polynomial is a straight line."""
    return -h * b(-h) / 2


def exponential_adams(
    predictor: int,
    corrector: int,
    second: Callable[[Array], Array],
    *,
    tau: Callable[[Sigma], Array] = jnp.zeros_like,
    final_order: int | None = None,
) -> Sampler:
    """What UniPC and SA-Solver's drift have in common: see `unipc` and `sa_solver`.

    Args:
      predictor: points of the predictor's polynomial, all past.
      corrector: points of the corrector's, the step's end among them; 0 for no corrector.
      second: the integral of `s` along the step of length h, for polynomials through two points.
      tau: as `sa_solver`.
      final_order: as `unipc`.
    """
    # The corrector also takes back what the predictor's oldest point said.
    room = max(predictor, corrector - 1) if corrector else predictor - 1
    order_before = order_of_step(predictor, final_order)
    order_after = order_of_step(corrector, None if final_order is None else final_order + 1)
    weights = partial(_weights, second=second, tau=tau)

    def init(x):
        return History.empty(x, room)

    def correction(past, steps_left):
        """How the weights of the step that led here change, now that its end is known."""
        now, start, steps_left = past.sigmas[0], past.sigmas[1], steps_left + 1
        order = order_after(past.count, steps_left)
        with_the_end = weights(past.sigmas[:corrector], start, now, order)
        order = order_before(past.count - 1, steps_left)
        without = weights(past.sigmas[1 : 1 + predictor], start, now, order)
        change = _padded(with_the_end, 0, room + 1) - _padded(without, 1, room + 1)
        return jnp.where(past.count > 1, change, 0.0)

    def update(eps, state, x, *, sigma, sigma_next, steps_left, **unused):
        past = state.and_now(data_prediction(x, eps, sigma), sigma)
        order = order_before(past.count, steps_left)
        total = weights(past.sigmas[:predictor], sigma, sigma_next, order)
        lost = jnp.expm1(-(1 + tau(sigma) ** 2) * jnp.log(sigma / sigma_next))  # of x, negative
        if corrector:
            kept = jnp.broadcast_to(1 + lost, past.count.shape)
            total = _padded(total, 0, room + 1) + kept[None] * correction(past, steps_left)
        dx = weighted_sum((lost, x), *zip(total, past.fields, strict=True))
        return dx, past.but_the_oldest()

    return optax.GradientTransformationExtraArgs(init, update)


def _weights(levels, start, end, order, *, second, tau):
    """Of the data predictions at these levels in the step from start to end: the polynomial through
    the first `order` of them, integrated."""
    h, rate = jnp.log(start / end), 1.0 + tau(start) ** 2
    constant, slope, *rest = exponential_moments(h, max(len(levels), 2), rate)
    moments = constant, jnp.where(order == 2, second(h), slope), *rest
    nodes = [jnp.log(start / level) for level in levels]
    return polynomial_weights(nodes, [rate * moment for moment in moments], order)


def _padded(weights, before, length):
    """Weights of all fields from those of some."""
    after = length - before - len(weights)
    return jnp.pad(weights, [(before, after)] + [(0, 0)] * (weights.ndim - 1))


def _require_order(order):
    if order not in range(1, 4):
        raise ValueError(f"order is 1 to 3, not {order}")
