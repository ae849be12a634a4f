"""What the contracts are held against: every yaml, and a small conditional network.

The lists are read from `conf`, so a new yaml is under contract as soon as it is there.
"""

from dataclasses import dataclass
from functools import partial

import hydra
import jax
import jax.numpy as jnp
import pytest
from omegaconf import OmegaConf
from yamls import CONF, composed

from optdiff.grids import karras
from optdiff.noise import variance_exploding
from optdiff.sample import sample_keys
from optdiff.types import NoiseSchedule, expand


@partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=["schedule"])
@dataclass(frozen=True)
class Network:
    """One layer, around a place that each sample's condition, (b, d), says; quick to compile."""

    weights: jax.Array
    schedule: NoiseSchedule

    def condition(self, keys):
        return 3.0 * jax.vmap(lambda key: jax.random.normal(key, self.weights.shape[:1]))(keys)

    def prior(self, keys, sigma, cond):
        return cond + sigma * self.condition(keys) / 3.0

    def denoise(self, x, sigma, cond):
        hidden = (x - cond) @ self.weights / (1.0 + expand(sigma, x))
        return (cond + jnp.tanh(hidden)).astype(x.dtype)

    def decode(self, x0):
        return x0

    def reference(self, keys, cond):
        return self.prior(keys, jnp.ones(()), cond)


@pytest.fixture(scope="session")
def setting():
    """Arguments of `sample` for eight conditional samples on six levels, by name."""
    weights = jax.random.normal(jax.random.key(0), (4, 4))
    problem = Network(weights, variance_exploding(0.05, 80.0))
    levels, keys = karras(problem.schedule, 6), sample_keys(0, 8)
    cond = problem.condition(sample_keys(1, 8))
    x = problem.prior(sample_keys(2, 8), levels[0], cond)
    return {"problem": problem, "levels": levels, "keys": keys, "cond": cond, "x": x}


SAMPLERS, PROBLEMS = composed("sampler"), composed("problem")
PROBLEMS["guided digits"] = OmegaConf.merge(PROBLEMS["digits"], {"guidance": 2.0})


@pytest.fixture(scope="session")
def samplers():
    assert len(SAMPLERS) == len(list(CONF.glob("sampler/*.yaml"))), "none is left out"
    return {name: hydra.utils.instantiate(config) for name, config in SAMPLERS.items()}


def _by_name_alone(config):
    """Whether a yaml has no code of ours but the wrapping, which others put under contract."""
    return config["_target_"] in (
        "optdiff.samplers.from_transformation",
        "optdiff.samplers.from_optimizer",
    )


QUICK = {"adam", "optimizer", "transformation", "muon", "schedule_free"}  # of those, a few
ALIASES = {"euler", "euler_ancestral", "ddpm", "ipndm_v", "deis_rho"}  # others by their yamls
NAMES = [
    pytest.param(name, marks=pytest.mark.slow)
    if name in ALIASES or (_by_name_alone(config) and name not in QUICK)
    else name
    for name, config in SAMPLERS.items()
]


@pytest.fixture(scope="module", params=NAMES)
def sampler(request, samplers):
    return samplers[request.param]


@pytest.fixture(scope="module")
def sampler_in_float32(sampler, samplers):
    """The same yaml, made without float64."""
    name = next(name for name, one in samplers.items() if one is sampler)
    with jax.enable_x64(False):
        return hydra.utils.instantiate(SAMPLERS[name])


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    """In float32, as in production."""
    with jax.enable_x64(False):
        return hydra.utils.instantiate(PROBLEMS[request.param])
