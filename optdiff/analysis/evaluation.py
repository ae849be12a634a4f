"""Evaluate a sampler: draw samples, compare them with what all samplers of a comparison share.

A comparison shares its noise, conditions, reference set, exact solutions and floor: one `Setting`,
made once. What is measured of samples is `measuring`'s, what a job writes down `results`' business.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from optdiff.analysis.measuring import Measured, Metrics, attribute, check, comparing, score, wants
from optdiff.keys import FLOOR, REFERENCE, fold_in
from optdiff.sample import Trace, sample, sample_keys, start
from optdiff.types import Cond, Grid, Levels, Problem, Sampler, Samples


class Setting(NamedTuple):
    """What the samplers of a comparison have in common: everything but the samples.

    `exact` is where each sample's own noise leads along the exact path, in the coordinates of x0,
    and `exact_images` what that decodes to; `cond` is what each sample is asked to be, `words` the
    same as one would type it, None where the problem cannot say; `reference` are decoded good
    samples, None where no metric asks for them; `floor` holds the metrics of real samples against
    them, and `refused` why some metrics have none: they will refuse as many drawn samples, too.
    """

    exact: Samples
    exact_images: Samples
    cond: Cond
    words: list[str] | None
    reference: Samples | None
    floor: dict[str, float]
    refused: dict[str, str]


class Solver(NamedTuple):
    """The fine sampler whose solution counts as exact where no closed form is known."""

    sampler: Sampler
    grid: Grid
    levels: int


def setting(
    problem: Problem,
    metrics: Metrics,
    *,
    sigma: float,
    seed: int,
    samples: int,
    batch: int,
    solver: Solver,
    remember: Callable[[Callable[[], Any]], Any] = lambda compute: compute(),
) -> Setting:
    """Make the setting of a comparison.

    Args:
      problem: the problem; one with a `solution` method needs no solver.
      metrics: those that compare samples with a reference, or with what they were asked to be, are
        measured on real samples too, if the problem has a `target`.
      sigma: the level at which sampling starts.
      seed, samples: the noise: sample i starts from key (seed, i).
      batch: samples at a time.
      solver: makes the exact solutions.
      remember: called with the function that computes the exact solutions, to cache them.

    Raises:
      TypeError: if a metric asks for what neither `Measured` nor the problem has.
    """
    check(metrics, problem)
    keys = sample_keys(seed, samples)
    cond = problem.condition(keys)
    wanted = any("reference" in wants(metric) for metric in metrics.values())
    reference = problem.reference(fold_in(keys, REFERENCE), cond) if wanted else None
    floor, refused = {}, {}
    if (target := attribute(problem, "target")) is not None:
        good = Measured(problem, target(fold_in(keys, FLOOR), cond), reference, cond)
        floor, _, refused = score(comparing(metrics), good)
    exact = jnp.asarray(
        remember(lambda: _exact(problem, sigma, seed, samples, batch, solver)), float
    )
    words = attribute(problem, "words")
    asked = None if words is None else words(cond)
    images = problem.decode(exact)
    return Setting(exact, images, cond, asked, reference, floor, refused)


def draw(
    problem: Problem,
    sampler: Sampler,
    levels: Levels,
    *,
    seed: int,
    samples: int,
    batch: int,
    **options: Any,
) -> tuple[Samples, Trace]:
    """Draw the first samples of a seed, `batch` at a time; the trace is the first batch's, but for
    the evaluations and who finished, which are everyone's (of `batch_nfe`, the mean).
    `options` are those of `sample` (observe, clock).

    Every batch has the same shape, so that the network is compiled once: the last is drawn whole
    and cut.
    """
    batch, x0s, traces = min(batch, samples), [], []
    for first in range(0, samples, batch):
        keys = sample_keys(seed, batch, first)
        cond = problem.condition(keys)
        x0, trace = sample(problem, sampler, levels, keys, cond=cond, **options)
        x0s.append(x0)
        traces.append(trace)
    nfe, finished = (
        jnp.concatenate([getattr(trace, name) for trace in traces])[:samples]
        for name in ("nfe", "finished")
    )
    batch_nfe = jnp.repeat(jnp.stack([trace.batch_nfe for trace in traces]), batch)[:samples]
    whole = {"nfe": nfe, "finished": finished, "batch_nfe": jnp.mean(batch_nfe)}
    return jnp.concatenate(x0s)[:samples], traces[0]._replace(**whole)


def _exact(problem, sigma, seed, samples, batch, solver) -> Samples:
    if hasattr(problem, "solution"):
        keys = sample_keys(seed, samples)
        level = jnp.asarray(sigma, float)
        x = start(problem, keys, level, problem.condition(keys))
        return problem.solution(x, level, jnp.zeros(()))
    levels = solver.grid(problem.schedule._replace(sigma_max=float(sigma)), solver.levels)
    x0, _ = draw(problem, solver.sampler, levels, seed=seed, samples=samples, batch=batch)
    return x0
