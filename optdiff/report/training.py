"""The curves of training runs as one figure: a panel a network, loss and the metrics that it means.

This file owns panels and axes; the numbers are those of `curves.csv`, the style is `frames`'.
"""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optdiff.report.frames import DIM, INK, PALETTE, POINTS, svg

SHOWN = {
    "judge": ("digit", "ink", "paper"),
    "clip": ("retrieval",),
    "vae": ("psnr",),
    "unet": (),
}
"""Columns beside the loss, by stage: shares, and decibels of the autoencoder."""

TITLES = {
    "judge": "judge: cross-entropy, share right",
    "clip": "CLIP: contrastive loss, share of a batch found",
    "vae": "autoencoder: loss, PSNR (dB)",
    "unet": "UNet: denoising loss",
}


Rows = Sequence[Mapping[str, float]]


def training_figure(curves: Mapping[str, Rows]) -> bytes:
    """Curves by stage as SVG: the loss on a logarithmic axis at the left of each panel, what else
    was watched at the right.

    Args:
      curves: rows for each stage, at least one, with `step` and `loss` among their columns.
    """
    figure = Figure(figsize=(9.6, 2.5 * -(-len(curves) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(curves) // 2), 2, squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    for axes, (stage, rows) in zip(grid.flat, curves.items(), strict=False):
        _panel(axes, stage, rows)
    return svg(figure)


def _panel(axes: Axes, stage: str, rows: Rows) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    steps = columns["step"]
    axes.set_title(TITLES.get(stage, stage), fontsize=POINTS + 1, loc="left", color=INK)
    axes.plot(steps, columns["loss"], color=PALETTE[0], linewidth=1.6)
    axes.set_yscale("log")
    axes.set_xlim(0, steps[-1])
    axes.set_xlabel("updates", fontsize=POINTS, color=DIM)
    axes.set_ylabel("loss", fontsize=POINTS, color=PALETTE[0])
    axes.tick_params(labelsize=POINTS - 1, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    names = [name for name in SHOWN.get(stage, ()) if name in columns]
    if not names:
        return
    beside = axes.twinx()
    beside.spines[["top", "left"]].set_visible(False)
    beside.tick_params(labelsize=POINTS - 1)
    for name, colour in zip(names, PALETTE[1:], strict=False):
        beside.plot(steps, columns[name], color=colour, linewidth=1.2, label=name)
    beside.legend(fontsize=POINTS - 1, frameon=False, loc="center right")
