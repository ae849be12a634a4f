"""The sampler with a given matrix: every iterate a fixed combination of gradients seen so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from optdiff.types import SAME_LEVEL, Sampler, Samples, expand

Matrix = Float[Array, "m e"] | Float[np.ndarray, "m e"]
Vector = Float[Array, "m"] | Float[np.ndarray, "m"]


class LinearState(NamedTuple):
    """The start and then the gradients, in order, along the second axis; `count` steps taken."""

    count: Int[Array, "b"]
    past: Float[Array, "b columns ..."]


def linear(
    gradients: Matrix, points: Vector, start: Vector | None = None, *, evals: int = 1
) -> Sampler:
    """The linear sampler with these coefficients: gradient k is taken at the point

    `y_k = A_k x_0 + sum_{j < k} C_kj eps_j`

    and every `evals`-th of these points is an iterate, as is the last. What
    `optdiff.analysis.coefficients` finds in a sampler, and what a learned one may be given. The
    matrix belongs to its grid, and says nothing of other steps: they are refused. Where levels are
    traced (`sample_scan`) there is nothing to raise, and samples become NaN.

    Args:
      gradients: C, (m, e) with e = m - 1, below the diagonal.
      points: (m,) noise levels of the points; with one evaluation a step they are the grid.
      start: A, (m,); ones by default, as in any sampler that keeps the noise level true.
      evals: evaluations a step makes; it divides e.

    Raises:
      ValueError: for shapes that do not belong together, or evals that do not divide e; on a step
        between levels that are not its own, naming both.

    >>> levels = jnp.array([3.0, 1.0, 0.5])
    >>> ddim_matrix = jnp.array([[0.0, 0.0], [-2.0, 0.0], [-2.0, -0.5]])
    >>> sampler = linear(ddim_matrix, levels)
    """
    rows, columns = np.shape(gradients)
    start = jnp.ones(rows) if start is None else jnp.asarray(start)
    if rows != columns + 1 or np.shape(points) != (rows,) or start.shape != (rows,):
        raise ValueError(
            f"gradients {np.shape(gradients)}, points {np.shape(points)} and start {start.shape} "
            "must be (m, m - 1), (m,) and (m,)"
        )
    if columns % evals:
        raise ValueError(f"{columns} evaluations do not make steps of {evals}")
    weights = jnp.concatenate([start[:, None], jnp.tril(jnp.asarray(gradients), -1)], axis=1)
    points = jnp.asarray(points)

    def init(x):
        past = jnp.zeros((x.shape[0], columns + 1, *x.shape[1:]), x.dtype).at[:, 0].set(x)
        return LinearState(jnp.zeros(x.shape[0], jnp.int32), past)

    def update(eps, state, x=None, *, sigma, sigma_next, eps_fn=None, **unused):
        row = state.count * evals
        waits = sigma_next == sigma  # a clock may have samples wait; their move is not taken
        own = waits | (_same(points[row], sigma) & _same(points[row + evals], sigma_next))
        if not isinstance(own, jax.core.Tracer) and not own.all():
            raise ValueError(
                f"the matrix belongs to the levels {_shown(points[::evals])}, but a step goes from "
                f"{_shown(sigma)} to {_shown(sigma_next)}: sample on its levels, or make a matrix "
                "for these"
            )
        past = _put(state.past, row + 1, eps)
        for inner in range(1, evals):
            y = x + _combine(weights[row + inner] - weights[row], past)
            past = _put(past, row + inner + 1, eps_fn(y, points[row + inner]))  # (b,) levels
        dx = _combine(weights[row + evals] - weights[row], past)
        return jnp.where(expand(own, dx), dx, jnp.nan), LinearState(state.count + 1, past)

    return optax.GradientTransformationExtraArgs(init, update)


def _same(one: Array, other: Array) -> Array:
    return jnp.abs(one - other) <= SAME_LEVEL * jnp.abs(one)


def _shown(levels: Array) -> str:
    return ", ".join(f"{level:.6g}" for level in np.unique(levels)[::-1])


def _put(past: Array, column: Int[Array, "b"], gradient: Samples) -> Array:
    """Each sample's gradient in its own column."""
    here = jnp.arange(past.shape[1])[None] == column[:, None]
    here = here.reshape(*here.shape, *(1,) * (gradient.ndim - 1))
    return jnp.where(here, gradient[:, None], past)


def _combine(weights: Float[Array, "b columns"], past: Array) -> Samples:
    return jnp.einsum("bk,bk...->b...", weights, past).astype(past.dtype)
