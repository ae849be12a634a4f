"""Rows and artifacts into a table, figures and a picture of samples.

`report` reads a study's log and writes what people look at; it runs nothing and imports neither
models nor samplers. Grouping is in `cells`, statistics in `intervals`, text in `table`, vector
figures in `figures`, samples in `pictures`; `literal` takes care of what users wrote.
"""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from optdiff.provenance import source_digest
from optdiff.report import figures, literal, pictures, table
from optdiff.report.cells import Board, boards
from optdiff.report.frames import svg
from optdiff.results import Row, load, load_artifact, write

__all__ = ["report"]

Artifacts = Callable[[str], dict[str, np.ndarray] | None]
Traces = Mapping[str, Mapping[str, np.ndarray]]


def report(
    study: str | Path,
    *,
    primary: str | None = None,
    source: str | None = None,
    write: Callable[[Path, Mapping[str, bytes]], None] = write,
) -> str:
    """Write `table.md`, `table.csv`, `figure.svg`, `samples.png` and `diagnostics.svg` of a study.

    Each file is written whole or not at all, and the same log gives the same bytes. The two that
    need artifacts are left out where none has what they show.

    Args:
      study: the folder, `results/<study>`.
      primary: the metric that comes first and orders the methods; by default the first of a row.
      source: digest of the present source, by which rows are called stale; by default the
        package's own.
      write: puts files by name into the folder; what it raises is raised.

    Returns:
      The primary table of each problem and the notes, for a terminal: the head of `table.md`.

    Raises:
      ValueError: if the study has no rows, or none has the primary metric.

    >>> print(report("results/quickstart", primary="sliced_w2"))  # doctest: +SKIP
    """
    study = Path(study)
    damage: list[str] = []
    rows = load(study, damage.append)
    if not rows:
        raise ValueError(f"{study / 'rows.jsonl'} has no rows; run a sweep of this study first")
    board_list = boards(rows, primary)
    artifacts = partial(_artifact, study, damage)
    files = {
        "table.csv": table.tidy(board_list).encode("utf-8", "replace"),
        "figure.svg": svg(figures.quality(board_list)),
    }
    sheets = (_samples(artifacts, board) for board in board_list)
    if shown := [sheet for sheet in sheets if sheet is not None]:
        files["samples.png"] = _png(pictures.stack(shown))
    traces = {b.problem: traced for b in board_list if (traced := _traces(artifacts, b))}
    if traces:
        files["diagnostics.svg"] = svg(figures.diagnostics(board_list, traces))
    head, rest = _tables(study, rows, board_list, source or source_digest(), damage)
    files["table.md"] = (head + rest).encode("utf-8", "replace")
    write(study, files)
    return head


def _tables(
    study: Path, rows: list[Row], board_list: list[Board], source: str, damage: list[str]
) -> tuple[str, str]:
    """The text of `table.md`: what a terminal shows too, and the other metrics."""
    first = [table.markdown(board, board.metrics[0]) for board in board_list]
    notes = table.notes(rows, board_list, source, damage)
    head = [f"# {literal.markdown(study.resolve().name)}", *first, notes]
    rest = [table.markdown(board, metric) for board in board_list for metric in board.metrics[1:]]
    rest = ["", "## Other metrics", *rest] if rest else [""]
    return "\n\n".join(head) + "\n", "\n\n".join(rest)[1:]


def _artifact(study: Path, damage: list[str], key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a job; None where there are none, or where `damage` says what is wrong."""
    try:
        return load_artifact(study, key)
    except ValueError as error:
        if str(error) not in damage:
            damage.append(str(error))
        return None


def _samples(artifacts: Artifacts, board: Board) -> pictures.Pixels | None:
    """The picture of a problem's samples, of the seed that most cells have."""

    def having(seed: int) -> dict[tuple[str, int], str]:
        return {place: cell.keys[seed] for place, cell in board.cells.items() if seed in cell.keys}

    seed = max(board.seeds, key=lambda seed: (len(having(seed)), -seed))
    loaded = {place: artifacts(key) for place, key in having(seed).items()}
    shown = {place: arrays for place, arrays in loaded.items() if arrays and "samples" in arrays}
    return pictures.samples(board, seed, shown) if shown else None


def _traces(artifacts: Artifacts, board: Board) -> tuple[int, Traces] | None:
    """The largest budget at which most methods have traces, and these, all seeds side by side."""
    best = None
    for budget in reversed(board.budgets):
        traces = {}
        for method in board.methods:
            cell = board.cells.get((method, budget))
            seeds = [artifacts(key) for key in cell.keys.values()] if cell else []
            seeds = [arrays for arrays in seeds if arrays and "sigma" in arrays]
            seeds = [a for a in seeds if a["sigma"].shape == seeds[0]["sigma"].shape]
            if seeds:
                sigma = seeds[0]["sigma"]  # (n,), or (n, k) where samples have their own levels
                sigma = np.median(sigma.reshape(len(sigma), -1), axis=1)
                traces[method] = {"sigma": sigma} | {
                    name: np.concatenate([arrays[name] for arrays in seeds], axis=1)
                    for name, _ in figures.TRACES
                    if all(name in arrays for arrays in seeds)
                }
        if traces and (best is None or len(traces) > len(best[1])):
            best = budget, traces
        if best and len(best[1]) == len(board.methods):
            break
    return best


def _png(pixels: pictures.Pixels) -> bytes:
    """A picture as PNG, without the metadata that would differ between machines."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png", metadata={"Software": None})
    return buffer.getvalue()
