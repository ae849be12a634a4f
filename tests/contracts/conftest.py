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


def instantiate(group, name, *overrides):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(overrides=[f"+{group}={name}", *overrides])
    return hydra.utils.instantiate(config[group])


def names(group):
    return sorted(path.stem for path in CONF.glob(f"{group}/*.yaml"))


@pytest.fixture(scope="session")
def samplers():
    return {name: instantiate("sampler", name) for name in names("sampler")}


@pytest.fixture(scope="module", params=names("sampler"))
def sampler(request, samplers):
    return samplers[request.param]


@pytest.fixture(scope="module", params=[*names("problem"), "digits problem.guidance=2.0"])
def problem(request):
    return instantiate("problem", *request.param.split())


@pytest.fixture(scope="session")
def setting():
    """Arguments of `sample` for eight conditional samples on six levels, by name."""
    problem = Displaced(mixture(modes=3, dim=4, stds=0.3))
    levels, keys = karras(problem.schedule, 6), sample_keys(0, 8)
    cond = problem.condition(sample_keys(1, 8))
    x = problem.prior(sample_keys(2, 8), levels[0], cond)
    return {"problem": problem, "levels": levels, "keys": keys, "cond": cond, "x": x}
