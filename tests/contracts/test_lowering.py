"""What runs here lowers for TPU and CUDA too: every problem and sampler, in both modes, and what
production adds: float32, gradients through the sampler, diagnostics, levels of each sample's own.

Stable Diffusion, which needs a folder, is lowered with its own tests.
"""

import jax
import jax.numpy as jnp
import pytest

from optdiff.analysis.diagnostics import observe
from optdiff.grids import karras
from optdiff.problems import digits, mixture
from optdiff.sample import eps_at, sample_keys, sample_scan, start
from optdiff.samplers import ancestral, heun, renoise


@pytest.fixture
def as_in_production():
    with jax.enable_x64(False):
        yield


def test_every_problem_lowers_with_its_weights_as_arguments(problem, lower, as_in_production):
    keys, levels = sample_keys(0, 4), karras(problem.schedule, 4)
    cond = problem.condition(keys)
    sampler = renoise(heun(), lambda sigma, sigma_next: sigma_next / 2)

    def scan(problem, keys, levels, cond):
        return sample_scan(problem, sampler, levels, keys, cond=cond, observe=observe)[0]

    lower(scan, problem, keys, levels, cond)
    x = jax.eval_shape(start, problem, keys, levels, cond)
    lower(eps_at, problem, cond, jnp.zeros(x.shape, x.dtype), levels)


def test_every_sampler_lowers(sampler, setting, lower):
    def scan(setting):
        problem, levels, keys = (setting[name] for name in ("problem", "levels", "keys"))
        return sample_scan(problem, sampler, levels, keys, cond=setting["cond"], x=setting["x"])

    lower(scan, setting)


def test_gradients_through_the_sampler_lower(lower, as_in_production):
    problem = mixture(dim=4, modes=3)
    keys, levels, sampler = sample_keys(0, 2), karras(problem.schedule, 4), ancestral()

    def loss(levels, problem, keys):
        return sample_scan(problem, sampler, levels, keys)[0].sum()

    lower(jax.grad(loss), levels, problem, keys)


def test_captured_weights_would_be_noticed(lower, as_in_production):
    problem = digits()
    with pytest.raises(AssertionError, match="captured as constants"):
        lower(lambda x: eps_at(problem, None, x, jnp.float32(1.0)), jnp.zeros((2, 28, 28)))
