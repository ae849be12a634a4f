"""What sampling costs: evaluations of the denoiser, counted as samplers make them.

What a run did cost is in its `Trace`; here is what one will, to fit a budget.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from optdiff.keys import sample_keys
from optdiff.sample import identity, plain_clock, sampling_loop
from optdiff.types import Sampler


@lru_cache(maxsize=1024)
def evals_per_step(sampler: Sampler, shape: tuple[int, ...] = (1,)) -> int:
    """Evaluations a sampler makes in a step, counted as it takes one of samples of this shape.

    >>> from optdiff.samplers import heun
    >>> evals_per_step(heun())
    2
    """
    calls = []

    def eps_fn(x, sigma):
        calls.append(sigma)
        return x

    def one_step(step, carry, count):
        return step(carry, 0)[0], None

    def run(x):
        clock, keys = plain_clock(jnp.ones(2)), sample_keys(0, 1)
        return sampling_loop(one_step, eps_fn, sampler, clock, 2, keys, x, identity)[0]

    # Shapes are enough to count by: the step is traced, as in a scan, and nothing is computed.
    jax.eval_shape(run, jnp.ones((1, *shape)))
    return len(calls)


def evaluations(sampler: Sampler, n: int, shape: tuple[int, ...] = (1,)) -> int:
    """Evaluations per sample that n levels cost with this sampler, the ending's included."""
    return (n - 1) * evals_per_step(sampler, shape) + 1


def levels_within(sampler: Sampler, nfe: int, shape: tuple[int, ...] = (1,)) -> int:
    """The largest number of levels whose cost fits a budget of evaluations.

    >>> from optdiff.samplers import heun
    >>> levels_within(heun(), 8)   # three steps of two evaluations, and the last denoising
    4
    """
    if nfe < 1:
        raise ValueError(f"a sample takes at least one evaluation, but the budget is {nfe}")
    return 1 + (nfe - 1) // evals_per_step(sampler, shape)
