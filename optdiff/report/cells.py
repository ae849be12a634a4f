"""Rows into cells: what a table or a figure has to say about a problem, and how sure it is.

A *method* is all of a configuration but what `NO_METHOD` lists; a *cell* is a method at a budget,
over seeds. The seed is the unit of every statistic: samples of one seed share noise and judge, so
they are no independent repetitions. This file owns the cells and their statistics; the names of
methods are in `methods`, and nothing is drawn here.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from optdiff.report.methods import jobs
from optdiff.report.reading import higher_is_better
from optdiff.results import Row

RESAMPLES = 10_000


class Cell(NamedTuple):
    """A method at a budget: values by metric and seed, and the errors of the seeds that failed.

    `nfe` and `passes` are what a sample really cost on average, nan if no job was ok; `unfinished`
    is the share of samples that ran out of evaluations before the last level; `keys` name
    the artifacts of the ok jobs by seed, `floor` has by metric what real samples score.
    """

    sampler: str
    grid: str
    values: dict[str, dict[int, float]]
    errors: dict[int, str]
    nfe: float
    passes: float
    unfinished: float
    keys: dict[int, str]
    floor: dict[str, float]


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
      rows: rows as `optdiff.results.load` returns them, one for each job and name.
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

    Where it is known what real samples score, the best is the closest to that (`_losses`).
    Differences are paired: taken seed by seed, so the noise that samplers share cancels. A method
    ties unless the interval of its mean difference lies wholly on the worse side; one seed decides
    nothing. A method that lacks a seed, failed or never run, is not compared, for its mean over the
    others might flatter it.
    """
    losses, gaps = {}, {}
    for method in board.methods:
        cell = board.cells.get((method, budget))
        if cell and cell.values.get(metric, {}).keys() == set(board.seeds):
            found = _losses(cell, metric)
            losses[method] = np.array([found[seed] for seed in board.seeds])
            gaps[method] = abs(summary(cell, metric).mean - cell.floor.get(metric, np.nan))
    if len(losses) < 2:
        return {}
    best = min(losses, key=lambda method: (losses[method].mean(), gaps[method]))
    found = {best: "best"}
    for method in losses.keys() - {best}:
        worse = interval(losses[method] - losses[best])
        if worse.low is not None and worse.low <= 0:
            found[method] = "tie"
    return found


def _losses(cell: Cell, metric: str) -> dict[int, float]:
    """By seed, what is to be small: a distance, or a share with its sign changed.

    Where the floor is known, what beats it is not better than real samples are. A distance then
    counts from the floor, and not at all if its mean is below. A share counts by how far its mean
    is from the floor on either side: blurred samples, all near the middle of the real ones, have
    more precision, density and coverage than real samples have.
    """
    values, floor = cell.values[metric], cell.floor.get(metric)
    if floor is None:
        sign = -1.0 if higher_is_better(metric) else 1.0
        return {seed: sign * value for seed, value in values.items()}
    side = np.sign(np.mean(list(values.values())) - floor)
    if not higher_is_better(metric):
        side = max(side, 0.0)
    return {seed: float(side * (value - floor)) for seed, value in values.items()}


@functools.cache
def _resamples(n: int) -> np.ndarray:
    """Indices (resamples, n) that draw n seeds with replacement."""
    if n <= 5:
        return np.array(list(itertools.product(range(n), repeat=n)))
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def _board(problem: str, rows: list[Row], names: list[str]) -> Board:
    """The board of a problem from its rows."""
    found = jobs(rows)
    rows = [row for _, row in found]
    groups = defaultdict(list)
    for method, row in found:
        groups[method, row["nfe_asked"]].append(row)
    budgets = sorted({row["nfe_asked"] for row in rows})
    metrics = [name for name in names if any(name in row["metrics"] for row in rows)]
    metrics = metrics or ["no metric"]  # all failed: the table still shows where
    floor = {name: _floor(rows, name) for name in metrics}
    cells = {(method, b): _cell(group, floor, b) for (method, b), group in groups.items()}
    methods = list(dict.fromkeys(method for method, _ in found))
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
        floor=floor,
    )


def _floor(rows: list[Row], metric: str) -> dict[int, float]:
    """By budget, the mean over rows of what a metric says of real samples against real ones."""
    known = defaultdict(list)
    for row in rows:
        if np.isfinite(value := row["floor"].get(metric, np.nan)):
            known[row["nfe_asked"]].append(value)
    return {budget: float(np.mean(values)) for budget, values in known.items()}


def _cell(rows: list[Row], floor: dict[str, dict[int, float]], budget: int) -> Cell:
    """The cell of the rows of one method at one budget. Its floor is that of its own rows, which
    depends on their number of samples; where they have none, that of others at this budget.
    """
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
        unfinished=sum(r["unfinished"] or 0 for r in ok) / max(1, sum(r["samples"] for r in ok)),
        keys={row["seed"]: row["key"] for row in ok},
        floor={m: own[budget] for m, f in floor.items() if budget in (own := _floor(ok, m) or f)},
    )


def _mean_ranks(
    methods: list[str], budgets: list[int], cells: dict[tuple[str, int], Cell], metric: str
) -> dict[str, float]:
    """Mean over columns of a method's rank, from 0 (best) to 1, which is also for failures; 2 for a
    method that was nowhere tried.
    """
    ranks = defaultdict(list)
    for budget in budgets:
        found = {m: cells[m, budget] for m in methods if (m, budget) in cells}
        losses = {m: _losses(c, metric) for m, c in found.items() if metric in c.values}
        means = {m: np.mean(list(of_seed.values())) for m, of_seed in losses.items()}
        for method, mean in means.items():
            better = sum(other < mean for other in means.values())
            ranks[method].append(better / max(len(means) - 1, 1))
        for method in found.keys() - means.keys():
            ranks[method].append(1.0)
    return {method: float(np.mean(ranks.get(method, [2.0]))) for method in methods}
