"""Foresight: let the gradient be evaluated ahead of the point that it moves.

The iterate that the driver evaluates is the point ahead, so that foresight costs nothing; the point
it moves lags behind, and what the two have between them is kept in the state. `momentum.nesterov`
is the third of the kind.
"""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optdiff.samplers.directions import Reading, StepRule, anneal, eps, weighted_sum
from optdiff.types import Sampler, Samples, within


class PFDiffState(NamedTuple):
    """The gradient before this one and the level it was taken at; `count` steps taken."""

    count: Int[Array, "b"]
    previous: Samples
    sigma: Float[Array, "b"]


@within(foresight="[0, 1)")
def pfdiff(foresight: float | Float[Array, ""] | Float[Array, "b"] = 0.5) -> Sampler:
    """PFDiff (arXiv 2408.08822, algorithm 1) on DDIM: the past gradient takes the base point to a
    springboard ahead, and the gradient there takes the base point the whole way,

    `y = x - (s - sigma) eps_past;  x' = x - (s - s') eps(y, sigma);  eps_past = eps(y, sigma)`

    The springboard `y` lies the fraction `foresight` of the way from the base's level s to s';
    PFDiff-k_h has h / (k + 1). In the paper bases and springboards take turns on one grid. Here the
    grid has the springboards' levels, the only ones that cost evaluations, and the bases lie
    between: `s' = foresight sigma + (1 - foresight) sigma'`, with `s = sigma` at the start. Where
    the grid is uniform the two are the same. In terms of the springboards alone, with p for the
    foresight and h for the length of the step before,

    `y' = y - (sigma - sigma' + p h) eps(y) + p h eps_past`

    gradient estimation with `gamma = 1 + p h / (sigma - sigma')`, hence `1 + p` on uniform levels.
    At p = 1/2 the weights of the past are the trapezoid rule's, so it is of second order on every
    grid, smooth or not (other p: first). The level is kept true. One evaluation per step; linear.

    Args:
      foresight: in [0, 1); 0 is DDIM.

    >>> pfdiff_1, pfdiff_2_1 = pfdiff(1 / 2), pfdiff(1 / 3)
    """

    def init(y):
        return PFDiffState(
            jnp.zeros(y.shape[0], jnp.int32), jnp.zeros_like(y), jnp.zeros(y.shape[0])
        )

    def update(eps, state, y, *, sigma, sigma_next, **unused):
        # The base's distance from the springboard; at the start they are one.
        behind = jnp.where(state.count == 0, 0.0, foresight * (state.sigma - sigma))
        dx = weighted_sum((sigma_next - sigma - behind, eps), (behind, state.previous))
        level = jnp.broadcast_to(sigma, state.sigma.shape).astype(state.sigma.dtype)
        return dx, PFDiffState(state.count + 1, eps, level)

    return optax.GradientTransformationExtraArgs(init, update)


class EqMNAGState(NamedTuple):
    """The last move of the base point, `x - x_prev`, which is zero at first."""

    move: Samples


@within(mu="(-inf, inf)", learning_rate="(0, inf)")
def eqm_nag(
    mu: float | Float[Array, ""] | Float[Array, "b"] = 0.3,
    learning_rate: float | Float[Array, ""] | Float[Array, "b"] = 1.0,
    *,
    reading: Reading = eps,
    rule: StepRule = anneal,
) -> Sampler:
    """The "NAG" of Equilibrium Matching (arXiv 2510.02300, section 3.3):

    `x' = x - eta f(x + mu (x - x_prev))`, with `eta f = learning_rate rule(...) eps`.

    No velocity builds up, so it is not Nesterov's method. The iterate is the point ahead,
    `y = x + mu (x - x_prev)`, also at the end, where EqM returns the base. In terms of y it is
    optimistic descent, `y' - y = -eta ((1 + mu) f - mu f_prev)` if eta rests.

    Under `anneal` the base is at the grid's level and y below it, by mu times the last step: the
    denoiser is told more noise than there is. Steps shrink the lag with them, so it still converges
    to the target at first order. Under `constant` there is no level to
    keep: it descends to a fixed point of the denoiser (EqM: eta 0.0017, mu 0.3, 250 steps), on
    `gaussian` the mean. One evaluation per step; linear.

    Args:
      mu: how far ahead, as a multiple of the last move; 0 is plain descent.
      learning_rate: eta, or what multiplies the annealed step.
      reading: the gradient f: `eps`, `residual` or `score`.
      rule: `anneal`, or `constant` for eta alone.

    >>> sampler = eqm_nag(mu=0.3)
    """

    def init(y):
        return EqMNAGState(jnp.zeros_like(y))

    def update(eps, state, y, *, sigma, sigma_next, **unused):
        eta = learning_rate * rule(reading, sigma, sigma_next) * reading(sigma)  # times eps
        move = weighted_sum((-eta, eps))
        ahead = jnp.asarray(mu)
        dx = weighted_sum((1.0 + ahead, move), (-ahead, state.move))
        return dx, EqMNAGState(move)

    return optax.GradientTransformationExtraArgs(init, update)
