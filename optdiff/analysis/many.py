"""Many samplers in one program: what differs between them is data, so they share a compilation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from optdiff.sample import eps_at, last_denoising, plain_clock, sampling_loop, start
from optdiff.types import Cond, Ending, Keys, Problem, Sampler, Samples

AT_ONCE = 2**19
"""Numbers in the iterates that step together, about. What takes the denoiser out of a processor's
cache is slower together than one after another: 512 digits are enough for one product."""


def evaluate_many(
    problem: Problem,
    make: Callable[[Any], Sampler],
    parameters: PyTree,
    levels: Float[Array, "k n"] | Float[np.ndarray, "k n"],
    keys: Keys,
    *,
    counts: Int[np.ndarray, "k"] | None = None,
    cond: Cond = None,
    x: Samples | None = None,
    finish: Ending = last_denoising,
) -> Float[Array, "k b ..."]:
    """Sample with k samplers of one family in one compiled program.

    The samplers may differ in hyperparameters, in levels and in how many of them they use. One
    program serves every call with the same shapes and the same `make`; shorter runs cost less. The
    steps are the driver's own, so sampler j ends where `sample` would take it.

    Args:
      problem: as for `sample`.
      make: makes a sampler of one entry of `parameters`, for example `linear`; called once, while
        tracing. Pass the same function again to reuse its program.
      parameters: pytree with the k samplers first in every leaf: matrices, learning rates, ...
      levels: (k, n) each sampler's grid, of which it uses the first `counts[j]`.
      keys: (b,) keys of the samples, common to all.
      counts: (k,) levels that each sampler uses, at least 1; all n by default.
      cond: one condition per sample, or None.
      x: (b, ...) where all start; by default `problem.prior` at each one's first level.
      finish: as for `sample`.

    Returns:
      (k, b, ...) the samples of each.

    Raises:
      ValueError: for counts that the levels do not have.

    >>> from optdiff.problems import gaussian
    >>> from optdiff.samplers import momentum
    >>> from optdiff.sample import sample_keys
    >>> betas, levels = np.array([-0.2, 0.0, 0.2]), np.tile(np.geomspace(10.0, 0.1, 6), (3, 1))
    >>> evaluate_many(gaussian(dim=2), momentum, betas, levels, sample_keys(0, 4)).shape
    (3, 4, 2)
    """
    k, n = levels.shape
    counts = np.full(k, n) if counts is None else np.asarray(counts)
    if counts.shape != (k,) or counts.min() < 1 or counts.max() > n:
        raise ValueError(f"counts {counts} must be {k} numbers of levels, from 1 to {n}")
    first = np.asarray(levels)[:, 0]
    if x is None and (first == first[0]).all():
        x = _start(problem, keys, first[0], cond)  # once for all
    shape = (x if x is not None else jax.eval_shape(start, problem, keys, levels[0, 0], cond)).shape
    groups = -(-k // max(1, AT_ONCE // int(np.prod(shape))))
    # Those that step together step as long as the longest of them: let neighbours be alike.
    order = np.argsort(counts, kind="stable")
    filled = np.pad(order, (0, -k % groups), mode="edge").reshape(groups, -1)
    given = jax.tree.map(lambda a: np.asarray(a)[filled], (parameters, levels, counts))
    return _many(problem, make, given, np.argsort(order), keys, cond, x, finish)


# It runs once, and took longer to compile than all the steps: op by op twice as long, and optimized
# as long as they do.
_start = jax.jit(start, compiler_options={"xla_backend_optimization_level": 0})


@partial(jax.jit, static_argnames=("make", "finish"))
def _many(problem, make, given, places, keys, cond, x, finish):
    """Group after group of `given`, whose leaves are (groups, together, ...)."""
    eps_fn = partial(eps_at, problem, cond)

    def one(longest, entry):
        parameters, levels, count = entry
        begin = start(problem, keys, levels[0], cond) if x is None else x
        sampler, clock, steps = make(parameters), plain_clock(levels), partial(_steps, longest)
        return sampling_loop(steps, eps_fn, sampler, clock, count, keys, begin, finish)[0]

    def together(entries):
        return jax.vmap(partial(one, jnp.max(entries[2])))(entries)

    samples = jax.lax.map(together, given)
    return samples.reshape(-1, *samples.shape[2:])[places]


def _steps(longest, step, carry, count):
    """Iterate as often as a traced number says, which neither a Python loop nor a scan can: as the
    longest sampler of the group needs, with those that have arrived staying where they are."""

    def body(i, carry):
        after, _ = step(carry, i)
        goes = i < count
        x, sigma = (jnp.where(goes, a, b) for a, b in zip(after[:2], carry[:2], strict=True))
        return after._replace(x=x, sigma=sigma)

    return jax.lax.fori_loop(0, longest - 1, body, carry), None
