"""Many methods as rows of dots: every metric side by side, a row a method, a dot a budget.

For studies whose methods are too many for lines with names, such as every sampler there is.
"""

from collections.abc import Callable, Sequence
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optdiff.report.cells import Board, astray
from optdiff.report.frames import DIM, INK, LINE, POINTS, WIDTH, dress, margin, scale_of
from optdiff.report.intervals import summary
from optdiff.report.literal import drawn
from optdiff.report.reading import higher_is_better

ABREAST, GAP = 4, 0.2  # panels in a row, inches between them

Draw = Callable[[Figure, tuple[float, float]], None]


def rows(board: Board) -> list[tuple[float, Draw]]:
    """Rows of panels for a problem: the height of each, and what draws it into a slot of a page."""
    chunks = [board.metrics[i : i + ABREAST] for i in range(0, len(board.metrics), ABREAST)]
    return [(LINE * len(board.methods), partial(_row, board, chunk)) for chunk in chunks]


def _row(board: Board, metrics: Sequence[str], figure: Figure, slot: tuple[float, float]) -> None:
    """Some metrics side by side; the names of the methods, best first, stand at the left."""
    width, height = figure.get_size_inches()
    bottom, tall = slot
    left = margin(board.methods)
    wide = (WIDTH - left - 0.15) / ABREAST - GAP
    for column, metric in enumerate(metrics):
        start = left + column * (wide + GAP)
        box = (start / width, bottom / height, wide / width, tall / height)
        axes = dress(figure.add_axes(box))
        axes.set_ylim(len(board.methods) - 0.5, -0.5)
        axes.set_yticks(
            range(len(board.methods)),
            [drawn(name) for name in board.methods] if column == 0 else (),
        )
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=POINTS - 1)
        _panel(axes, board, metric)
        if column == 0:
            _legend(axes, board, left)


def _panel(axes: Axes, board: Board, metric: str) -> None:
    """One metric: the mean at each budget, the darker the more evaluations."""
    points = [
        (row, column, value.mean)
        for row, method in enumerate(board.methods)
        for column, budget in enumerate(board.budgets)
        if (cell := board.cells.get((method, budget)))
        and (value := summary(cell, metric))
        and not astray(cell, metric)
    ]
    lines = ["higher is better" if higher_is_better(metric) else "lower is better"]
    if points:
        row, column, means = np.array(points).T
        floor = np.array(list(board.floor[metric].values()))
        scale = scale_of(metric, means, means, means, floor)
        scale.put_on(axes, "x")
        shades = np.array(_shades(board))[column.astype(int)]
        left = means > scale.high
        plain = {"s": 16, "linewidth": 0, "zorder": 3, "clip_on": False}
        axes.scatter(means[~left], row[~left], c=shades[~left], **plain)
        edge = np.full(left.sum(), scale.high)
        axes.scatter(edge, row[left], c=shades[left], marker=">", **plain)
        if scale.kind != "log":  # whose notes are said otherwise here
            lines += scale.note
        lines += ["at the edge: diverged"] * bool(left.any())
        if len(floor) and (scale.kind != "log" or floor.mean() > 0):
            axes.axvline(floor.mean(), color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
            lines[0] += "; dashed: real vs real"
    else:
        lines += ["no values"]
    _write(axes, metric, 0, 29, weight="bold", size=POINTS, color=INK)
    for i, line in enumerate(lines[:2]):
        _write(axes, line, 0, 18 - 10 * i)


def _legend(axes: Axes, board: Board, left: float) -> None:
    """The problem, and which dot is which budget, above the names."""
    start = 72 * (0.1 - left)  # points
    _write(axes, drawn(board.problem), start, 29, weight="bold", size=POINTS + 1, color=INK)
    _write(axes, "evaluations:", start, 18)
    for i, (budget, shade) in enumerate(zip(board.budgets, _shades(board), strict=True)):
        _write(axes, f"● {budget}", start + 28 * (i % 4), 8 - 10 * (i // 4), color=shade)


def _write(axes: Axes, text: str, right: float | int, up: float | int, **look) -> None:
    """Text so many points from the panel's upper left corner."""
    look = {"size": POINTS - 1.5, "color": DIM, "annotation_clip": False} | look
    axes.annotate(text, (0, 1), (right, up), "axes fraction", "offset points", **look)


def _shades(board: Board) -> list[tuple[float, ...]]:
    """From light to dark, one for each budget."""
    colours = matplotlib.colormaps["Blues"](np.linspace(0.4, 1.0, len(board.budgets)))
    return [tuple(colour[:3]) for colour in colours]
