"""Cells and traces as vector figures: quality against evaluations, and the optimization view.

Lines carry their names at their ends instead of a legend, and each sampler has its own colour and
mark in every figure; where there are too many methods for that, `dots` draws them.
Numbers come from `cells` and from artifacts.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from optdiff.report import dots
from optdiff.report.cells import Board, Interval, astray
from optdiff.report.frames import (
    INK,
    LEFT,
    LINE,
    PALETTE,
    WIDTH,
    End,
    Style,
    log_ticks,
    margin,
    name_ends,
    page,
    panel,
    scale_of,
    styles,
    title,
    wrapped,
)
from optdiff.report.intervals import summary
from optdiff.report.reading import higher_is_better, remark

MANY = 20  # methods are more than lines with names can show
TRACES = (
    ("gradient_norm", "gradient norm / sqrt(d)"),
    ("cosine", "cosine with the gradient before"),
    ("distance", "distance to the data / sqrt(d)"),
)
"""Arrays of an artifact that `diagnostics` draws, (steps, samples) each, and what to call them;
d is the number of coordinates of a sample."""


def quality(board_list: Sequence[Board]) -> Figure:
    """Each metric against the evaluations really made: of each problem the first metric large,
    then the others two abreast. Axes are logarithmic, but for metrics of which more is better
    (linear or, for shares, stretched towards 1, as the panel says) and for those whose intervals
    reach zero (symlog, which the panel says too).
    More than `MANY` methods are rows of dots, all metrics side by side.
    """
    style = styles(board_list)
    rows = []
    for board in board_list:
        if len(board.methods) > MANY:
            rows += dots.rows(board)
            continue
        abreast = 2 if margin(board.methods) < 1.9 else 1
        rest = board.metrics[1:]
        pairs = [rest[i : i + abreast] for i in range(0, len(rest), abreast)]
        tall = LINE * (len(board.methods) + 2)
        rows.append(_row(board, board.metrics[:1], 1, style, max(3.7, tall)))
        rows += [_row(board, some, abreast, style, max(2.2, tall)) for some in pairs]
    figure, slots = page([height for height, _ in rows])
    for (_, draw), slot in zip(rows, slots, strict=True):
        draw(figure, slot)
    return figure


def diagnostics(
    board_list: Sequence[Board],
    traces: Mapping[str, tuple[int, Mapping[str, Mapping[str, np.ndarray]]]],
) -> Figure:
    """The steps as an optimizer sees them: gradient norm, cosine between successive gradients and
    distance, each the median over samples, against the noise level, which falls to the right.

    Args:
      board_list: the boards, for the methods and their colours.
      traces: by problem, the budget and by method its arrays: `sigma` (n,) and those of `TRACES`.
    """
    style = styles(board_list)
    wanted = [(problem, name, label) for problem in traces for name, label in TRACES]
    names = {problem: min(len(of_method), MANY) for problem, (_, of_method) in traces.items()}
    figure, slots = page([max(2.1, LINE * (names[problem] + 1)) for problem, _, _ in wanted])
    for (problem, name, label), slot in zip(wanted, slots, strict=True):
        axes = panel(figure, slot, 0, 1, margin(list(style)))
        budget, of_method = traces[problem]
        _trace_panel(axes, of_method, name, style)
        axes.set_ylabel(label)
        note = f"medians over samples, {budget} evaluations"
        if len(of_method) > MANY:
            note += f"; the best {len(PALETTE)} are named"
        title(axes, f"{problem}: {label}", note)
    return figure


def _row(
    board: Board, metrics: Sequence[str], abreast: int, style: Mapping[str, Style], tall: float
) -> tuple[float, dots.Draw]:
    """A row of panels, so many abreast where there are enough metrics for it: its height in
    inches with what the remarks above them take, and what draws it into a slot of a page."""
    room = margin(board.methods)
    width = WIDTH / abreast - LEFT - room
    remarks = LINE * max(len(wrapped(remark(metric), width)) for metric in metrics)

    def draw(figure: Figure, slot: tuple[float, float]) -> None:
        bottom, height = slot
        for column, metric in enumerate(metrics):
            axes = panel(figure, (bottom, height - remarks), column, abreast, room)
            _quality_panel(axes, board, metric, style)

    return tall + remarks, draw


def _quality_panel(axes: Axes, board: Board, metric: str, style: Mapping[str, Style]) -> None:
    """One metric of one problem: a line and a band for each method, and the floor."""
    lines = {}
    values = [c.values[metric].values() for c in board.cells.values() if metric in c.values]
    positive = not higher_is_better(metric) and all(value > 0 for some in values for value in some)
    for method in board.methods:
        cells = [board.cells[method, b] for b in board.budgets if (method, b) in board.cells]
        near = [cell for cell in cells if not (metric in cell.values and astray(cell, metric))]
        points = [(c.nfe, s) for c in near if (s := summary(c, metric)) is not None]
        if points:
            ends = [_ends(s, positive) for _, s in points]
            means = [s.mean for _, s in points]
            lines[method] = np.column_stack([[nfe for nfe, _ in points], means, ends])
    floor = np.array(list(board.floor[metric].values()))
    note = _quality_axes(axes, lines, floor, metric, board.budgets)
    names = []
    for method, line in lines.items():
        x, mean, low, high = line[np.argsort(line[:, 0])].T
        look = style[method]
        plain = {"color": look.colour, "zorder": look.order}
        axes.fill_between(x, low, high, alpha=0.14, linewidth=0, **plain)
        axes.plot(x, mean, marker=look.marker, ls=look.dashes, ms=4, lw=1.5, **plain)
        names.append(End(method, x[-1], mean[-1], look.colour, look.text))
    if len(floor) and (axes.get_yscale() != "log" or floor.mean() > 0):
        axes.axhline(floor.mean(), color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        names.append(End("real vs real", axes.get_xlim()[1], floor.mean(), INK, INK))
    name_ends(axes, names)
    seeds = f"{len(board.seeds)} seeds" if len(board.seeds) > 1 else "one seed"
    banded = any((line[:, 3] > line[:, 2]).any() for line in lines.values())
    cut = positive and any((line[:, 2] == line[:, 1] / 5).any() for line in lines.values())
    kind = "95% intervals" + ", cut at a fifth of the mean" * cut
    shown = f"bands: {kind}, {seeds}" if banded else f"{seeds}: no bands"
    direction = "higher is better" if higher_is_better(metric) else "lower is better"
    subtitle = "; ".join([direction, shown, *note])
    title(axes, f"{board.problem}: {metric}", subtitle, remark(metric))


def _ends(value: Interval, positive: bool) -> tuple[float, float]:
    """Where a band ends. What is never negative has a logarithmic axis, which has no zero: there a
    band that reaches zero is cut at a fifth of the mean."""
    if value.low is None:
        return value.mean, value.mean
    return max(value.low, value.mean / 5) if positive else value.low, value.high


def _quality_axes(
    axes: Axes,
    lines: Mapping[str, np.ndarray],
    floor: Float[np.ndarray, "n"],
    metric: str,
    budgets: Sequence[int],
) -> tuple[str, ...]:
    """Scale, limits and ticks of a quality panel, and what its title should add about them."""
    axes.set_xscale("log")
    axes.set_xlabel("evaluations per sample (NFE)")
    if not lines:
        return ("no values",)
    nfe, *values = np.concatenate(list(lines.values())).T
    axes.set_xlim(nfe.min() / 1.06, nfe.max() * 1.06)
    ticks = budgets if len(budgets) <= 12 else budgets[:: -(-len(budgets) // 12)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    scale = scale_of(metric, *values, floor)
    scale.put_on(axes, "y")
    return scale.note


def _trace_panel(
    axes: Axes,
    of_method: Mapping[str, Mapping[str, np.ndarray]],
    name: str,
    style: Mapping[str, Style],
) -> None:
    """One array of the traces, a line for each method that has it."""
    lines, names = {}, []
    for method, arrays in of_method.items():
        if name in arrays:
            known = np.isfinite(arrays[name]).any(axis=1)
            if not known.any():
                continue  # a single step has no gradient before it to take a cosine with
            medians = np.nanmedian(arrays[name][known], axis=1)
            lines[method] = (arrays["sigma"][known], medians)
    axes.set_xscale("log")
    axes.set_xlabel("noise level sigma, falling as sampling goes on")
    every = np.concatenate([medians for _, medians in lines.values()] or [np.ones(1)])
    logarithmic = name != "cosine" and every.min() > 0 and every.max() / every.min() > 8
    if logarithmic:
        axes.set_yscale("log")
    for method, (sigma, medians) in lines.items():
        look = style[method]
        plain = {"color": look.colour, "zorder": look.order}
        named = len(lines) <= MANY or method in list(lines)[: len(PALETTE)]
        marker, width = (look.marker, 1.3) if named else ("", 0.7)
        axes.plot(sigma, medians, marker=marker, ls=look.dashes, ms=3.5, lw=width, **plain)
        if named:
            names.append(End(method, sigma[-1], medians[-1], look.colour, look.text))
    axes.set_xlim(*reversed(axes.get_xlim()))
    axes.set_ylim(*axes.get_ylim())
    if logarithmic:
        log_ticks(axes.yaxis)
    name_ends(axes, names)
