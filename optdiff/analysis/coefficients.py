"""The coefficient view: what a linear sampler does, as one matrix.

On fixed levels the iterate of a linear sampler is a fixed combination of the start and of the
gradients seen so far, whatever the problem. This file finds that combination in any transformation
by probing it, says when there is none, and reads off the matrix what it means. The inverse, the
sampler with a given matrix, is `optdiff.samplers.linear`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from optdiff.cost import evals_per_step
from optdiff.sample import identity, plain_clock, sample_keys, sampling_loop
from optdiff.types import Levels, Sampler

Vector = Float[np.ndarray, "m"]
Matrix = Float[np.ndarray, "m e"]


class NotLinear(ValueError):
    """The sampler is no fixed combination of its gradients: nonlinear, or it draws noise."""


class Coefficients(NamedTuple):
    """Points as combinations: `y_k = start_k x_0 + sum_j gradients_kj eps_j`.

    Points 0 to m - 2 are where gradients were taken, in order, and the last is the last iterate;
    every `evals`-th is an iterate.
    """

    start: Vector  # A: 1 in every row, if the noise level is kept
    gradients: Matrix  # C: strictly lower triangular, e = m - 1
    points: Vector  # the noise level of each point
    evals: int  # evaluations a step makes

    @property
    def moves(self) -> Float[np.ndarray, "steps e"]:
        """Weights of the gradients in each step's move: differences of the iterates' rows."""
        return np.diff(self.gradients[:: self.evals], axis=0)

    @property
    def levels(self) -> Float[np.ndarray, "n"]:
        """The noise levels of the iterates."""
        return self.points[:: self.evals]


def coefficients(
    sampler: Sampler, levels: Levels, *, tolerance: float | None = None
) -> Coefficients:
    """Find the matrix of a linear sampler on fixed levels, whoever wrote it.

    The sampler runs once on unit vectors: the start is one, and every gradient handed to it is the
    next, so that the coordinates of its points are the coefficients. Then it runs on random starts
    and gradients, small and large and under other keys, where the same combination must lead.

    Args:
      sampler: any sampler.
      levels: (n,) noise levels, as for `sample`.
      tolerance: how far, relative to the point, a random run may be from the combination; by
        default what rounding allows, 1e-9 in float64 and 1e-4 in float32.

    Returns:
      The `Coefficients`, the same for every problem.

    Raises:
      NotLinear: saying by how much the combination misses.

    >>> from optdiff.samplers import gradient_estimation
    >>> matrix = coefficients(gradient_estimation(2.0), jnp.array([4.0, 3.0, 2.0]))
    >>> matrix.moves.round(3).tolist()
    [[-1.0, 0.0], [1.0, -2.0]]
    """
    levels = jnp.asarray(levels)
    n = levels.shape[0]
    evals = evals_per_step(sampler)
    e = (n - 1) * evals
    units = jnp.eye(e + 1, dtype=levels.dtype)
    seen, points = _run(sampler, levels, units[:1], units[1:, None], seed=0)
    matrix = Coefficients(seen[:, 0, 0], seen[:, 0, 1:], points, evals)
    tolerance = _rounding(levels.dtype) if tolerance is None else tolerance
    for seed, scale in ((1, 0.1), (2, 10.0)):
        keys = jax.random.split(jax.random.key(seed))
        x = scale * jax.random.normal(keys[0], (2, 7), levels.dtype)
        gradients = scale * jax.random.normal(keys[1], (e, 2, 7), levels.dtype)
        seen, _ = _run(sampler, levels, x, gradients, seed)
        due = matrix.start[:, None, None] * np.asarray(x)
        due = due + np.tensordot(matrix.gradients, np.asarray(gradients), 1)
        size = np.linalg.norm(due.reshape(len(due), -1), axis=1)
        miss = np.max(np.linalg.norm((seen - due).reshape(len(due), -1), axis=1) / size)
        if not miss <= tolerance:  # nor if it is not a number
            raise NotLinear(
                f"no matrix: on random gradients of size {scale:g} the sampler is {miss:.2g} of "
                "its length away from the combination that unit gradients show, so it is not "
                "linear in them, or draws noise"
            )
    return matrix


def _rounding(dtype):
    """What rounding may add up to along a trajectory, as a share of its length."""
    return 1e-9 if np.finfo(dtype).eps < 1e-12 else 1e-4


def _run(sampler, levels, x, gradients, seed):
    """The points a sampler visits and their levels, if gradient k is `gradients[k]` anywhere."""
    visited: list[tuple] = []

    def eps_fn(x, sigma):
        visited.append((x, sigma))
        return gradients[len(visited) - 1]

    def every_step(step, carry, count):
        for i in range(count):
            carry, _ = step(carry, i)
        return carry, None

    keys, clock = sample_keys(seed, len(x)), plain_clock(levels)
    n = levels.shape[0]
    last, carry, _ = sampling_loop(every_step, eps_fn, sampler, clock, n, keys, x, identity)
    visited.append((last, carry.sigma))
    points = [np.ravel(sigma)[0] for _, sigma in visited]  # one for all, or alike for each
    return np.stack([np.asarray(x) for x, _ in visited]), np.array(points)


def learning_rates(matrix: Coefficients) -> Float[np.ndarray, "steps"]:
    """How far each step goes along its gradients together, in units of DDIM's step:
    `-sum_j w_j / (sigma - sigma')`. At 1 the noise level is kept; below, noise is left behind.

    >>> from optdiff.samplers import ddim
    >>> learning_rates(coefficients(ddim(), jnp.array([4.0, 3.0, 1.0]))).tolist()
    [1.0, 1.0]
    """
    return np.sum(matrix.moves, axis=1) / np.diff(matrix.levels)


def memory(matrix: Coefficients) -> Float[np.ndarray, "steps"]:
    """The share of each step's weights, by size, that lies on gradients of earlier steps: 0 in a
    one-step method, 1/4 in Adams-Bashforth 2."""
    sizes = np.abs(matrix.moves)
    earlier = np.tril(np.ones_like(sizes), -1)
    if matrix.evals > 1:
        step = np.arange(sizes.shape[1]) // matrix.evals
        earlier = (step < np.arange(len(sizes))[:, None]).astype(float)
    return np.sum(sizes * earlier, axis=1) / np.sum(sizes, axis=1)


def orders(matrix: Coefficients, *, tolerance: float | None = None) -> np.ndarray:
    """Order conditions that each step meets exactly: the largest p for which it integrates every
    polynomial in sigma of degree below p,

    `sum_j w_j sigma_j^q = (sigma'^(q+1) - sigma^(q+1)) / (q + 1)`, q < p.

    Linear multistep methods in sigma have their order here. Methods that integrate in log sigma,
    or with constant-step weights on other grids, meet the conditions beyond the first only in the
    limit of many steps, and a one-step method with stages meets those of its quadrature.

    Args:
      tolerance: relative to the terms of the sum; by default as in `coefficients`.
    """
    ends = matrix.levels
    tolerance = _rounding(matrix.gradients.dtype) if tolerance is None else tolerance
    scale = matrix.points.max()
    met = np.zeros(len(ends) - 1, int)
    still = np.ones(len(ends) - 1, bool)
    for q in range(matrix.gradients.shape[1]):
        due = np.diff((ends / scale) ** (q + 1)) / (q + 1) * scale
        weighed = matrix.moves @ (matrix.points[:-1] / scale) ** q
        size = np.abs(matrix.moves) @ (matrix.points[:-1] / scale) ** q + np.abs(due)
        still &= np.abs(weighed - due) <= tolerance * size
        met += still
    return met


def amplification(matrix: Coefficients, std: float) -> float:
    """Where the sampler takes `N(0, std^2)` data, in units of where the exact flow does: the ratio
    of the standard deviations at the last level. 1 is exact, 0 collapsed, large unstable.

    On such data `eps(y, sigma) = y sigma / (std^2 + sigma^2)`, so the iterate is a number.
    """
    slope = matrix.points / (std**2 + matrix.points**2)
    points = np.zeros(len(matrix.points))
    for k in range(len(points)):
        points[k] = matrix.start[k] + matrix.gradients[k, :k] @ (slope[:k] * points[:k])
    exact = np.sqrt((std**2 + matrix.points[-1] ** 2) / (std**2 + matrix.points[0] ** 2))
    return float(points[-1] / exact)
