"""Every driver mode and problem lowers for TPU and CUDA, on a machine that has neither."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

from optdiff.analysis.diagnostics import observe
from optdiff.grids import karras
from optdiff.problems import digits, energy, gaussian, mixture
from optdiff.sample import _eps, sample_keys, sample_scan, start
from optdiff.samplers import ancestral, ddim, from_transformation, heun, ipndm

PLATFORMS = ("tpu", "cuda")
PROBLEMS = {
    "gaussian": gaussian,
    "mixture": mixture,
    "digits": digits,
    "digits_guided": lambda: digits(guidance=2.0),
    "energy": lambda: energy(digits()),
}
SAMPLERS = {
    "ddim": ddim,
    "heun": heun,  # evaluates again within a step
    "ancestral": ancestral,  # draws noise
    "ipndm": ipndm,  # carries gradients
    "per_sample": lambda: from_transformation(optax.clip_by_global_norm(1.0)),  # is vmapped
}


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


def ask(problem):
    keys, levels = sample_keys(0, 2), karras(problem.schedule, 4)
    return keys, levels, problem.condition(keys)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
def test_scan_mode_lowers_for_every_problem(problem, sampler):
    problem = PROBLEMS[problem]()
    keys, levels, cond = ask(problem)

    def run(problem, keys, levels, cond):
        return sample_scan(problem, SAMPLERS[sampler](), levels, keys, cond=cond)

    lower(run, problem, keys, levels, cond)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scan_mode_lowers_for_every_kind_of_sampler(sampler):
    problem = mixture(dim=4, modes=3)
    keys, levels, _ = ask(problem)
    lower(
        lambda problem, keys, levels: sample_scan(
            problem, SAMPLERS[sampler](), levels, keys, observe=observe
        ),
        problem,
        keys,
        levels,
    )


def test_gradients_through_the_sampler_lower():
    problem = mixture(dim=4, modes=3)
    keys, levels, _ = ask(problem)

    def loss(levels, problem, keys):
        return sample_scan(problem, ddim(), levels, keys)[0].sum()

    lower(jax.grad(loss), levels, problem, keys)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_host_modes_denoiser_lowers_for_every_problem(problem):
    problem = PROBLEMS[problem]()
    keys, levels, cond = ask(problem)
    x = start(problem, keys, levels[0], cond)
    lower(_eps, problem, cond, x, levels[0])
    lower(_eps, problem, cond, x, jnp.full(2, levels[0]))
