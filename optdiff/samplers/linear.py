"""The sampler with a given matrix: every iterate a fixed combination of gradients seen so far."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from optdiff.types import Sampler, Samples

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
    matrix belongs to its grid, and says nothing of steps beyond its last row.

    Args:
      gradients: C, (m, e) with e = m - 1, below the diagonal.
      points: (m,) noise levels of the points; with one evaluation a step they are the grid.
      start: A, (m,); ones by default, as in any sampler that keeps the noise level true.
      evals: evaluations a step makes; it divides e.

    Raises:
      ValueError: for shapes that do not belong together, or a matrix that looks ahead.

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

    def update(eps, state, x=None, *, eps_fn=None, **unused):
        row = state.count * evals
        past = _put(state.past, row + 1, eps)
        for inner in range(1, evals):
            y = x + _combine(weights[row + inner] - weights[row], past)
            past = _put(past, row + inner + 1, eps_fn(y, points[row + inner]))  # (b,) levels
        dx = _combine(weights[row + evals] - weights[row], past)
        return dx, LinearState(state.count + 1, past)

    return optax.GradientTransformationExtraArgs(init, update)


def _put(past: Array, column: Int[Array, "b"], gradient: Samples) -> Array:
    """Each sample's gradient in its own column."""
    here = jnp.arange(past.shape[1])[None] == column[:, None]
    here = here.reshape(*here.shape, *(1,) * (gradient.ndim - 1))
    return jnp.where(here, gradient[:, None], past)


def _combine(weights: Float[Array, "b columns"], past: Array) -> Samples:
    return jnp.einsum("bk,bk...->b...", weights, past).astype(past.dtype)
