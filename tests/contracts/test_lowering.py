"""What runs here lowers for TPU and CUDA too: every problem and sampler, in both modes."""

import jax
from jax import export

from optdiff import sample as driver
from optdiff.grids import karras
from optdiff.sample import sample_keys, sample_scan, start
from optdiff.samplers import ancestral


def lowered(function, *arguments):
    """The size of the program for both platforms, in characters."""
    leaves, structure = jax.tree.flatten(arguments)

    def flat(*leaves):
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    exported = export.export(jax.jit(flat), platforms=["tpu", "cuda"])(*leaves)
    assert exported.platforms == ("tpu", "cuda")
    return len(exported.mlir_module())


def test_every_problem_lowers_with_its_weights_as_arguments(problem):
    keys, levels = sample_keys(0, 4), karras(problem.schedule, 4)
    cond = problem.condition(keys)
    x = start(problem, keys, levels[0], cond)

    # The network of host mode, and the program of scan mode with its prior and noise.
    assert lowered(driver._eps, problem, cond, x, levels[0]) < 1_000_000
    sampler = ancestral()

    def scan(problem, levels, keys, cond):
        return sample_scan(problem, sampler, levels, keys, cond=cond)

    assert lowered(scan, problem, levels, keys, cond) < 1_000_000


def test_every_sampler_lowers(sampler, setting):
    def scan(setting):
        problem, levels, keys = (setting[name] for name in ("problem", "levels", "keys"))
        return sample_scan(problem, sampler, levels, keys, cond=setting["cond"], x=setting["x"])

    assert lowered(scan, setting)
