"""Cells as text: markdown for readers, CSV for programs, and the notes that keep both honest.

A table shows means with the half-width of their intervals, marks the best of each column and who
cannot be told from it, and says what is missing, failed, stale, or cost other than asked.
"""

import csv
import io
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from optdiff.report import literal
from optdiff.report.cells import Board, Cell, Interval, astray
from optdiff.report.intervals import marks, summary
from optdiff.report.reading import higher_is_better, remark
from optdiff.results import Row

COLUMNS = [
    *("problem", "method", "sampler", "grid", "nfe_asked", "nfe", "passes", "metric"),
    *("mean", "low", "high", "seeds", "failed", "mark", "floor"),
]
KINDS_OF_FAILURE = 8  # listed in the notes; the log has them all


def markdown(board: Board, metric: str) -> str:
    """One table of methods by budgets in one metric, with its heading and its legend."""
    unit = _unit(board, metric)
    lines = [["sampler \\ NFE"], *([literal.markdown(method)] for method in board.methods)]
    floor = board.floor[metric]
    lines += [["*real vs real*"]] if floor else []
    for budget in board.budgets:
        marked = marks(board, metric, budget)
        cells = {method: board.cells.get((method, budget)) for method in board.methods}
        digits = _digits([summary(cell, metric) for cell in cells.values() if cell], unit)
        texts = [
            _text(cell, metric, budget, marked.get(method), board.seeds, unit, digits)
            for method, cell in cells.items()
        ]
        texts = [str(budget), *texts]
        if floor:
            texts.append(_number(floor[budget] / unit, None, digits) if budget in floor else "—")
        for line, text in zip(lines, texts, strict=True):
            line.append(text)
    legend = _legend(board, metric, lines)
    parts = [_heading(board, metric, unit), _aligned(lines), remark(metric), legend]
    return "\n\n".join(filter(None, parts))


def tidy(board_list: Sequence[Board]) -> str:
    """CSV, one line for each method, budget and metric; what is not known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for board in board_list:
        labels = {method: (c.sampler, c.grid) for (method, _), c in board.cells.items()}
        for metric, budget in itertools.product(board.metrics, board.budgets):
            marked = marks(board, metric, budget)
            for method in board.methods:
                cell = board.cells.get((method, budget))
                known = _known(cell, metric)
                mark = "astray" if cell and astray(cell, metric) else marked.get(method)
                last = [mark, board.floor[metric].get(budget)]
                names = map(literal.spreadsheet, (board.problem, method, *labels[method]))
                writer.writerow([*names, budget, *known, *last])
    return text.getvalue()


def notes(
    rows: Sequence[Row], board_list: Sequence[Board], source: str, damage: Sequence[str] = ()
) -> str:
    """What a reader must know of the rows: what failed, what is stale or dirty, where they ran.

    Args:
      rows: all rows of the study.
      board_list: their boards.
      source: digest of the present source; rows of any other are stale.
      damage: what of the study could not be read, a sentence each.
    """
    commits = Counter(
        f"commit {literal.markdown(row['commit'][:9])}" if row["commit"] else "no commit"
        for row in rows
    )
    devices = Counter(literal.markdown(row["device"]) for row in rows)
    lines = []
    failures = [line for board in board_list for line in _failures(board)]
    lines += failures[:KINDS_OF_FAILURE]
    if len(failures) > KINDS_OF_FAILURE:
        lines.append(f"✗ and {len(failures) - KINDS_OF_FAILURE} more kinds of failure.")
    lines += _not_measured(board_list)
    lines += [f"**Damaged**: {literal.markdown(one)}" for one in damage[:KINDS_OF_FAILURE]]
    if len(damage) > KINDS_OF_FAILURE:
        lines.append(f"**Damaged**: and {len(damage) - KINDS_OF_FAILURE} more.")
    if stale := sum(row["source"] != source for row in rows):
        lines.append(
            f"**Stale**: {stale} of {len(rows)} rows were made by other source than the present; "
            "`refresh=stale` reruns them."
        )
    if dirty := sum(bool(row["dirty"]) for row in rows):
        lines.append(
            f"**Dirty**: {dirty} of {len(rows)} rows were made from a tree with changes that "
            "their commit does not have."
        )
    listed = "\n".join(f"- {line}" for line in lines)
    return f"{len(rows)} jobs, {_counted(commits)}, on {_counted(devices)}.\n\n{listed}".rstrip()


def _known(cell: Cell | None, metric: str) -> list:
    """What a line of the CSV says of a cell, from its costs to the number of seeds that failed."""
    if cell is None:
        return [None, None, literal.spreadsheet(metric), None, None, None, 0, 0]
    costs = [None if math.isnan(cost) else cost for cost in (cell.nfe, cell.passes)]
    value = summary(cell, metric) or Interval(None, None, None)
    return [
        *costs,
        literal.spreadsheet(metric),
        *value,
        len(cell.values.get(metric, ())),
        len(cell.errors),
    ]


def _text(
    cell: Cell | None,
    metric: str,
    budget: int,
    mark: str | None,
    seeds: list[int],
    unit: float,
    digits: int,
) -> str:
    """What a cell shows: mean, half-width, marks, real cost, seeds that failed or are absent."""
    if cell is None:
        return "—"
    parts = []
    if value := summary(cell, metric):
        half = None
        if value.low is not None:
            half = max(value.high - value.mean, value.mean - value.low) / unit
        text = _number(value.mean / unit, half, digits)
        text = f"({text})" if astray(cell, metric) else text
        parts.append(f"**{text}**" if mark == "best" else text)
        parts += ["≈"] * (mark == "tie")
        parts += [f"@{cell.nfe:.3g}"] * (abs(cell.nfe - budget) > 1e-6)
        parts += [f"⋯{100 * cell.unfinished:.0f}%"] * (cell.unfinished > 0)
        known = len(cell.values[metric])
        parts += [f"{known}/{len(seeds)}"] * (known + len(cell.errors) < len(seeds))
    elif cell.keys:
        parts.append("n/a")
    if cell.errors:
        parts.append(f"✗{len(cell.errors)}")
    return " ".join(parts)


def _number(mean: float, half: float | None, digits: int) -> str:
    """A mean and its half-width, to so many decimals: `0.423 ±0.012`."""
    if mean and not 1e-3 <= abs(mean) < 1e5:
        return f"{mean:.2e}" + ("" if half is None else f" ±{half:.0e}")
    return f"{mean:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")


def _digits(values: Sequence[Interval | None], unit: float) -> int:
    """Decimals for a column: those that give its smaller means three digits, four at most."""
    sizes = [abs(value.mean) / unit for value in values if value and value.mean]
    sizes = [size for size in sizes if 1e-3 <= size < 1e5]
    if not sizes:
        return 2
    return min(max(2 - math.floor(math.log10(np.quantile(sizes, 0.25))), 0), 4)


def _unit(board: Board, metric: str) -> float:
    """A power of a thousand that brings the typical mean of a table near 1, if it is small."""
    means = [summary(cell, metric) for cell in board.cells.values()]
    sizes = [abs(value.mean) for value in means if value and value.mean]
    if not sizes or (middle := float(np.median(sizes))) >= 0.01:
        return 1.0
    return 1000.0 ** math.floor(math.log10(middle) / 3)


def _heading(board: Board, metric: str, unit: float) -> str:
    """Problem and metric, and the circumstances that all cells share."""
    direction = "higher is better" if higher_is_better(metric) else "lower is better"
    scale = "" if unit == 1 else f", in units of 1e{round(math.log10(unit))}"
    shared = [
        f"grid {literal.markdown(', '.join(board.grids))}",
        f"{' or '.join(map(str, board.samples))} samples a seed",
        f"{len(board.seeds)} seed{'s' if len(board.seeds) > 1 else ''}",
    ]
    passes = sorted({round(c.passes / c.nfe, 2) for c in board.cells.values() if c.nfe > 0})
    if passes and passes != [1]:
        shared.append(f"{' or '.join(f'{p:g}' for p in passes)} network passes an evaluation")
    title = f"### {literal.markdown(board.problem)}: {literal.markdown(metric)}"
    return f"{title} ({direction}{scale})\n\n{'; '.join(shared)}."


def _legend(board: Board, metric: str, lines: list[list[str]]) -> str:
    """What the marks mean, those that the table has."""
    text = " ".join(" ".join(line[1:]) for line in lines[1:])
    legend = []
    if "±" in text:
        by = "groups of samples" if _has_groups(board, metric) else "seeds"
        law = f"Student's t over {by}"
        legend.append(f"±: half of the 95% interval of the mean ({law}), its longer side.")
    elif len(board.seeds) == 1:
        legend.append("One seed, hence no intervals and no ties.")
    if "**" in text and not board.floor[metric]:
        legend.append("**Bold**: best mean of its column.")
    elif "**" in text:
        beyond = "more is not better" if higher_is_better(metric) else "less is not better"
        legend.append(f"**Bold**: mean closest to real vs real; {beyond} than real samples are.")
    if "≈" in text:
        legend.append(
            "≈: cannot be told from the best. Neither bold nor ≈: worse than the best, by more "
            "than chance does to any of so many equal methods in one column of twenty (paired on "
            "noise)."
        )
    elif "**" in text and "±" in text:
        legend.append("Neither bold nor ≈: worse than the best, by more than chance.")
    if "(" in text:
        legend.append("(...): too far off the data for this metric to mean anything; not ranked.")
    if "@" in text:
        legend.append("@: evaluations really made, where not those asked for.")
    if "⋯" in text:
        legend.append("⋯: samples that ran out of evaluations before the last level.")
    if re.search(r"\d/\d", text):
        legend.append("2/3: seeds present, the others not run yet; such a cell does not compete.")
    if "✗" in text:
        legend.append("✗: failed jobs, listed below; a cell that has some does not compete.")
    if "n/a" in text:
        legend.append("n/a: done, but this metric has no value there.")
    if "—" in text:
        legend.append("—: no job yet.")
    return "\n".join(f"- {line}" for line in legend)


def _has_groups(board: Board, metric: str) -> bool:
    """Whether intervals of a metric are over groups of samples, in all cells."""
    cells = [cell for cell in board.cells.values() if metric in cell.values]
    return all(cell.values[metric].keys() <= cell.spread.get(metric, {}).keys() for cell in cells)


def _aligned(lines: list[list[str]]) -> str:
    """A markdown table whose columns line up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def _not_measured(board_list: Sequence[Board]) -> list[str]:
    """What metrics had no value, why, and of which methods if not of all."""
    whose = defaultdict(dict)
    for board in board_list:
        for (method, _), cell in board.cells.items():
            for name, why in cell.refused.items():
                whose[name, why][board.problem, method] = method
    every = {(board.problem, method) for board in board_list for method, _ in board.cells}
    lines = []
    for (name, why), methods in whose.items():
        names = (
            "" if methods.keys() == every else f" ({', '.join(dict.fromkeys(methods.values()))})"
        )
        lines.append(
            f"Not measured: {literal.markdown(f'{name}{names}')}: {literal.markdown(why)}."
        )
    return lines


def _failures(board: Board) -> list[str]:
    """One line for each kind of failure: how many jobs, the error, and where."""
    places = defaultdict(lambda: defaultdict(list))
    for (method, budget), cell in board.cells.items():
        for seed, error in cell.errors.items():
            first = literal.markdown((error.splitlines() or [""])[0])
            places[first][method, budget].append(seed)
    lines = []
    for error, where in places.items():
        jobs = sum(map(len, where.values()))
        listed = [
            f"{literal.markdown(method)} at {budget} (seed {', '.join(map(str, sorted(seeds)))})"
            for (method, budget), seeds in where.items()
        ]
        more = f" and {len(listed) - 6} more cells" if len(listed) > 6 else ""
        problem = literal.markdown(board.problem)
        lines.append(f"✗{jobs} {problem}: “{error}”: {'; '.join(listed[:6])}{more}.")
    return lines


def _counted(counter: Counter) -> str:
    """`a` if that is all there is, else `a (140), b (4)`."""
    if len(counter) == 1:
        return next(iter(counter))
    return ", ".join(f"{name} ({count})" for name, count in counter.most_common(4))
