"""Samples as a picture: rows of methods, columns of budgets, the same initial noise in each cell.

Images are shown in their own pixels; vectors as small scatter plots of their first two coordinates.
The picture shows what a metric only counts.
"""

import functools
import textwrap
from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from optdiff.report.cells import Board, Cell
from optdiff.report.literal import DRAWN, bounded, drawn

Pixels = UInt8[np.ndarray, "height width 3"]
Draw = Callable[[Axes, np.ndarray], None]

SHOWN = 4  # images in a cell, at most
SIDE = 60  # pixels of an image, about
COLUMNS = 1200  # pixels of all columns, about: where there are many, a cell shows fewer images
PLOT = 112  # pixels of a scatter plot
GAP, HEAD, LINE, DPI = 8, 72, 14, 100  # pixels, and how many make an inch
LETTER, TITLE_LETTER = 6, 10  # pixels of a letter in a note or title, at most, on the average
INK, DIM, RED, BLUE = "#222222", "#707070", "#C0392B", "#0072B2"


class Sheet:
    """A grid of cells of one size in pixels: names on the left, notes and numbers above."""

    def __init__(
        self, rows: int, columns: int, size: tuple[int, int], longest: int, title: str, notes: int
    ):
        self.label = 34 + 7 * longest
        self.head = HEAD + (notes - 1) * LINE
        self.size = size
        cells = self.label + columns * (size[0] + GAP)
        self.width = max(cells, 2 * GAP + TITLE_LETTER * len(title))
        self.height = self.head + rows * (size[1] + GAP)
        inches = (self.width / DPI, self.height / DPI)
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        self.write(GAP, 18, title, weight="bold", size=10)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Pixels from the left and the top to a cell."""
        x = self.label + column * (self.size[0] + GAP)
        return x, self.head + row * (self.size[1] + GAP)

    def write(self, x: float | int, y: float | int, text: str, **look) -> None:
        """Put text at pixels from the left and the top."""
        look = {"size": 8.5, "color": INK, "va": "center"} | look
        self.figure.text(x / self.width, 1 - y / self.height, drawn(text, 400), **look)

    def axes(self, row: int, column: int) -> Axes:
        """Bare axes that fill a cell, one of their pixels to one of the picture."""
        (x, y), (w, h) = self.corner(row, column), self.size
        box = (x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height)
        axes = self.figure.add_axes(box)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        return axes

    def pixels(self) -> Pixels:
        """The drawn sheet."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


def samples(
    board: Board, seed: int, artifacts: Mapping[tuple[str, int], Mapping[str, np.ndarray]]
) -> Pixels:
    """The samples of one problem that one seed led to.

    Args:
      board: which rows and columns there are, what they cost, and which cells failed.
      seed: the seed.
      artifacts: artifacts by (method, budget), at least one: `samples` (k, h, w), (k, h, w, 1) or
        (k, h, w, 3) in [0, 1], or (k, d) vectors; and perhaps, like it, `exact`, where the same
        noise should have led, which is the last row under images, `reference`, which lies in grey
        behind vectors, and `words` (k,), what each image was asked to be.

    Returns:
      The picture.
    """
    exact, reference, words = (
        next((a[name] for a in artifacts.values() if name in a), None)
        for name in ("exact", "reference", "words")
    )
    every = [arrays["samples"] for arrays in artifacts.values()]
    notes, rows = ["every cell starts from the same noise"], list(board.methods)
    if every[0].ndim == 2:
        draw, size = _plotter(every, reference), (PLOT, PLOT)
        notes[0] += "; grey: reference" * (reference is not None)
    else:
        count, size = _fit(every[0], len(board.budgets))
        draw = functools.partial(_draw_images, count=count)
        rows += ["exact"] * (exact is not None)
        if words is not None:
            asked = "from the left: " + ", ".join(
                f"“{bounded(str(each), 120)}”" for each in words[:count]
            )
            notes += textwrap.wrap(asked, len(board.budgets) * size[0] // LETTER)
    costs = [_cost(board, method) for method in rows]
    labels = [bounded(row, DRAWN) for row in rows]
    longest = max(map(len, [*labels, *costs, "evaluations"]))
    title = f"{bounded(board.problem, DRAWN)}: samples of seed {seed}"
    sheet = Sheet(len(rows), len(board.budgets), size, longest, title, len(notes))
    for (row, method), (column, budget) in product(enumerate(rows), enumerate(board.budgets)):
        if (method, budget) in artifacts:
            draw(sheet.axes(row, column), artifacts[method, budget]["samples"])
        elif method == "exact":
            draw(sheet.axes(row, column), exact)
        else:
            text, look = _absence(board.cells.get((method, budget)), seed)
            sheet.axes(row, column).text(0.5, 0.5, text, ha="center", va="center", size=9, **look)
    for line, note in enumerate(notes):
        sheet.write(GAP, 36 + line * LINE, note, color=DIM, size=7.5)
    _captions(sheet, board.budgets, labels, costs)
    return sheet.pixels()


def stack(pictures: list[Pixels]) -> Pixels:
    """Pictures below each other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    pad = [((0, 0), (0, width - picture.shape[1]), (0, 0)) for picture in pictures]
    wide = [np.pad(p, w, constant_values=255) for p, w in zip(pictures, pad, strict=True)]
    return np.concatenate(wide)


def _captions(sheet: Sheet, budgets: list[int], rows: list[str], costs: list[str]) -> None:
    """Names of rows, with what they really cost below, and numbers of columns."""
    for column, budget in enumerate(budgets):
        x, y = sheet.corner(0, column)
        sheet.write(x + sheet.size[0] / 2, y - 12, str(budget), ha="center", weight="bold")
    sheet.write(sheet.label - 12, sheet.head - 12, "evaluations", color=DIM, ha="right")
    for row, (name, cost) in enumerate(zip(rows, costs, strict=True)):
        x, y = sheet.label - 12, sheet.corner(row, 0)[1] + sheet.size[1] / 2
        sheet.write(x, y - 7 * bool(cost), name, ha="right")
        sheet.write(x, y + 8, cost, ha="right", size=7, color=DIM)


def _fit(images: Float[np.ndarray, "k h w *c"], columns: int) -> tuple[int, tuple[int, int]]:
    """How many images a cell shows, and its size in pixels."""
    fit = COLUMNS // columns // _strip(images[:1]).shape[1]
    count = max(1, min(fit, SHOWN, len(images)))
    height, width, _ = _strip(images[:count]).shape
    return count, (width, height)


def _draw_images(axes: Axes, images: Float[np.ndarray, "k h w *c"], *, count: int) -> None:
    """Images at the left of a cell, white where there are fewer than `count`."""
    strip = _strip(images[:count])
    extent = (0, strip.shape[1], strip.shape[0], 0)
    axes.imshow(strip, interpolation="nearest", aspect="auto", extent=extent)
    axes.set(xlim=(0, axes.bbox.width), ylim=(axes.bbox.height, 0))


def _plotter(
    every: list[Float[np.ndarray, "_ d"]], reference: Float[np.ndarray, "m d"] | None
) -> Draw:
    """What draws vectors into a cell: the first two coordinates, those of the reference in grey."""
    limits = _limits(every if reference is None else [reference])

    def draw(axes: Axes, vectors: Float[np.ndarray, "k d"]) -> None:
        axes.spines[:].set(visible=True, color="#DDDDDD")
        if reference is not None:
            axes.scatter(*_plane(reference).T, s=5, color="#C8C8C8", linewidths=0)
        axes.scatter(*_plane(vectors).T, s=5, color=BLUE, alpha=0.7, linewidths=0)
        axes.set(xlim=limits[0], ylim=limits[1])

    return draw


def _strip(images: Float[np.ndarray, "k h w *c"]) -> Pixels:
    """Images side by side, enlarged or reduced by a whole factor."""
    images = np.asarray(images, float)
    images = images[..., None] if images.ndim == 3 else images
    if (k := max(images.shape[1:3]) // (2 * SIDE)) > 1:  # block means
        h, w = images.shape[1] // k, images.shape[2] // k
        blocks = images[:, : h * k, : w * k].reshape(len(images), h, k, w, k, -1)
        images = blocks.mean(axis=(2, 4))
    k = max(1, round(SIDE / max(images.shape[1:3])))
    images = images.repeat(k, axis=1).repeat(k, axis=2)
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    images = np.pad(images, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=1.0)
    strip = np.concatenate(list(images), axis=1)[:, :-2]
    return (255 * np.clip(np.nan_to_num(strip), 0, 1)).round().astype(np.uint8)


def _plane(vectors: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "k 2"]:
    """Two coordinates of each vector; of a scalar, its value and its rank."""
    if vectors.shape[1] > 1:
        return np.asarray(vectors[:, :2])
    ranks = vectors[:, 0].argsort().argsort() / len(vectors)
    return np.column_stack([vectors[:, 0], ranks])


def _limits(every: list[Float[np.ndarray, "_ d"]]) -> Float[np.ndarray, "2 2"]:
    """A frame, the same in all cells: where all but a few stray points are, and some room."""
    points = _plane(np.concatenate(every))
    points = points[np.isfinite(points).all(axis=1)]
    low, high = np.percentile(points, [2, 98], axis=0) if len(points) else np.zeros((2, 2))
    room = 0.35 * (high - low) + 1e-6
    return np.stack([low - room, high + room], axis=1)


def _cost(board: Board, method: str) -> str:
    """What a method really cost, if that is not what the columns say."""
    cells = [(b, board.cells[method, b]) for b in board.budgets if (method, b) in board.cells]
    known = [(b, cell.nfe) for b, cell in cells if np.isfinite(cell.nfe)]
    if all(abs(budget - nfe) < 1e-6 for budget, nfe in known):
        return ""
    return "really " + ", ".join(f"{nfe:.3g}" for _, nfe in known)


def _absence(cell: Cell | None, seed: int) -> tuple[str, dict[str, str]]:
    """Why a cell shows no samples, and in what colour to say it."""
    if cell is not None and seed in cell.errors:
        return "✗ failed", {"color": RED}
    return "—", {"color": DIM}
