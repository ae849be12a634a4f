"""Evaluate a sampler: draw samples, compare them with what all samplers of a comparison share.

A comparison shares its noise, conditions, reference set, exact solutions and floor: one `Setting`,
made once. What is measured is passed in as metrics; what a job writes down is `results`' business.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optdiff.sample import Trace, sample, sample_keys, start
from optdiff.types import Cond, Grid, Levels, Problem, Sampler, Samples

Metrics = Mapping[str, Callable[..., Any]]
"""Metrics by column name. Each is called by parameter name with what it asks for, see `measure`."""


class Setting(NamedTuple):
    """What the samplers of a comparison have in common: everything but the samples.

    `exact` is where each sample's own noise leads along the exact path, in the coordinates of x0,
    and `exact_images` what that decodes to; `cond` is what each sample is asked to be, `words` the
    same as one would type it, None where the problem cannot say; `reference` are decoded good
    samples, None where no metric asks for them; `floor` holds the metrics of real samples against
    them.
    """

    exact: Samples
    exact_images: Samples
    cond: Cond
    words: list[str] | None
    reference: Samples | None
    floor: dict[str, float]


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
    """
    keys = sample_keys(seed, samples)
    cond = problem.condition(keys)
    exact = jnp.asarray(
        remember(lambda: _exact(problem, sigma, seed, samples, batch, solver)), float
    )
    wanted = any("reference" in _asks(metric) for metric in metrics.values())
    reference = problem.reference(_tagged(keys, "reference"), cond) if wanted else None
    floor = {}
    target = _attribute(problem, "target")
    if target is not None:
        real = target(_tagged(keys, "floor"), cond)
        given = {"samples": real, "reference": reference, "cond": cond}
        comparing = {n: m for n, m in metrics.items() if _compares(m)}
        floor = measure(comparing, problem, **given)
    words = _attribute(problem, "words")
    said = None if words is None else words(cond)
    return Setting(exact, problem.decode(exact), cond, said, reference, floor)


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
    the evaluations, which are everyone's. `options` are those of `sample` (observe, clock).

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
    nfe = jnp.concatenate([trace.nfe for trace in traces])[:samples]
    return jnp.concatenate(x0s)[:samples], traces[0]._replace(nfe=nfe)


def measure(metrics: Metrics, problem: Problem, **given: Any) -> dict[str, float]:
    """Call each metric with what its parameters name: `samples`, `reference`, `exact`, `sampler`,
    `levels`, `clock` and whatever else is given, or an attribute of the problem (`means`, ...) or
    of the one that guidance wraps. Parameters with a default keep it, but for a `clock` that is
    given.

    Returns:
      A flat dict: a metric that returns several values contributes each under its own name, one
      that returns None (it does not apply to this sampler) nothing.

    Raises:
      TypeError: if a metric asks for something that neither the job nor the problem has.

    >>> from optdiff.problems import gaussian
    >>> measure({"shift": lambda samples, mean: float(samples[0, 0] - mean[0])},
    ...         gaussian(mean=[1.0, 2.0]), samples=jnp.ones((1, 2)))
    {'shift': 0.0}
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        optional = {"clock"} & given.keys() & inspect.signature(metric).parameters.keys()
        arguments = {parameter: given[parameter] for parameter in optional}
        for parameter in _asks(metric):
            if parameter == "problem":
                arguments[parameter] = problem
            elif parameter in given:
                arguments[parameter] = given[parameter]
            elif (found := _attribute(problem, parameter)) is not None:
                arguments[parameter] = found
            else:
                raise TypeError(
                    f"metric {name!r} asks for {parameter!r}, which {type(problem).__name__} does "
                    "not have; choose other metrics for this problem"
                )
        try:
            value = metric(**arguments)
        except ValueError as error:
            raise ValueError(f"metric {name!r}: {error} (~metrics.{name} leaves it out)") from error
        if isinstance(value, Mapping):
            values.update({key: float(v) for key, v in value.items()})
        elif value is not None:
            values[name] = float(value)
    return values


def _exact(problem, sigma, seed, samples, batch, solver) -> Samples:
    if hasattr(problem, "solution"):
        keys = sample_keys(seed, samples)
        level = jnp.asarray(sigma, float)
        x = start(problem, keys, level, problem.condition(keys))
        return problem.solution(x, level, jnp.zeros(()))
    levels = solver.grid(problem.schedule._replace(sigma_max=float(sigma)), solver.levels)
    x0, _ = draw(problem, solver.sampler, levels, seed=seed, samples=samples, batch=batch)
    return x0


def _attribute(problem: Any, name: str) -> Any:
    """What a problem, or else the problem that it wraps, has by this name; None if neither."""
    while problem is not None and not hasattr(problem, name):
        problem = getattr(problem, "problem", None)
    return getattr(problem, name, None)


def _compares(metric: Callable[..., Any]) -> bool:
    """Whether a metric can judge samples that no sampler made."""
    return "samples" in _asks(metric) and bool({"reference", "cond"} & _asks(metric))


def _asks(metric: Callable[..., Any]) -> set[str]:
    """The parameters a metric wants filled in: those without a default or a bound value."""
    parameters = inspect.signature(metric).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}


_TAGS = {"reference": 2**31 - 1, "floor": 2**31 - 2}  # never a step's index
_fold_in = jax.jit(jax.vmap(jax.random.fold_in, (0, None)))


def _tagged(keys, purpose):
    return _fold_in(keys, _TAGS[purpose])
