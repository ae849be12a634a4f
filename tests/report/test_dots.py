"""Many methods as rows of dots: each is named once, and each mean is where its axis says."""

import itertools

import numpy as np
import pytest
from readable import assert_readable
from report_rows import job

from optdiff.report import figures
from optdiff.report.cells import boards
from optdiff.results import append, load

MANY = figures.MANY + 4
BUDGETS = [4, 8, 16]
METRICS = ["w2", "mmd", "coverage", "energy", "frechet"]


def value(metric, i, nfe):
    error = (1 + i) / nfe
    if metric == "w2" and i == MANY - 1:
        return 1e9  # diverged
    return {"mmd": error - 0.5, "coverage": 1 / (1 + error)}.get(metric, error)


@pytest.fixture
def board(tmp_path):
    for i, nfe in itertools.product(range(MANY), BUDGETS):
        metrics = {name: value(name, i, nfe) for name in METRICS}
        real = {"floor": {"w2": 0.05, "mmd": -1e-3}}
        append(tmp_path, job(f"a_sampler_{i}", nfe, metrics=metrics, **real))
    (found,) = boards(load(tmp_path))
    return found


def test_every_mean_is_a_dot_in_the_row_of_its_method(board):
    figure = figures.quality([board])
    assert_readable(figure)
    assert len(figure.axes) == len(METRICS)
    for axes, metric in zip(figure.axes, METRICS, strict=True):
        texts = [text.get_text() for text in axes.texts]
        assert metric in texts
        dots = np.concatenate([dot.get_offsets() for dot in axes.collections])
        drawn = {(round(x, 9), board.methods[int(row)]) for x, row in dots}
        edge = axes.get_xlim()[1]
        due = {
            (round(min(value(metric, i, nfe), edge), 9), f"a_sampler_{i}")
            for i, nfe in itertools.product(range(MANY), BUDGETS)
        }
        assert drawn == due
    scales = [axes.get_xscale() for axes in figure.axes]
    assert scales == ["log", "symlog", "function", "log", "log"]
    notes = [" ".join(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert "diverged" in notes[0] and "linear within" in notes[1] and "higher is" in notes[2]
    assert ["real vs real" in note for note in notes] == [True, True, False, False, False]


def test_methods_are_named_at_the_left_and_budgets_above(board):
    figure = figures.quality([board])
    lefts = [figure.axes[0], figure.axes[4]]  # the first of each row
    for axes in figure.axes:
        names = [tick.get_text() for tick in axes.get_yticklabels() if tick.get_text()]
        assert names == (board.methods if axes in lefts else [])
        shown = " ".join(text.get_text() for text in axes.texts)
        assert all(f"● {budget}" in shown for budget in BUDGETS) == (axes in lefts)
