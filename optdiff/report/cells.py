"""Rows into cells: what a table or a figure has to say about a problem, and how sure it is.

A *method* is a sampler with its parameters on a grid; a *cell* is a method at a budget, over seeds.
The seed is the unit of every statistic: samples of one seed share noise and judge, so they are no
independent repetitions. This file owns the grouping and the statistics, and draws nothing.
"""

import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from optdiff.results import Row

HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage")
RESAMPLES = 10_000


class Cell(NamedTuple):
    """A method at a budget: values by metric and seed, and the errors of the seeds that failed.

    `nfe` and `passes` are what a sample really cost on average, nan if no job was ok; `keys` name
    the artifacts of the ok jobs by seed.
    """

    sampler: str
    grid: str
    values: dict[str, dict[int, float]]
    errors: dict[int, str]
    nfe: float
    passes: float
    keys: dict[int, str]


class Board(NamedTuple):
    """All that is known about one problem. Methods stand in the order of their mean rank in the
    first metric, budgets ascend; `floor[metric][budget]` is the mean over rows that have one.
    """

    problem: str
    grids: list[str]
    samples: list[int]
    methods: list[str]
    budgets: list[int]
    seeds: list[int]
    metrics: list[str]
    cells: dict[tuple[str, int], Cell]
    floor: dict[str, dict[int, float]]


class Interval(NamedTuple):
    """A mean over seeds and its 95% bootstrap interval, which is None for a single seed."""

    mean: float
    low: float | None
    high: float | None


def boards(rows: Sequence[Row], primary: str | None = None) -> list[Board]:
    """Group rows into one board a problem, in the order of their appearance.

    Args:
      rows: rows as `optdiff.results.load` returns them, one a key.
      primary: the metric that comes first; by default the first that a row names.

    Raises:
      ValueError: if no row has the primary metric, naming those there are.
    """
    by_problem = defaultdict(list)
    for row in rows:
        by_problem[row["problem"]].append(row)
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    if primary is not None:
        if primary not in names:
            raise ValueError(f"no row has the metric {primary!r}; there are {', '.join(names)}")
        names = [primary] + [name for name in names if name != primary]
    return [_board(problem, group, names) for problem, group in by_problem.items()]


def higher_is_better(metric: str) -> bool:
    """Whether a metric counts what samples get right; all others are distances and errors."""
    return metric.startswith(HIGHER_IS_BETTER)


def interval(values: Float[np.ndarray, "seeds"]) -> Interval:
    """Percentile bootstrap of a mean with the seed as the unit (Efron and Tibshirani 1993, ch. 13).

    All n^n resamples for up to 5 seeds, 10,000 drawn with a fixed key beyond. With 2 or 3 seeds
    the interval is their range: no resample mean is rarer than 1/27.

    Args:
      values: one value a seed.

    Returns:
      The mean and the ends of the central 95%, None where one seed leaves nothing to say.

    >>> interval(np.array([1.0, 2.0, 3.0]))
    Interval(mean=2.0, low=1.0, high=3.0)
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None)
    means = values[_resamples(len(values))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    return Interval(mean, float(low), float(high))


def summary(cell: Cell, metric: str) -> Interval | None:
    """Mean and interval of a cell in a metric, None if no ok row has it."""
    values = cell.values.get(metric)
    return interval(np.array(list(values.values()))) if values else None


def marks(board: Board, metric: str, budget: int) -> dict[str, str]:
    """Who is "best" in a column, and whose difference to the best is a "tie".

    Differences are paired: taken seed by seed, on the seeds that both have, so the noise that
    samplers share cancels. A method ties unless the interval of its mean difference lies wholly on
    the worse side; with fewer than two common seeds nothing is claimed. A method that failed on a
    seed is not compared, for its mean over the others would flatter it.
    """
    sign = -1.0 if higher_is_better(metric) else 1.0
    loss = {}
    for method in board.methods:
        cell = board.cells.get((method, budget))
        if cell and not cell.errors and metric in cell.values:
            loss[method] = {seed: sign * v for seed, v in cell.values[metric].items()}
    if len(loss) < 2:
        return {}
    best = min(loss, key=lambda method: np.mean(list(loss[method].values())))
    found = {best: "best"}
    for method in loss.keys() - {best}:
        common = sorted(loss[method].keys() & loss[best].keys())
        worse = interval(np.array([loss[method][s] - loss[best][s] for s in common] or [np.nan]))
        if worse.low is not None and worse.low <= 0:
            found[method] = "tie"
    return found


@functools.cache
def _resamples(n: int) -> np.ndarray:
    """Indices (resamples, n) that draw n seeds with replacement."""
    if n <= 5:
        return np.array(list(itertools.product(range(n), repeat=n)))
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def _board(problem: str, rows: list[Row], names: list[str]) -> Board:
    """The board of a problem from its rows."""
    labels = _labels(rows)
    groups = defaultdict(list)
    for label, row in zip(labels, rows, strict=True):
        groups[label, row["nfe_asked"]].append(row)
    cells = {place: _cell(group) for place, group in groups.items()}
    budgets = sorted({row["nfe_asked"] for row in rows})
    metrics = [name for name in names if any(name in row["metrics"] for row in rows)]
    metrics = metrics or ["no metric"]  # all failed: the table still shows where
    methods = list(dict.fromkeys(labels))
    methods.sort(key=_mean_ranks(methods, budgets, cells, metrics[0]).__getitem__)
    return Board(
        problem=problem,
        grids=list(dict.fromkeys(row["grid"] for row in rows)),
        samples=sorted({row["samples"] for row in rows}),
        methods=methods,
        budgets=budgets,
        seeds=sorted({row["seed"] for row in rows}),
        metrics=metrics,
        cells=cells,
        floor={name: _floor(rows, name) for name in metrics},
    )


def _floor(rows: list[Row], metric: str) -> dict[int, float]:
    """By budget, the mean over rows of what a metric says of real samples against real ones."""
    known = defaultdict(list)
    for row in rows:
        if np.isfinite(value := row["floor"].get(metric, np.nan)):
            known[row["nfe_asked"]].append(value)
    return {budget: float(np.mean(values)) for budget, values in known.items()}


def _cell(rows: list[Row]) -> Cell:
    """The cell of the rows of one method at one budget."""
    ok = [row for row in rows if row["status"] == "ok"]
    values = defaultdict(dict)
    for row in ok:
        for name, value in row["metrics"].items():
            values[name][row["seed"]] = value
    return Cell(
        sampler=rows[0]["sampler"],
        grid=rows[0]["grid"],
        values=dict(values),
        errors={r["seed"]: r["error"] or "unknown error" for r in rows if r["status"] != "ok"},
        nfe=float(np.mean([row["nfe"] for row in ok])) if ok else np.nan,
        passes=float(np.mean([row["passes"] for row in ok])) if ok else np.nan,
        keys={row["seed"]: row["key"] for row in ok},
    )


def _mean_ranks(
    methods: list[str], budgets: list[int], cells: dict[tuple[str, int], Cell], metric: str
) -> dict[str, float]:
    """Mean over columns of a method's rank, from 0 (best) to 1, which is also for failures; 2 for a
    method that was nowhere tried.
    """
    sign = -1.0 if higher_is_better(metric) else 1.0
    ranks = defaultdict(list)
    for budget in budgets:
        found = {m: summary(cells[m, budget], metric) for m in methods if (m, budget) in cells}
        means = {m: sign * s.mean for m, s in found.items() if s is not None}
        for place, method in enumerate(sorted(means, key=means.__getitem__)):
            ranks[method].append(place / max(len(means) - 1, 1))
        for method in found.keys() - means.keys():
            ranks[method].append(1.0)
    return {method: float(np.mean(ranks.get(method, [2.0]))) for method in methods}


def _labels(rows: list[Row]) -> list[str]:
    """A method's name for each row of a problem: the sampler, what sets its configuration apart
    from others of that name, and the grid if there are several.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["sampler"], row["grid"]].append(row)
    apart = {name: _apart(group) for name, group in groups.items()}
    several_grids = len({row["grid"] for row in rows}) > 1
    labels = []
    for row in rows:
        leaves = dict(_leaves(row["config"]))
        label = row["sampler"]
        for path in apart[row["sampler"], row["grid"]]:
            label += f" {path.rpartition('.')[2]}={leaves.get(path, 'unset')}"
        labels.append(f"{label}, {row['grid']}" if several_grids else label)
    return labels


def _apart(rows: list[Row]) -> list[str]:
    """Paths in the configurations of rows of one name that tell apart those of the same budget and
    seed: two such rows are two methods, and must not pass for repetitions of one.
    """
    leaves = [dict(_leaves(row["config"])) for row in rows]
    seen = [(row["nfe_asked"], row["seed"]) for row in rows]
    paths = []
    for path in dict.fromkeys(path for leaf in leaves for path in leaf):
        if len(set(seen)) == len(rows):
            break
        finer = [(*place, leaf.get(path)) for place, leaf in zip(seen, leaves, strict=True)]
        if len(set(finer)) > len(set(seen)):
            paths, seen = [*paths, path], finer
    return paths


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of each leaf of a configuration; a list counts as one leaf."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _leaves(entry, f"{path}.{name}" if path else name)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
