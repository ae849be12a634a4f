"""What the contracts are held against: every sampler yaml, and a small conditional problem.

The list of samplers is read from `conf/sampler`, so a new yaml is under contract as it appears.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hydra
import jax
import pytest

from optdiff.grids import karras
from optdiff.problems import Mixture, mixture
from optdiff.sample import sample_keys

CONF = Path(__file__).parents[2] / "conf"


@partial(jax.tree_util.register_dataclass, data_fields=["mixture"], meta_fields=[])
@dataclass(frozen=True)
class Displaced:
    """A mixture that every sample's condition, (b, d), moves to a place of its own."""

    mixture: Mixture

    @property
    def schedule(self):
        return self.mixture.schedule

    def condition(self, keys):
        return 3.0 * jax.vmap(lambda key: jax.random.normal(key, self.mixture.means.shape[1:]))(
            keys
        )

    def prior(self, keys, sigma, cond):
        return cond + self.mixture.prior(keys, sigma)

    def denoise(self, x, sigma, cond):
        return cond + self.mixture.denoise(x - cond, sigma)

    def decode(self, x0):
        return x0

    def reference(self, keys, cond):
        return self.prior(keys, jax.numpy.zeros(()), cond)


def instantiate(name):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(overrides=[f"+sampler={name}"])
    return hydra.utils.instantiate(config.sampler)


@pytest.fixture(scope="session")
def samplers():
    return {path.stem: instantiate(path.stem) for path in sorted(CONF.glob("sampler/*.yaml"))}


@pytest.fixture(scope="module", params=sorted(path.stem for path in CONF.glob("sampler/*.yaml")))
def sampler(request, samplers):
    return samplers[request.param]


@pytest.fixture(scope="session")
def setting():
    """Arguments of `sample` for eight conditional samples on six levels, by name."""
    problem = Displaced(mixture(modes=3, dim=4, stds=0.3))
    levels, keys = karras(problem.schedule, 6), sample_keys(0, 8)
    cond = problem.condition(sample_keys(1, 8))
    x = problem.prior(sample_keys(2, 8), levels[0], cond)
    return {"problem": problem, "levels": levels, "keys": keys, "cond": cond, "x": x}
