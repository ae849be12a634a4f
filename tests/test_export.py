"""What production runs lowers for TPU and CUDA, beyond the contracts: float32, gradients through
the sampler, diagnostics, guidance and levels of each sample's own."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from optdiff.analysis.diagnostics import observe
from optdiff.grids import karras
from optdiff.problems import digits, energy, mixture
from optdiff.sample import _eps, sample_keys, sample_scan, start
from optdiff.samplers import ancestral, heun, renoise

PLATFORMS = ("tpu", "cuda")


@pytest.fixture(autouse=True)
def as_in_production():
    with jax.enable_x64(False):
        yield


def lower(function, *arguments):
    """Lower for both platforms; what weighs more than any program must have come as an argument."""
    # Leaves one by one: `export` rebuilds trees from descriptions of arrays, which the type checks
    # that run with the tests refuse in a problem.
    leaves, tree = jax.tree.flatten(arguments)
    flat = jax.jit(lambda *leaves: function(*tree.unflatten(leaves)))
    program = export.export(flat, platforms=PLATFORMS)(*leaves)
    assert program.platforms == PLATFORMS
    assert len(program.mlir_module_serialized) < 500_000, "weights were captured as constants"


@pytest.mark.parametrize("kind", ["guided", "energy"])
def test_scan_mode_with_noise_and_a_second_evaluation(kind):
    problem = digits(guidance=2.0) if kind == "guided" else energy(digits())
    keys, levels = sample_keys(0, 2), karras(problem.schedule, 4)
    sampler = renoise(heun(), lambda sigma, sigma_next: sigma_next / 2)

    def run(problem, keys, levels, cond):
        return sample_scan(problem, sampler, levels, keys, cond=cond, observe=observe)[0]

    lower(run, problem, keys, levels, problem.condition(keys))


def test_gradients_through_the_sampler():
    problem = mixture(dim=4, modes=3)
    keys, levels, sampler = sample_keys(0, 2), karras(problem.schedule, 4), ancestral()

    def loss(levels, problem, keys):
        return sample_scan(problem, sampler, levels, keys)[0].sum()

    lower(jax.grad(loss), levels, problem, keys)


def test_host_modes_denoiser_with_levels_of_each_sample():
    problem = digits(guidance=2.0)
    keys, levels = sample_keys(0, 2), karras(problem.schedule, 2)
    cond = problem.condition(keys)
    x = jax.eval_shape(start, problem, keys, levels, cond)
    lower(_eps, problem, cond, jnp.zeros(x.shape, x.dtype), levels)


def test_captured_weights_would_be_noticed():
    problem = digits()
    with pytest.raises(AssertionError, match="captured as constants"):
        lower(lambda x: _eps(problem, None, x, jnp.float32(1.0)), jnp.zeros((2, 28, 28)))
