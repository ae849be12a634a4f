"""Cells and traces as vector figures: quality against evaluations, and the optimization view.

Lines carry their names at their ends instead of a legend. The best few methods are in colour (the
palette of Okabe and Ito, safe for the colour-blind, each with its marker), the others grey but
named. This file owns axes, colours and labels; numbers come from `cells` and from artifacts.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from optdiff.report.cells import Board, summary
from optdiff.report.reading import REMARKS, higher_is_better

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, DIM, INK = "#A8A8A8", "#707070", "#222222"
MARKERS = "osD^vPX*<>phd8"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
WIDTH, LEFT, TOP, BOTTOM = 9.6, 0.75, 0.6, 0.55  # inches
POINTS = 8.5  # size of text
LINE = 1.25 * POINTS / 72  # inches from one name to the next

TRACES = (
    ("gradient_norm", "gradient norm / sqrt(d)"),
    ("cosine", "cosine with the gradient before"),
    ("distance", "distance to the data / sqrt(d)"),
)
"""Arrays of an artifact that `diagnostics` draws, (steps, samples) each, and what to call them;
d is the number of coordinates of a sample."""


class Style(NamedTuple):
    """How a method is drawn, the same in every panel."""

    colour: str
    text: str | tuple
    marker: str
    dashes: str | tuple
    order: float


class End(NamedTuple):
    """The right end of a line, in data coordinates, and the name to write beside it."""

    name: str
    x: float
    y: float
    colour: str
    text: str | tuple


def svg(figure: Figure) -> bytes:
    """A figure as SVG, the same bytes each time; text as paths, so fonts do not matter."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "optdiff", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def styles(board_list: Sequence[Board]) -> dict[str, Style]:
    """Colours for the methods that rank best on the first problem; greys with dashes for others."""
    methods = dict.fromkeys(method for board in board_list for method in board.methods)
    found = {}
    for i, method in enumerate(methods):
        marker = MARKERS[i % len(MARKERS)]
        if i < len(PALETTE):
            dark = tuple(0.8 * part for part in to_rgb(PALETTE[i]))  # thin letters look pale
            found[method] = Style(PALETTE[i], dark, marker, "-", 3 - i / 100)
        else:
            found[method] = Style(GREY, DIM, marker, DASHES[i % len(DASHES)], 2 - i / 100)
    return found


def quality(board_list: Sequence[Board]) -> Figure:
    """Each metric against the evaluations really made: of each problem the first metric large,
    then the others two abreast. Axes are logarithmic, but for metrics that count a share of
    samples (linear) and for those whose intervals reach zero (symlog, and the panel says so).
    """
    style = styles(board_list)
    rows = []
    for board in board_list:
        abreast = 2 if _margin(board.methods) < 1.9 else 1
        rest = board.metrics[1:]
        pairs = [rest[i : i + abreast] for i in range(0, len(rest), abreast)]
        tall = LINE * (len(board.methods) + 2)
        rows.append((board, board.metrics[:1], 1, max(3.7, tall)))
        rows += [(board, names, abreast, max(2.2, tall)) for names in pairs]
    figure, slots = _page([(height, abreast) for _, _, abreast, height in rows])
    for (board, names, abreast, _), slot in zip(rows, slots, strict=True):
        for column, metric in enumerate(names):
            axes = _axes(figure, slot, column, abreast, _margin(board.methods))
            _quality_panel(axes, board, metric, style)
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
    heights = [max(2.1, LINE * (len(traces[problem][1]) + 1)) for problem, _, _ in wanted]
    figure, slots = _page([(height, 1) for height in heights])
    for (problem, name, label), slot in zip(wanted, slots, strict=True):
        axes = _axes(figure, slot, 0, 1, _margin(list(style)))
        budget, of_method = traces[problem]
        _trace_panel(axes, of_method, name, style)
        axes.set_ylabel(label)
        _title(axes, f"{problem}: {label}", f"medians over samples, {budget} evaluations")
    return figure


def spread(
    wanted: Float[np.ndarray, "n"], gap: float, low: float, high: float
) -> Float[np.ndarray, "n"]:
    """Move heights as little as possible (least squares) to be `gap` apart within [low, high].

    In sorted order `wanted - gap * rank` must not decrease: isotonic regression, by pooling.

    >>> spread(np.array([0.0, 0.0, 5.0]), 1.0, -1.0, 9.0)
    array([-0.5,  0.5,  5. ])
    """
    order = np.argsort(wanted, kind="stable")
    pools = []
    for rank, height in enumerate(wanted[order]):
        pools.append([height - gap * rank, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    flat = np.concatenate([np.full(count, value) for value, count in pools] or [np.zeros(0)])
    steps = gap * np.arange(len(wanted))
    placed = np.empty(len(wanted))
    placed[order] = np.clip(flat, low, max(low, high - gap * (len(wanted) - 1))) + steps
    return placed


def _page(rows: Sequence[tuple[float, int]]) -> tuple[Figure, list[tuple[float, float]]]:
    """A figure that holds rows of panels of these heights, and each row's (bottom, height)."""
    total = sum(height + TOP + BOTTOM for height, _ in rows) or 1.0
    slots, top = [], total
    for height, _ in rows:
        top -= height + TOP + BOTTOM
        slots.append((top + BOTTOM, height))
    return Figure(figsize=(WIDTH, total), facecolor="white"), slots


def _axes(
    figure: Figure, slot: tuple[float, float], column: int, abreast: int, margin: float
) -> Axes:
    """One panel at a place in inches, with room for names on its right."""
    width, height = figure.get_size_inches()
    bottom, tall = slot
    left = column * WIDTH / abreast + LEFT
    box = (left / width, bottom / height, (WIDTH / abreast - LEFT - margin) / width, tall / height)
    axes = figure.add_axes(box)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(DIM)
    axes.tick_params(labelsize=POINTS, color=DIM, labelcolor=INK, which="both")
    axes.grid(axis="y", color="#E8E8E8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_size(POINTS)
    axes.yaxis.label.set_size(POINTS)
    return axes


def _quality_panel(axes: Axes, board: Board, metric: str, style: Mapping[str, Style]) -> None:
    """One metric of one problem: a line and a band for each method, and the floor."""
    lines = {}
    for method in board.methods:
        cells = [board.cells[method, b] for b in board.budgets if (method, b) in board.cells]
        points = [(c.nfe, s) for c in cells if (s := summary(c, metric)) is not None]
        if points:
            ends = [(s.mean if s.low is None else s.low, s.high or s.mean) for _, s in points]
            means = [s.mean for _, s in points]
            lines[method] = np.column_stack([[nfe for nfe, _ in points], means, ends])
    floor = np.array(list(board.floor[metric].values()))
    note = _quality_axes(axes, lines, floor, metric, board.budgets)
    names = []
    for method, line in lines.items():
        x, mean, low, high = line[np.argsort(line[:, 0])].T
        look = style[method]
        plain = {"color": look.colour, "zorder": look.order}
        axes.fill_between(x, low, high, alpha=0.18, linewidth=0, **plain)
        axes.plot(x, mean, marker=look.marker, ls=look.dashes, ms=4, lw=1.5, **plain)
        names.append(End(method, x[-1], mean[-1], look.colour, look.text))
    if len(floor) and (axes.get_yscale() != "log" or floor.mean() > 0):
        axes.axhline(floor.mean(), color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        names.append(End("real vs real", axes.get_xlim()[1], floor.mean(), INK, INK))
    _name_ends(axes, names)
    seeds = len(board.seeds)
    kind = "range of" if seeds <= 3 else "95% bootstrap over"
    shown = f"bands: {kind} {seeds} seeds" if seeds > 1 else "one seed: no bands"
    direction = "higher is better" if higher_is_better(metric) else "lower is better"
    subtitle = "; ".join([direction, shown, *note])
    _title(axes, f"{board.problem}: {metric}", subtitle, REMARKS.get(metric, ""))


def _quality_axes(
    axes: Axes,
    lines: Mapping[str, np.ndarray],
    floor: Float[np.ndarray, "n"],
    metric: str,
    budgets: Sequence[int],
) -> list[str]:
    """Scale, limits and ticks of a quality panel, and what its title should add about them."""
    axes.set_xscale("log")
    axes.set_xlabel("evaluations per sample (NFE)")
    note = []
    if not lines:
        return ["no values"]
    every = np.concatenate(list(lines.values()))
    axes.set_xlim(every[:, 0].min() / 1.06, every[:, 0].max() * 1.06)
    ticks = budgets if len(budgets) <= 12 else budgets[:: -(-len(budgets) // 12)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    means = every[:, 1]
    shown = np.concatenate([means, every[:, 3], floor])
    if higher_is_better(metric):
        room = 0.06 * max(np.ptp(shown), 0.1)
        axes.set_ylim(min(shown.min(), every[:, 2].min()) - room, shown.max() + room)
    elif every[:, 1:].min() <= 0:  # noise about zero, whose size the negative ends tell
        lowest, smallest = every[:, 1:].min(), abs(means[means != 0]).min(initial=np.inf)
        noise = -lowest if lowest < 0 else smallest
        threshold = 10.0 ** np.round(np.log10(noise)) if np.isfinite(noise) else 1.0
        low = 1.5 * min(lowest, floor.min(initial=0.0), -threshold / 15)
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylim(low, 1.5 * max(shown.max(), threshold))
        axes.yaxis.set_minor_locator(NullLocator())
        note.append(f"linear within ±{threshold:.0e}")
    else:
        axes.set_yscale("log")
        if len(floor) and floor.mean() <= 0:
            note.append("real vs real is below 0")
        positive = np.concatenate([shown, every[every[:, 2] > means.min() / 3, 2]])
        positive = positive[positive > 0]
        top = positive.max()
        if top > 1e3 * np.median(means):
            top = 30 * np.median(means)
            note.append("what rises above the frame has diverged")
        room = max((top / positive.min()) ** 0.05, 1.05)
        axes.set_ylim(positive.min() / room, top * room)
        _log_ticks(axes)
    return note


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
        axes.plot(sigma, medians, marker=look.marker, ls=look.dashes, ms=3.5, lw=1.3, **plain)
        names.append(End(method, sigma[-1], medians[-1], look.colour, look.text))
    axes.set_xlim(*reversed(axes.get_xlim()))
    axes.set_ylim(*axes.get_ylim())
    if logarithmic:
        _log_ticks(axes)
    _name_ends(axes, names)


def _log_ticks(axes: Axes) -> None:
    """Ticks of a logarithmic height in plain decimals, 1-2-5 where there is room for them."""
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _title(axes: Axes, title: str, subtitle: str, remark: str = "") -> None:
    """A heading at the left, what to know of it in small grey below."""
    small = POINTS - 1
    room = 72 * (axes.bbox.width / axes.figure.dpi + _margin([]))  # points
    columns = int(room / (0.55 * small))
    lines = [*textwrap.wrap(subtitle, columns), *textwrap.wrap(remark, columns)]
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    top = 7 + 1.2 * small * (len(lines) - 1)
    axes.annotate(title, (0, 1), (0, top + 12), weight="bold", size=POINTS + 1, color=INK, **place)
    for i, line in enumerate(lines):
        axes.annotate(line, (0, 1), (0, top - 1.2 * small * i), size=small, color=DIM, **place)


def _margin(names: Sequence[str]) -> float:
    """Inches to leave on the right of a panel for the names of its lines."""
    longest = max((len(name) for name in (*names, "real vs real")), default=0)
    return 0.35 + longest * 0.6 * POINTS / 72


def _name_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write each line's name at the right of the panel, near the line's end and off each other."""
    if not ends:
        return
    frame, dots = axes.bbox, axes.figure.dpi
    reach = axes.transData.transform([(end.x, end.y) for end in ends])
    reach[:, 1] = np.clip(reach[:, 1], frame.y0, frame.y1)
    heights = spread(reach[:, 1], LINE * dots, frame.y0 + 2, frame.y1 - 2)
    plain = {"transform": axes.transAxes, "clip_on": False}
    for end, (x, y), height in zip(ends, reach, heights, strict=True):
        x, y = (x - frame.x0) / frame.width, (y - frame.y0) / frame.height
        height = (height - frame.y0) / frame.height
        start, text = x + 5 / frame.width, 1 + 0.24 * dots / frame.width
        lead = [start, 1 + 0.2 * dots / frame.width]
        axes.plot(lead, [y, height], color=end.colour, lw=0.6, **plain)
        axes.text(text, height, end.name, size=POINTS, color=end.text, va="center", **plain)
