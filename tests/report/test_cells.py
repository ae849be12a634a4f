"""Who is best, who ties, who does not compete: by hand."""

import itertools

import numpy as np
import pytest
from report_rows import cells_of, job

from optdiff.report import report
from optdiff.report.cells import boards
from optdiff.report.intervals import interval, marks
from optdiff.report.reading import higher_is_better
from optdiff.results import append, load


def test_ties_are_judged_seed_by_seed(tmp_path):
    """Seeds differ far more than samplers do: intervals overlap all over, differences do not."""
    level = [1.0, 2.0, 3.0, 4.0]
    gap = {"best": [0] * 4, "worse": [0.025, 0.03, 0.025, 0.03], "equal": [0.1, -0.1, 0.2, -0.1]}
    for name, gaps in gap.items():
        for seed in range(4):
            append(tmp_path, job(name, 8, seed, level[seed] + gaps[seed]))
    (board,) = boards(load(tmp_path))
    ends = {name: interval(np.array(level) + gap[name]) for name in gap}
    assert ends["best"].high > ends["worse"].low + 1  # unpaired, nobody could tell them apart
    assert marks(board, "w2", 8) == {"best": "best", "equal": "tie", "worse": "worse"}


def test_only_whole_cells_compete(tmp_path):
    for seed, value in enumerate([1.0, 1.1, 1.2]):
        append(tmp_path, job("full", 8, seed, value))
        append(tmp_path, job("near", 8, seed, value + 0.1 * (seed - 0.9)))
    for seed in (0, 1):  # lower on average, for it misses the hard seed
        append(tmp_path, job("part", 8, seed, [1.01, 1.09][seed]))
    append(tmp_path, job("lame", 8, 0, 0.5))
    append(tmp_path, job("lame", 8, 1, error="ValueError: no"))
    (board,) = boards(load(tmp_path))
    assert marks(board, "w2", 8) == {"full": "best", "near": "tie"}
    text = cells_of(report(tmp_path), "w2")
    assert text["part", "8"].endswith("2/3") and text["lame", "8"] == "0.500 1/3 ✗1"


@pytest.mark.parametrize(
    "metric, floor, of_method, expected",
    [
        # Blurred samples have more precision than real ones: further off than `good` is below.
        (
            "precision",
            0.95,
            {"blur": 0.99, "good": 0.93, "bad": 0.6},
            {"good": "best", "bad": "worse"},
        ),
        ("density", 0.9, {"blur": 2.9, "good": 1.0, "bad": 0.5}, {"good": "best", "bad": "worse"}),
        # All that reach the floor are as good as real samples.
        ("w2", 0.2, {"a": 0.1, "b": 0.19, "c": 0.3}, {"b": "best", "a": "tie", "c": "worse"}),
        ("w2", 0.01, {"a": 0.1, "b": 0.19, "c": 0.3}, {"a": "best", "b": "worse", "c": "worse"}),
    ],
)
def test_what_beats_real_samples_is_not_better_than_they(
    tmp_path, metric, floor, of_method, expected
):
    for (name, value), seed in itertools.product(of_method.items(), range(3)):
        values = {metric: value + seed * 1e-3}
        append(tmp_path, job(name, 8, seed, metrics=values, floor={metric: floor}))
    (board,) = boards(load(tmp_path))
    marked = marks(board, metric, 8)
    assert {name: marked[name] for name in expected} == expected
    assert expected[board.methods[0]] != "worse" and marked[board.methods[-1]] == "worse"
    assert "closest to real vs real" in report(tmp_path)


def test_higher_is_better_where_samples_are_counted(tmp_path):
    for seed in range(3):
        append(tmp_path, job("good", 8, seed, metrics={"recall": 0.9 + seed / 100}, floor={}))
        append(tmp_path, job("bad", 8, seed, metrics={"recall": 0.2 + seed / 100}, floor={}))
    (board,) = boards(load(tmp_path))
    assert marks(board, "recall", 8) == {"good": "best", "bad": "worse"} and board.methods == [
        "good",
        "bad",
    ]


def test_directions_are_read_off_the_last_word():
    up = ["coverage", "precision_5", "accuracy", "text_similarity", "clip_score", "recall@10"]
    down = ["frechet", "coverage_error", "dissimilarity", "score_matching", "fid_score", "mmd"]
    assert all(map(higher_is_better, up)) and not any(map(higher_is_better, down))
