"""Rows into cells: what a table or a figure has to say about a problem.

A *method* is all of a configuration but what `NO_METHOD` lists; a *cell* is a method at a budget,
over seeds. This file owns the cells and what their values count for; how sure they are is
`intervals`', the names of methods are in `methods`, and nothing is drawn here.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from optdiff.report.methods import jobs
from optdiff.report.reading import companions, higher_is_better
from optdiff.results import Row

FAR = 10  # times as far from the data as real samples are from each other


class Cell(NamedTuple):
    """A method at a budget: values by metric and seed, and the errors of the seeds that failed.

    `spread` holds by metric and seed how groups of samples pull the value (see `intervals`);
    `nfe` and `passes` are what a sample really cost on average, nan if no job was ok; `unfinished`
    is the share of samples that ran out of evaluations before the last level; `keys` name
    the artifacts of the ok jobs by seed, `floor` has by metric what real samples score.
    """

    sampler: str
    grid: str
    values: dict[str, dict[int, float]]
    spread: dict[str, dict[int, list[float]]]
    errors: dict[int, str]
    nfe: float
    passes: float
    unfinished: float
    keys: dict[int, str]
    floor: dict[str, float]
    samples: int
    refused: dict[str, str]


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
    """A mean and its 95% interval, None where nothing can be said."""

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


def astray(cell: Cell, metric: str) -> bool:
    """Whether a cell's samples are so far from the data that a metric says nothing of them.

    Precision, recall, density and coverage ask which balls about neighbours hold points, and those
    about pure noise are huge and hold everything. Such a metric has no meaning where the Frechet
    distance on the same features is more than `FAR` times that of real samples.
    """
    for name in companions(metric):
        if name in cell.values and cell.floor.get(name, 0.0) > 0:
            return float(np.mean([*cell.values[name].values()])) > FAR * cell.floor[name]
    return False


def side(cell: Cell, metric: str) -> float | None:
    """The sign with which values of a cell count as losses; None for samples that are `astray`.

    Plus for a distance, minus for a share. But where the floor is known, what beats it is not
    better than real samples are. A distance then counts from the floor, and not at all (0) if its
    mean is below. A share counts by how far its mean is from the floor on either side: blurred
    samples, all near the middle of the real ones, have more precision, density and coverage than
    real samples have.
    """
    if astray(cell, metric):
        return None
    sign = -1.0 if higher_is_better(metric) else 1.0
    if (floor := cell.floor.get(metric)) is None:
        return sign
    above = float(np.sign(np.mean([*cell.values[metric].values()]) - floor))
    return above if higher_is_better(metric) else max(above, 0.0)


def loss(cell: Cell, metric: str) -> float | None:
    """What is to be small, on the average: how far a cell is from the floor, on its `side`."""
    sign = side(cell, metric)
    mean = float(np.mean([*cell.values[metric].values()]))
    return None if sign is None else sign * (mean - cell.floor.get(metric, 0.0))


def _board(problem: str, rows: list[Row], names: list[str]) -> Board:
    """The board of a problem from its rows."""
    named = jobs(rows)
    rows = [row for _, row in named]
    groups = defaultdict(list)
    for method, row in named:
        groups[method, row["nfe_asked"]].append(row)
    budgets = sorted({row["nfe_asked"] for row in rows})
    metrics = [name for name in names if any(name in row["metrics"] for row in rows)]
    metrics = metrics or ["no metric"]  # all failed: the table still shows where
    floor = {name: _floor(rows, name) for name in metrics}
    cells = {(method, b): _cell(group, floor, b) for (method, b), group in groups.items()}
    methods = list(dict.fromkeys(method for method, _ in named))
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
    values, spread = defaultdict(dict), defaultdict(dict)
    for row in ok:
        for name, value in row["metrics"].items():
            values[name][row["seed"]] = value
        for name, pulls in row["spread"].items():
            spread[name][row["seed"]] = pulls
    return Cell(
        sampler=rows[0]["sampler"],
        grid=rows[0]["grid"],
        values=dict(values),
        spread=dict(spread),
        errors={r["seed"]: r["error"] or "unknown error" for r in rows if r["status"] != "ok"},
        nfe=float(np.mean([row["nfe"] for row in ok])) if ok else np.nan,
        passes=float(np.mean([row["passes"] for row in ok])) if ok else np.nan,
        unfinished=sum(r["unfinished"] or 0 for r in ok) / max(1, sum(r["samples"] for r in ok)),
        keys={row["seed"]: row["key"] for row in ok},
        floor={m: own[budget] for m, f in floor.items() if budget in (own := _floor(ok, m) or f)},
        samples=rows[0]["samples"],
        refused={name: why for row in ok for name, why in row["refused"].items()},
    )


def _mean_ranks(
    methods: list[str], budgets: list[int], cells: dict[tuple[str, int], Cell], metric: str
) -> dict[str, float]:
    """Mean over columns of a method's rank, from 0 (best) to 1, which is also for failures; 2 for a
    method that was nowhere tried.
    """
    ranks = defaultdict(list)
    for budget in budgets:
        tried = {m: cells[m, budget] for m in methods if (m, budget) in cells}
        known = {m: loss(c, metric) for m, c in tried.items() if metric in c.values}
        means = {m: mean for m, mean in known.items() if mean is not None}
        for method, mean in means.items():
            better = sum(other < mean for other in means.values())
            ranks[method].append(better / max(len(means) - 1, 1))
        for method in tried.keys() - means.keys():
            ranks[method].append(1.0)
    return {method: float(np.mean(ranks.get(method, [2.0]))) for method in methods}
