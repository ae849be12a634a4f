"""Matrices of linear samplers side by side: a row for each step, a column for each gradient."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

INK, DIM = "#222222", "#707070"
COLUMNS, SIDE = 4, 2.1  # panels in a row, inches of a panel
STRONG = 2.5  # weights beyond this are as dark as can be


def matrices(shown: Mapping[str, Float[np.ndarray, "steps e"]]) -> Figure:
    """Draw the weights of each step over the gradients seen, in units of DDIM's step.

    Args:
      shown: (n - 1, e) by name; a row that keeps the noise level sums to 1. Where a step makes
        several evaluations there are as many columns for it.

    Returns:
      The figure: blue adds a gradient, red takes it back, and DDIM is a blue diagonal.
    """
    rows = -(-len(shown) // COLUMNS)
    size = (COLUMNS * (SIDE + 0.25) + 0.35, rows * (SIDE + 0.45) + 0.75)
    figure = Figure(figsize=size, facecolor="white")
    grid = {"left": 0.45 / size[0], "right": 1 - 0.1 / size[0], "bottom": 0.4 / size[1]}
    grid |= {"top": 1 - 0.85 / size[1], "wspace": 0.12, "hspace": 0.28}
    panels = figure.subplots(rows, COLUMNS, gridspec_kw=grid, squeeze=False).ravel()
    for panel, (name, weights) in zip(panels, shown.items(), strict=False):
        _draw(panel, name, np.asarray(weights))
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel in panels[::COLUMNS]:
        panel.set_ylabel("step", size=8, color=DIM)
    for panel in panels[max(0, len(shown) - COLUMNS) : len(shown)]:
        panel.set_xlabel("gradient", size=8, color=DIM)
    left, top = 0.12 / size[0], 1 - 0.2 / size[1]
    title = "What each step takes of the gradients seen so far, in units of DDIM's step"
    figure.text(left, top, title, size=11, weight="bold", color=INK, va="center")
    note = "blue adds, red takes back; zero is left blank"
    figure.text(left, 1 - 0.42 / size[1], note, size=8.5, color=DIM, va="center")
    return figure


def _draw(panel, name: str, weights: np.ndarray) -> None:
    panel.imshow(weights, cmap="RdBu", vmin=-STRONG, vmax=STRONG, aspect="auto")
    panel.set_title(name, size=9, color=INK, loc="left", pad=4)
    steps, gradients = weights.shape
    panel.set(xticks=range(gradients), yticks=range(steps))
    panel.tick_params(labelsize=6, length=0, labelcolor=DIM, pad=2)
    panel.spines[:].set_color("#D0D0D0")
    text, digits = (6.5, ".2f") if gradients <= 8 else (5.5, ".2g")  # as its column is wide
    for (i, j), weight in np.ndenumerate(weights):
        if abs(weight) >= 5e-3:
            colour = "white" if abs(weight) > 0.6 * STRONG else INK
            look = {"size": text, "color": colour, "ha": "center", "va": "center"}
            panel.text(j, i, f"{weight:{digits}}", **look)
