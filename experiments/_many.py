"""`benchmark.py many`: linear samplers as one program, against as many host-mode jobs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _build import build

from optdiff.analysis.coefficients import coefficients
from optdiff.analysis.many import evaluate_many
from optdiff.grids import karras
from optdiff.sample import sample, sample_keys
from optdiff.samplers import linear


def many(config: dict[str, Any]) -> None:
    """Print the time of both ways on each problem, compilation included and without."""
    for case in config["cases"]:
        problem = build(case["problem"])
        parameters, levels, counts = family(config, problem.schedule)
        keys = sample_keys(0, case["samples"])

        def together():
            return evaluate_many(problem, make, parameters, levels, keys, counts=counts)  # noqa: B023

        def apart():
            for j, count in enumerate(counts):  # noqa: B023
                matrix = parameters[0][j, :count, : count - 1], parameters[1][j, :count]  # noqa: B023
                x0, _ = sample(problem, linear(*matrix), jnp.asarray(levels[j, :count]), keys)  # noqa: B023
            return x0

        cold = [(anew(together), anew(apart)) for _ in range(config["repeats"])]
        seconds(together)  # compile it again, as the jobs just were
        warm = [(seconds(together), seconds(apart)) for _ in range(config["repeats"])]
        print(
            f"{case['name']}, {len(counts)} samplers, {case['samples']} samples each, medians: "
            f"with compiling {compared(cold)}; then {compared(warm)}",
            flush=True,
        )


def make(parameters: Any) -> Any:
    """A sampler of one entry."""
    return linear(*parameters)


def family(config: dict[str, Any], schedule: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Matrices of `config["samplers"]` on Karras grids of all lengths, padded to the longest."""
    lengths = config["levels"]
    samplers = [build(sampler) for sampler in config["samplers"]]
    jobs = [(sampler, n) for n in lengths for sampler in samplers][: config["count"]]
    n, k = max(lengths), len(jobs)
    levels, points = np.ones((k, n), np.float32), np.ones((k, n), np.float32)
    gradients = np.zeros((k, n, n - 1), np.float32)
    for j, (sampler, count) in enumerate(jobs):
        levels[j, :count] = karras(schedule, count)
        with jax.enable_x64(True):
            matrices = coefficients(sampler, jnp.asarray(levels[j, :count], float))
        gradients[j, :count, : count - 1], points[j, :count] = matrices.gradients, matrices.points
    return (gradients, points), levels, np.array([count for _, count in jobs])


def compared(times: list[tuple[float, float]]) -> str:
    """Seconds of both ways and how often the first fits into the second, in words."""
    one, jobs = np.median(times, axis=0)
    ratio = np.median([b / a for a, b in times])
    return f"one program {one:.2f} s, jobs {jobs:.2f} s: x {ratio:.1f}"


def anew(work: Callable[[], Any]) -> float:
    """Wall time with nothing compiled yet."""
    jax.clear_caches()
    return seconds(work)


def seconds(work: Callable[[], Any]) -> float:
    """Wall time until the work is done."""
    began = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - began
