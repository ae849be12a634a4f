"""Measure samples: call each metric with what it asks for, and see how sure its value is.

Metrics are pure functions that are passed in. This file owns what they may ask for, who is left out
to see how much a value depends on it, and what becomes of a metric that refuses.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from optdiff.types import Clock, Cond, Levels, Problem, Sampler, Samples

GROUPS = 8
"""Groups of samples that are left out in turn, to see how much a metric depends on the draw."""

Metrics = Mapping[str, Callable[..., Any]]
"""Metrics by column name: functions whose parameters are fields of `Measured`, or what the problem
lists in its `instruments`."""


class Measured(NamedTuple):
    """What is known of a job when it is measured; a metric's parameters name what it wants of it.

    Everything but `problem`, `sampler`, `levels` and `clock` is by sample, in one order, so that
    sample i, its condition and its reference image are drawn by key i.
    """

    problem: Problem
    samples: Samples  # decoded
    reference: Samples | None = None  # decoded good samples of the same conditions
    cond: Cond = None  # what each was asked to be
    exact: Samples | None = None  # decoded, where each one's own noise should have led
    x0: Samples | None = None  # what the sampler returned, before decoding
    x0_exact: Samples | None = None
    sampler: Sampler | None = None
    levels: Levels | None = None
    clock: Clock | None = None


class Scores(NamedTuple):
    """What metrics say of a job.

    `spread` holds, by metric, by how much each group of samples pulls it from its value (see
    `spread_of`); it is absent where leaving samples out says nothing or leaves too few. `refused`
    holds, by metric, why it has no value.
    """

    values: dict[str, float]
    spread: dict[str, list[float]]
    refused: dict[str, str]


def measure(metrics: Metrics, measured: Measured) -> Scores:
    """What each metric says of the samples, and how much that depends on which were drawn.

    A metric is called with what its parameters name: fields of `Measured`, or attributes that the
    problem (or the one that guidance wraps) lists in `instruments`. A parameter with a default
    keeps it, unless that is None and the field is known. A metric that returns several values
    contributes each under its own name, one that returns None (it does not apply to this sampler)
    nothing; one that raises ValueError is `refused`, and the others go on.

    Raises:
      FloatingPointError: if some samples are not finite: what metrics say of the others would
        flatter the sampler.
      TypeError: if a metric asks for what neither `Measured` nor the problem has.
      ValueError: if every metric refused.

    >>> import jax.numpy as jnp
    >>> from optdiff.problems import gaussian
    >>> drawn = Measured(gaussian(mean=[1.0, 2.0]), jnp.ones((1, 2)))
    >>> measure({"shift": lambda samples, mean: float(samples[0, 0] - mean[0])}, drawn).values
    {'shift': 0.0}
    """
    check(metrics, measured.problem)
    _check_finite(measured)
    readings = Readings(measured)
    scores = score(metrics, measured, readings)
    if scores.refused and not scores.values:
        raise ValueError("; ".join(f"{name}: {why}" for name, why in scores.refused.items()))
    drawn = {name: m for name, m in metrics.items() if {"samples", "x0"} & wants(m).keys()}
    return scores._replace(spread=spread_of(drawn, readings))


class Readings:
    """What the instruments of a problem say of all samples and of all the reference, asked once:
    of a part of them the answers are looked up."""

    def __init__(self, whole: Measured):
        self.whole = whole
        self.answers: dict[tuple[str, str], Any] = {}

    def instrument(self, name: str, part: Measured, keep: Any) -> Any:
        """An instrument for a part, the rows `keep` of the whole. What is no function, and what is
        asked about anything but the part's samples or reference, goes its own way."""
        tool = _instrument(part.problem, name)
        if not callable(tool):
            return tool

        def ask(images: Any, *about: Any) -> Any:
            for field in ("samples", "reference"):
                if images is getattr(part, field) and all(one is part.cond for one in about):
                    if (name, field) not in self.answers:
                        whole = getattr(self.whole, field), *(self.whole.cond for _ in about)
                        self.answers[name, field] = tool(*whole)
                    answer = self.answers[name, field]
                    return jax.tree.map(lambda leaf: np.asarray(leaf)[keep], answer)
            return tool(images, *about)

        return ask


def spread_of(metrics: Metrics, readings: Readings) -> dict[str, list[float]]:
    """By metric, by how much each group of samples pulls its value: a jackknife over groups.

    Samples i, i + G, i + 2G, ... are group i of G. With group g of n_g samples left out (their
    conditions and their part of the reference go with them) a metric has the value v_g. Returned
    are `d_g = sqrt((n / n_g - 1) (G - 1)) (mean(v) - v_g)`, in such units that
    `sum d^2 / (G (G - 1))` estimates the variance of the metric over draws of n samples (Busing et
    al. 1999, "Delete-m jackknife for unequal m", eq. 12). For the mean of n values, with groups of
    one size, d_g is the group's mean less the mean of all.
    """
    whole = readings.whole
    n = len(whole.samples)
    groups = min(GROUPS, n)
    if groups < 2:
        return {}
    arrays = jax.tree.map(np.asarray, whole[1:7])  # those by sample
    left = []
    for group in range(groups):
        keep = np.arange(n) % groups != group
        taken = jax.tree.map(lambda leaf, keep=keep: leaf[keep] if len(leaf) == n else leaf, arrays)
        part = Measured(whole.problem, *taken, *whole[7:])
        left.append(score(metrics, part, readings, keep).values)
    scale = np.sqrt((n / np.bincount(np.arange(n) % groups) - 1) * (groups - 1))
    spread = {}
    for name in set.intersection(*map(set, left)):
        without = np.array([values[name] for values in left])
        pulls = scale * (without.mean() - without)
        spread[name] = [float(f"{pull:.5g}") for pull in pulls]
    return {name: spread[name] for name in left[0] if name in spread}


def score(
    metrics: Metrics, part: Measured, readings: Readings | None = None, keep: Any = slice(None)
) -> Scores:
    """Values and refusals of metrics, of the whole or of a part of it, its rows `keep`."""
    readings = readings or Readings(part)
    values: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, metric in metrics.items():
        arguments = {}
        for parameter, optional in wants(metric).items():
            if parameter not in Measured._fields:
                arguments[parameter] = readings.instrument(parameter, part, keep)
            elif not optional or getattr(part, parameter) is not None:
                arguments[parameter] = getattr(part, parameter)
        try:
            value = metric(**arguments)
        except ValueError as error:
            refused[name] = f"{error} (~metrics.{name} leaves it out)"
            continue
        if isinstance(value, Mapping):
            values |= {key: float(number) for key, number in value.items()}
        elif value is not None:
            values[name] = float(value)
    return Scores(values, {}, refused)


def check(metrics: Metrics, problem: Problem) -> None:
    """Refuse metrics that ask for what nobody has, before anything is drawn."""
    for name, metric in metrics.items():
        for parameter in wants(metric).keys() - set(Measured._fields):
            if _instrument(problem, parameter) is None:
                raise TypeError(
                    f"metric {name!r} asks for {parameter!r}, which is not among the instruments "
                    f"of {type(problem).__name__}; choose other metrics for this problem"
                )


def _check_finite(measured: Measured) -> None:
    """Refuse samples that are not numbers."""
    for drawn in (measured.x0, measured.samples):
        if drawn is None:
            continue
        finite = np.isfinite(np.asarray(drawn).astype(np.float64))
        broken = ~finite.reshape(len(finite), -1).all(axis=1)
        if broken.any():
            raise FloatingPointError(
                f"{broken.sum()} of {len(broken)} samples are not finite (the first at index "
                f"{broken.argmax()})"
            )


def attribute(problem: Any, name: str) -> Any:
    """What a problem, or else the problem that it wraps, has by this name; None if neither."""
    while problem is not None and not hasattr(problem, name):
        problem = getattr(problem, "problem", None)
    return getattr(problem, name, None)


def _instrument(problem: Problem, name: str) -> Any:
    """What a problem, or the one that it wraps, lists by this name in `instruments`; else None."""
    listed = attribute(problem, "instruments") or ()
    return attribute(problem, name) if name in listed else None


def comparing(metrics: Metrics) -> Metrics:
    """Those that can judge samples that no sampler made, by a reference or by what was asked."""
    paths = {"exact", "x0", "x0_exact", "sampler", "levels", "clock"}

    def can(metric: Callable[..., Any]) -> bool:
        needed = {name for name, optional in wants(metric).items() if not optional}
        return "samples" in needed and bool({"reference", "cond"} & needed) and not paths & needed

    return {name: metric for name, metric in metrics.items() if can(metric)}


def wants(metric: Callable[..., Any]) -> dict[str, bool]:
    """The parameters that a metric wants filled in, those without a default or with None for one,
    and whether it can do without."""
    parameters = inspect.signature(metric).parameters.values()
    return {
        p.name: p.default is None
        for p in parameters
        if (p.default is p.empty and p.kind is not p.VAR_KEYWORD)
        or (p.default is None and p.name in Measured._fields)
    }
