"""Clocks: adaptive compute, sample by sample.

The driver asks a clock where to go next, whether to go at all, and whether the move made was good
(`optdiff.types.Clock`). The plain clock, which reads the grid, is the driver's own; here are those
that look at the samples: stop when the gradient says that one is done, choose the step by an
embedded error, and descend with no noise level given at all. Each makes a `Clock` from a grid,
whose length bounds the steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from optdiff.types import Clock, Levels, Samples, Sigma, data_prediction, expand, within

Signal = Callable[[Samples, Samples, Samples, Sigma], Float[Array, "b"]]
"""`signal(x0, x0_before, eps, sigma)`: how much a sample still has to do."""


def gradient_norm(x0: Samples, x0_before: Samples, eps: Samples, sigma: Sigma) -> Array:
    """`|eps| / sqrt(d)`: 1 where the noise is as strong as its level, less where the denoiser sees
    less noise than it was told of (the ratio nu of arXiv 2306.04848)."""
    return _rms(eps)


def distance(x0: Samples, x0_before: Samples, eps: Samples, sigma: Sigma) -> Array:
    """`|x - D| / sqrt(d) = sigma |eps| / sqrt(d)`, the estimated distance to the data (arXiv
    2306.04848, section 3), in units of the data."""
    return sigma * _rms(eps)


def x0_change(x0: Samples, x0_before: Samples, eps: Samples, sigma: Sigma) -> Array:
    """`|D_i - D_{i-1}| / sqrt(d)`: how far the estimate of the end moved; infinite at first."""
    return jnp.where(jnp.isnan(x0_before).reshape(len(x0), -1)[:, 0], jnp.inf, _rms(x0 - x0_before))


class StoppingState(NamedTuple):
    """Where each sample is on the grid, and its last data prediction (NaN before the first)."""

    at: Int[Array, "b"]
    x0: Samples


@within(below="(-inf, inf)", from_level="(0, inf]")
def stopping(
    levels: Levels, *, signal: Signal = x0_change, below: float = 0.05, from_level: float = 1.0
) -> Clock:
    """Follow the grid, each sample until its signal falls below a threshold.

    A sample that stops waits at its level for the last denoising. The evaluation that told it to
    stop is that one, so it needs no more of them. The batch saves less: it is evaluated whole until
    its last sample stops (`nfe` and `batch_nfe` of the trace).

    Args:
      levels: (n,) the grid.
      signal: `gradient_norm`, `distance` or `x0_change`.
      below: the threshold, in the signal's units.
      from_level: the highest level at which a sample may stop. Where noise hides the data, D is
        their mean and hardly moves, which is not yet the end.

    >>> clock = stopping(jnp.array([3.0, 1.0]), signal=distance, below=0.1)
    """

    def init(x):
        at = jnp.zeros(x.shape[0], jnp.int32)
        return jnp.full(x.shape[0], levels[0]), StoppingState(at, jnp.full_like(x, jnp.nan))

    def next_level(state, x, eps, i):
        sigma = levels[state.at]
        x0 = data_prediction(x, eps, sigma)
        go = (signal(x0, state.x0, eps, sigma) >= below) | (sigma > from_level)
        at = jnp.minimum(state.at + go, len(levels) - 1)
        return levels[at], go, StoppingState(at, x0)

    return Clock(init, next_level)


class EmbeddedState(NamedTuple):
    """The level of each sample, and the step it will try next, in log sigma."""

    sigma: Float[Array, "b"]
    h: Float[Array, "b"]


@within(tolerance="(0, inf)", safety="(0, 1]", first="(0, inf)")
def embedded(
    levels: Levels, *, tolerance: float = 0.02, safety: float = 0.9, first: float = 0.5
) -> Clock:
    """Choose each step by the error that a second-order sampler sees in the Euler step it embeds.

    The error of a move is its distance from the Euler step, `|dx - (sigma' - sigma) eps|`: with
    `heun`, half the difference of its two gradients. A move is accepted if its error, by the root
    mean square over a sample, is at most `tolerance (1 + |x'|)`, and the next step, in log sigma,
    is `safety sqrt(tolerance / error)` times as long, at most 5 times and at least 1/5 (the
    controller of Hairer, Norsett & Wanner I, II.4; for diffusion see arXiv 2105.14080).

    Refused moves are paid for. A sample that has arrived at the last level waits there; one whose
    tries run out before is denoised from where it is, and not `finished` in the trace.

    Args:
      levels: (n,): from the first to the last, in at most n - 1 tries; those between do not matter.
      tolerance: error allowed in a step, relative to data of unit size.
      safety: below 1, how much shorter than the error allows.
      first: the first step, in log sigma.

    >>> clock = embedded(jnp.geomspace(80.0, 0.02, 50), tolerance=0.01)
    """

    def init(x):
        sigma = jnp.full(x.shape[0], levels[0])
        return sigma, EmbeddedState(sigma, jnp.full_like(sigma, first))

    def next_level(state, x, eps, i):
        go = state.sigma > levels[-1]
        return jnp.maximum(state.sigma * jnp.exp(-state.h), levels[-1]), go, state

    def judge(state, step):
        euler = expand(step.sigma_next - step.sigma, step.x) * step.eps
        error = _rms(step.x_next - step.x - euler) / (tolerance * (1.0 + _rms(step.x_next)))
        accept = error <= 1.0
        # A step of no error, or of no length, says nothing of how long the next may be.
        factor = safety / jnp.sqrt(jnp.maximum(error, 1e-12))
        h = state.h * jnp.clip(factor, 0.2, 5.0)
        return accept, EmbeddedState(jnp.where(accept, step.sigma_next, state.sigma), h)

    return Clock(init, next_level, judge)


@within(rate="(0, 1)")
def estimated(levels: Levels, *, rate: float = 0.3) -> Clock:
    """No noise level given: it is read off the gradient's norm, and the learning rate is constant.

    The level that a sample is told is what its last gradient made of it, `sigma = |x - D| /
    sqrt(d)` (arXiv 2306.04848, section 3), less the share `rate` by which a step shortens that
    distance; at the start it is the norm of x itself. The sampler keeps the rate, for example
    `from_transformation(optax.scale(rate), reading=residual, rule=constant)`: plain gradient
    descent on half the squared distance, `x' = x - rate (x - D)`, and no schedule at all.

    Args:
      levels: (n,): only their number counts, and the last: a sample that is told it is done.
      rate: the sampler's learning rate, in (0, 1).

    >>> clock = estimated(jnp.geomspace(80.0, 0.02, 50), rate=0.2)
    """

    def init(x):
        sigma = jnp.maximum(_rms(x), levels[-1])
        return sigma, sigma

    def next_level(sigma, x, eps, i):
        go = sigma > levels[-1]
        sigma_next = jnp.maximum((1.0 - rate) * sigma * _rms(eps), levels[-1])
        sigma_next = jnp.where(go, sigma_next, sigma)
        return sigma_next, go, sigma_next

    return Clock(init, next_level)


def _rms(x: Samples) -> Float[Array, "b"]:
    # Squares of float16 overflow at 256, which is where sampling starts.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sqrt(jnp.mean(jnp.square(wide.reshape(len(x), -1)), axis=1))
