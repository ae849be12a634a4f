"""The curves of a training run: rows of numbers in a CSV file, and in TensorBoard's event files.

This file owns the promise that a step appears once, however often the run was killed and resumed.
What the columns mean is the loop's business.
"""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from optdiff.learning.interruption import ResumeError


class Table:
    """A CSV file that rows are appended to, the first column being `step`.

    Opening it to go on from a step drops the rows after that step, the columns with the last of
    them, and a last line that a killed process left torn. A row is with the operating system when
    `append` returns, so that only a power cut can lose it.
    """

    def __init__(self, path: str | Path, step: int):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._columns: list[str] | None = None
        if self.path.exists():
            self._keep_until(step)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row.

        Raises:
          ResumeError: if the columns are not those that the file has, naming both.
        """
        columns = ["step", *values]
        line = ",".join([str(step), *(f"{float(value):.9g}" for value in values.values())])
        if self._columns is None:
            self._columns = columns
            line = ",".join(columns) + "\n" + line
        elif self._columns != columns:
            raise ResumeError(
                f"{self.path} has the columns {self._columns}, but this run measures {columns}: "
                "train into another folder"
            )
        with open(self.path, "a") as file:
            file.write(line + "\n")

    def last(self) -> dict[str, float] | None:
        """The last row, or None if there is none."""
        rows = read(self.path) if self.path.exists() else []
        return rows[-1] if rows else None

    def _keep_until(self, step: int) -> None:
        whole, _, _ = self.path.read_text().rpartition("\n")
        header, *rows = whole.split("\n")
        kept = [row for row in rows if int(row.partition(",")[0]) <= step]
        self._columns = header.split(",") if kept else None
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in ([header] if kept else []) + kept))
        os.replace(partial, self.path)


class Curves:
    """Where the numbers of a run go: `curves.csv`, `scores.csv` and the folder `tensorboard`.

    Args:
      folder: of the run.
      step: where the run goes on; whatever was written about later steps is dropped.
    """

    def __init__(self, folder: str | Path, step: int):
        folder = Path(folder)
        self._curves = Table(folder / "curves.csv", step)
        self._scores = Table(folder / "scores.csv", step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        last = self._curves.last()
        self.seconds = last["seconds"] if last else 0.0

    def add(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """A row of `curves.csv`: the metrics, and the time of training so far, of all sessions."""
        row = {"seconds": self.seconds + seconds, "loss": metrics["loss"], **metrics}
        self._curves.append(step, row)
        for name, value in metrics.items():
            self._board.add_scalar(f"train/{name}", float(value), step)
        self._board.flush()

    def watched(self, step: int, values: Mapping[str, Any]) -> None:
        """What `watch` returned: numbers are a row of `scores.csv`, the rest are pictures."""
        scores = {name: value for name, value in values.items() if np.ndim(value) == 0}
        if scores:
            self._scores.append(step, scores)
        for name, value in values.items():
            if name in scores:
                self._board.add_scalar(f"scores/{name}", float(value), step)
            else:
                self._board.add_image(name, np.asarray(value), step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        self._board.close()


def read(path: str | Path) -> list[dict[str, float]]:
    """The rows of such a file, by column; an empty file has none.

    Raises:
      ValueError: if a line has not the columns of the first, naming file and line.
    """
    header, *rows = [*csv.reader(io.StringIO(Path(path).read_text()))] or [[]]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"{path}:{number}: {len(row)} fields for {len(header)} columns")
    return [dict(zip(header, map(float, row), strict=True)) for row in rows]


def mean_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean, by name, of the metrics of several steps."""
    return {
        name: math.fsum(float(step[name]) for step in metrics) / len(metrics) for name in metrics[0]
    }
