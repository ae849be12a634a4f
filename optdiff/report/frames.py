"""What the figures of a report share: colours, a page of panels, titles, scales, names of lines.

The palette is that of Okabe and Ito, safe for the colour-blind, and two more. What is drawn into
the panels is the business of `figures` and `dots`.
"""

import io
import re
import textwrap
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from optdiff.report.cells import Board
from optdiff.report.literal import drawn
from optdiff.report.reading import higher_is_better, is_share

PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7B5A3C", "#5E4FA2"),
)
DIM, INK = "#707070", "#222222"
MARKERS = "osD^vPX*<>phd"
SAMPLERS = (  # each has its colour and its mark, in every figure; append, never insert
    *("ddim", "dpmpp_2m", "ipndm", "ancestral", "gradient_estimation", "momentum", "heun"),
    *("adam_per_sample", "nesterov", "adam", "euler", "unipc", "deis", "lms", "plms", "ipndm_v"),
    *("dpmpp_3m", "dpmpp_2s", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm2", "lion", "muon"),
    *("adamw", "nadam", "rmsprop", "adagrad", "optimistic_gradient", "constant_rate", "restart"),
    *("euler_ancestral", "ddpm", "lcm", "tcd", "er_sde", "sa_solver", "edm_churn", "optimizer"),
    *("deis_rho", "deis_log_rho", "dpmpp_2s_ancestral", "dpmpp_3s", "dpm2_ancestral", "unip"),
    *("ghvb", "pfdiff", "eqm_nag", "schedule_free", "momentum_by_level", "adaptive_momentum"),
    *("adan", "adopt", "ademamix", "adabelief", "amsgrad", "radam", "novograd", "yogi", "sm3"),
    *("dog", "dowg", "prodigy", "normalize", "sign_sgd", "trust_ratio", "optimistic_adam"),
    *("gamma_mu", "transformation", "linear"),
)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
WIDTH, LEFT, TOP, BOTTOM = 9.6, 0.75, 0.6, 0.55  # inches
POINTS = 8.5  # size of text
LINE = 1.25 * POINTS / 72  # inches from one name to the next


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
    """Colour and mark of a method by the name of its sampler, the same in every figure; methods
    that share a sampler differ by their dashes. The better it ranks, the further in front."""
    samplers = {m: cell.sampler for b in board_list for (m, _), cell in b.cells.items()}
    methods = dict.fromkeys(method for board in board_list for method in board.methods)
    look, seen = {}, Counter()
    for i, method in enumerate(methods):
        name = re.split(r"[ (,]", samplers.get(method, method))[0]
        colour, marker = colour_and_mark(name)
        dark = tuple(0.8 * part for part in to_rgb(colour))  # thin letters look pale
        look[method] = Style(colour, dark, marker, DASHES[seen[name] % len(DASHES)], 3 - i / 100)
        seen[name] += 1
    return look


def colour_and_mark(sampler: str) -> tuple[str, str]:
    """Those of `SAMPLERS` all differ; any other name has what its hash says.

    >>> colour_and_mark("ddim")
    ('#0072B2', 'o')
    """
    if sampler in SAMPLERS:
        place = SAMPLERS.index(sampler)
    else:
        place = zlib.crc32(sampler.encode("utf-8", "replace"))
    return PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]


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


def page(heights: Sequence[float]) -> tuple[Figure, list[tuple[float, float]]]:
    """A figure that holds rows of panels of these heights, and each row's (bottom, height)."""
    total = sum(height + TOP + BOTTOM for height in heights) or 1.0
    slots, top = [], total
    for height in heights:
        top -= height + TOP + BOTTOM
        slots.append((top + BOTTOM, height))
    return Figure(figsize=(WIDTH, total), facecolor="white"), slots


def panel(
    figure: Figure, slot: tuple[float, float], column: int, abreast: int, room: float
) -> Axes:
    """One panel at a place in inches, with room for names on its right."""
    width, height = figure.get_size_inches()
    bottom, tall = slot
    left = column * WIDTH / abreast + LEFT
    box = (left / width, bottom / height, (WIDTH / abreast - LEFT - room) / width, tall / height)
    return dress(figure.add_axes(box))


def dress(axes: Axes) -> Axes:
    """Axes as all of ours look."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(DIM)
    axes.tick_params(labelsize=POINTS, color=DIM, labelcolor=INK, which="both")
    axes.grid(axis="y", color="#E8E8E8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_size(POINTS)
    axes.yaxis.label.set_size(POINTS)
    return axes


NEAR_ONE = 1e-3
"""What a share may lack of 1 and still be drawn apart from it."""


def stretched(share: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Where a share is drawn: by what it lacks, `-log10(1 - share + NEAR_ONE)`, so that 0.95 and
    0.98 are as far apart as 0.5 and 0.8.

    >>> stretched(np.array([0.501, 0.801, 0.951, 0.981])).round(2).tolist()
    [0.3, 0.7, 1.3, 1.7]
    """
    return -np.log10(np.maximum(1.0 + NEAR_ONE - share, 1e-12))


def relaxed(place: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """The share that is drawn there: the inverse of `stretched`."""
    return 1.0 + NEAR_ONE - 10.0**-place


class Scale(NamedTuple):
    """How values of a metric are laid out: `kind` is that of Matplotlib, or `share`, stretched
    towards 1; `linear_within` is that of symlog, `note` what a reader must know of it."""

    kind: str
    low: float
    high: float
    linear_within: float | None = None
    note: tuple[str, ...] = ()

    def put_on(self, axes: Axes, name: str) -> None:
        """On the axis of this name, `x` or `y`."""
        axis: Axis = getattr(axes, f"{name}axis")
        kind, settings = self.kind, {}
        if kind == "symlog":
            settings = {"linthresh": self.linear_within}
        elif kind == "share":
            kind, settings = "function", {"functions": (stretched, relaxed)}
        getattr(axes, f"set_{name}scale")(kind, **settings)
        getattr(axes, f"set_{name}lim")(self.low, self.high)
        if self.kind == "log":
            log_ticks(axis)
        elif self.kind == "share":
            inside = self.shares(name)
            axis.set_ticks(inside, [f"{share:g}" for share in inside])
        elif self.kind == "symlog":
            axis.set_minor_locator(NullLocator())
            if name == "x":  # where labels stand beside each other
                axis.get_major_locator().set_params(numticks=4)

    def shares(self, name: str) -> list[float]:
        """The ticks of a `share`; fewer where labels stand beside each other."""
        between = (0.9, 0.99) if name == "x" else (0.8, 0.9, 0.95, 0.98, 0.99)
        return [share for share in (0.0, 0.5, *between, 1.0) if self.low <= share <= self.high]


def scale_of(
    metric: str,
    means: Float[np.ndarray, "n"],
    lows: Float[np.ndarray, "n"],
    highs: Float[np.ndarray, "n"],
    floor: Float[np.ndarray, "k"],
) -> Scale:
    """Logarithmic, but for metrics of which more is better (linear, or for shares stretched towards
    1) and for those whose intervals reach zero (symlog). What diverged is left beyond the end."""
    shown = np.concatenate([means, highs, floor])
    if higher_is_better(metric):
        low, high = min(shown.min(), lows.min()), shown.max()
        if is_share(metric):
            ends = stretched(np.array([low, high]))
            room = 0.06 * max(np.ptp(ends), 0.1)
            first, last = relaxed(ends + np.array([-room, room]))
            scale = Scale("share", float(first), float(last), note=("stretched towards 1",))
            if len(scale.shares("x")) > 1:  # a narrow range needs no stretching, but numbers
                return scale
        room = 0.06 * max(np.ptp(shown), 0.1)
        return Scale("linear", low - room, high + room)
    lowest = min(means.min(), lows.min(), highs.min())
    if lowest <= 0:  # noise about zero, whose size the negative ends tell
        smallest = abs(means[means != 0]).min(initial=np.inf)
        noise = -lowest if lowest < 0 else smallest
        threshold = 10.0 ** np.round(np.log10(noise)) if np.isfinite(noise) else 1.0
        low = 1.5 * min(lowest, floor.min(initial=0.0), -threshold / 15)
        note = (f"linear within ±{threshold:.0e}",)
        return Scale("symlog", low, 1.5 * max(shown.max(), threshold), threshold, note)
    note = ("real vs real is below 0",) if len(floor) and floor.mean() <= 0 else ()
    positive = np.concatenate([shown, lows[lows > means.min() / 3]])
    positive = positive[positive > 0]
    top = positive.max()
    if top > 1e3 * np.median(means):
        top = 30 * np.median(means)
        note = (*note, "what rises above the frame has diverged")
    room = max((top / positive.min()) ** 0.05, 1.05)
    return Scale("log", positive.min() / room, top * room, note=note)


def log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis in plain decimals, 1-2-5 where there is room for them."""
    low, high = axis.get_view_interval()
    room = 300 if axis.axis_name == "y" else 20
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < room else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def title(axes: Axes, title: str, subtitle: str, remark: str = "") -> None:
    """A heading at the left, what to know of it in small grey below."""
    small, room = POINTS - 1, axes.bbox.width / axes.figure.dpi
    lines = wrapped(subtitle, room) + wrapped(remark, room)
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    top = 7 + 1.2 * small * (len(lines) - 1)
    axes.annotate(
        drawn(title, 80), (0, 1), (0, top + 12), weight="bold", size=POINTS + 1, color=INK, **place
    )
    for i, line in enumerate(lines):
        axes.annotate(line, (0, 1), (0, top - 1.2 * small * i), size=small, color=DIM, **place)


def wrapped(text: str, width: float) -> list[str]:
    """The small lines that a text takes over a panel of this width in inches."""
    return textwrap.wrap(text, int(72 * (width + margin([])) / (0.55 * (POINTS - 1))))


def margin(names: Sequence[str]) -> float:
    """Inches to leave on the right of a panel for the names of its lines."""
    longest = max(len(drawn(name)) for name in (*names, "real vs real"))
    return 0.35 + longest * 0.6 * POINTS / 72


def name_ends(axes: Axes, ends: Sequence[End]) -> None:
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
        axes.text(text, height, drawn(end.name), size=POINTS, color=end.text, va="center", **plain)
