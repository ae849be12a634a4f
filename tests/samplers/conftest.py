"""A nonlinear problem with exact scores, some grids, and the iterates of a sampler on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_oracle import Parity

from optdiff.problems import mixture
from optdiff.sample import identity, sample, sample_keys

# Every shape of grid: smooth and narrow towards zero, geometric, uniform, and without a pattern.
GRIDS = {
    "karras": np.linspace(80.0 ** (1 / 7), 0.05 ** (1 / 7), 9) ** 7,
    "geometric": np.geomspace(20.0, 0.01, 7),
    "uniform": np.linspace(4.0, 0.25, 9),
    "irregular": np.array([30.0, 29.0, 11.0, 10.9, 2.0, 0.8, 0.79, 0.2]),
}


@pytest.fixture(scope="session")
def problem():
    return mixture(modes=4, dim=6, stds=0.3)


@pytest.fixture(scope="session")
def keys():
    return sample_keys(0, 5)


@pytest.fixture(params=GRIDS)
def levels(request):
    return jnp.asarray(GRIDS[request.param])


@pytest.fixture(scope="session")
def eps(problem):
    """`eps(x, sigma)` of the problem, by its definition."""
    return jax.jit(lambda x, sigma: (x - problem.denoise(x, sigma)) / sigma)


@pytest.fixture(scope="session")
def iterates(problem, keys):
    """`iterates(sampler, levels)`: where a sampler is at each level, (n, b, d)."""

    def follow(sampler, levels, *, problem=problem, x=None):
        x = problem.prior(keys, levels[0]) if x is None else x
        _, trace = sample(
            problem, sampler, levels, keys, x=x, finish=identity, observe=lambda step: step.x_next
        )
        return np.concatenate([x[None], trace.observed])

    return follow


@pytest.fixture(scope="session")
def parity(problem, keys):
    """`parity(name, sampler, case)`: require the trajectory of a scheduler; see `Parity`."""
    return Parity(problem, keys, jax.jit(problem.denoise))
