"""Momentum: average past gradients (heavy ball), extrapolate them, or look ahead (Nesterov).

Look-ahead that moves the level it evaluates at (PFDiff, EqM) is `foresight`'s."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from optdiff.samplers.directions import scale_by_sigma_step, weighted_sum
from optdiff.types import Sampler, Samples, within


class ScaleByHeavyBallState(NamedTuple):
    """The running average of gradients; `count` steps taken."""

    count: Int[Array, "b"]
    velocity: Samples


@within(beta="(-1, 1)")
def scale_by_heavy_ball(beta: float | Float[Array, ""] | Float[Array, "b"] = 0.2) -> Sampler:
    """Link: the exponential average `v_n = beta v_{n-1} + (1 - beta) eps_n` with `v_0 = eps_0`.

    It starts from the first gradient, which is neither optax's `ema` (from zero) nor `trace` (a
    sum): the noise level stays right from the first step.
    """

    def init(x):
        return ScaleByHeavyBallState(jnp.zeros(x.shape[0], jnp.int32), jnp.zeros_like(x))

    def update(eps, state, x=None, **unused):
        b = jnp.where(state.count == 0, 0.0, beta)
        velocity = weighted_sum((1.0 - b, eps), (b, state.velocity))
        return velocity, ScaleByHeavyBallState(state.count + 1, velocity)

    return optax.GradientTransformationExtraArgs(init, update)


def momentum(beta: float | Float[Array, ""] | Float[Array, "b"] = 0.2) -> Sampler:
    """Heavy-ball momentum on DDIM (arXiv 2307.11118, eq. 11, whose beta is our `1 - beta`):

    `v_n = beta v_{n-1} + (1 - beta) eps_n, v_0 = eps_0;  x' = x - (sigma - sigma') v_n`

    First order; one evaluation per step; linear. The sign of beta is the choice: positive averages
    (stability at high guidance), negative extrapolates (accuracy in few steps). On smooth grids
    (uniform in sigma, Karras) the leading error is `(1 + beta) / (1 - beta)` times DDIM's.

    Args:
      beta: in (-1, 1); 0 is DDIM.

    >>> averaging, extrapolating = momentum(0.2), momentum(-0.3)
    """
    return optax.chain(scale_by_heavy_ball(beta), scale_by_sigma_step())


GREGORY = (1.0, 1 / 2, 5 / 12, 3 / 8)
"""What Adams-Bashforth gives the backward differences of the gradient, of order 0 to 3."""


class ScaleByGHVBState(NamedTuple):
    """Velocities before this one, newest first; `count` steps taken."""

    count: Int[Array, "b"]
    past: tuple[Samples, ...]


def scale_by_ghvb(order: float | int = 1.5) -> Sampler:
    """Link: the direction of `ghvb`, of lower order while the history fills."""
    if not 0 < order <= len(GREGORY):
        raise ValueError(f"the order is above 0 and at most {len(GREGORY)}, not {order}")
    terms = math.ceil(order)
    beta = order - (terms - 1)
    lag = (1.0 - beta) / beta
    differences = [a + lag * b for a, b in zip(GREGORY, (0.0, *GREGORY), strict=False)][:terms]
    table = jnp.array([_of_differences(differences[: k + 1], terms) for k in range(terms)])

    def init(x):
        kept = max(terms - 1, 1)
        past = tuple(jnp.zeros_like(x) for _ in range(kept))
        return ScaleByGHVBState(jnp.zeros(x.shape[0], jnp.int32), past)

    def update(eps, state, x=None, **unused):
        b = jnp.where(state.count == 0, 1.0, beta)
        velocity = weighted_sum((b, eps), (1.0 - b, state.past[0]))
        velocities = (velocity, *state.past)
        weights = table[jnp.minimum(state.count, terms - 1)].T  # (terms, b)
        direction = weighted_sum(*zip(weights, velocities[:terms], strict=True))
        return direction, ScaleByGHVBState(state.count + 1, velocities[: len(state.past)])

    return optax.GradientTransformationExtraArgs(init, update)


def _of_differences(weights: list[float], terms: int) -> list[float]:
    """The same sum over values, newest first: `del^j v_n = sum_i (-1)^i C(j, i) v_{n-i}`."""
    return [
        (-1) ** i * sum(w * math.comb(j, i) for j, w in enumerate(weights)) for i in range(terms)
    ]


def ghvb(order: float | int = 1.5) -> Sampler:
    """Generalized heavy ball, of any order up to 4 (arXiv 2307.11118, section 4.2). With
    `order = r - 1 + beta`, r whole and beta in (0, 1],

        v_n = (1 - beta) v_{n-1} + beta eps_n,  v_0 = eps_0
        x'  = x - (sigma - sigma') sum_{j < r} g_j del^j v_n

    where `g_j = a_j + a_{j-1} (1 - beta) / beta` and `a = 1, 1/2, 5/12, 3/8`: Adams-Bashforth on
    the velocity, with the lag of the average undone to the same order. With two terms it is
    `((2 + beta) v_n - (2 - beta) v_{n-1}) / (2 beta)`; some copies of the paper print "+", wrongly.

    Whole orders are Adams-Bashforth (`ipndm`), orders up to 1 heavy ball (`momentum(1 - order)`);
    between them it trades accuracy for stability at high guidance. The level is kept true. On
    levels uniform in sigma it converges at order `ceil(order)`, less what the first steps, of lower
    order, leave (second order); the error grows as beta falls. One evaluation per step; linear.

    Args:
      order: in (0, 4].

    Raises:
      ValueError: for another order.

    >>> between_euler_and_adams_bashforth_2 = ghvb(1.5)
    """
    return optax.chain(scale_by_ghvb(order), scale_by_sigma_step())


class NesterovState(NamedTuple):
    """The base point and its own noise level, above the look-ahead's; `count` steps taken."""

    count: Int[Array, "b"]
    base: Samples
    sigma: Float[Array, "b"]


@within(mu="(-0.5, 1)")
def nesterov(mu: float | Float[Array, ""] | Float[Array, "b"] = 0.2) -> Sampler:
    """Nesterov's look-ahead with the noise level kept true. The iterate is the look-ahead `y` at
    the grid's level; the base point `x` lives in the state, at a level `s` of its own:

    `s' = (sigma' + mu s) / (1 + mu);  x' = y - (sigma - s') eps(y);  y' = x' + mu (x' - x)`

    with `x = y`, `s = sigma` at the start. The level of `y'` is `s' + mu (s' - s) = sigma'`, as
    the denoiser is told. (Classical Nesterov, which takes the whole step and then overshoots, would
    hand the denoiser less noise than it announces.) A deviation of ours; no source.

    First order; one evaluation per step; linear: the multistep method with characteristic roots 1
    and mu. On smooth grids (uniform in sigma, Karras) the leading error is
    `1 + 2 mu^2 / (1 - mu)` times DDIM's.

    Args:
      mu: in (-1/2, 1), below which s runs away from the grid; 0 is DDIM.

    >>> sampler = nesterov(mu=0.3)
    """

    def init(y):
        return NesterovState(jnp.zeros(y.shape[0], jnp.int32), y, jnp.zeros(y.shape[0]))

    def update(eps, state, y, *, sigma, sigma_next, **unused):
        s = jnp.where(state.count == 0, sigma, state.sigma)
        s_next = (sigma_next + mu * s) / (1.0 + mu)
        step = weighted_sum((s_next - sigma, eps))
        base = y + step
        dx = step + weighted_sum((jnp.asarray(mu), base - state.base))
        return dx, NesterovState(state.count + 1, base, s_next.astype(state.sigma.dtype))

    return optax.GradientTransformationExtraArgs(init, update)
