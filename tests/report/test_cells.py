"""Intervals are bootstraps over seeds, and ties are judged seed by seed."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from report_rows import cells_of, job

from optdiff.report import report
from optdiff.report.cells import boards, interval, marks
from optdiff.report.reading import higher_is_better
from optdiff.results import append, load


@pytest.mark.parametrize("n", [8, 12, 30])
def test_interval_agrees_with_scipy(n):
    values = np.random.default_rng(n).gamma(2.0, size=n)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=100_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = interval(values)
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.04 * values.std())


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=5), st.floats(-3, 3), st.floats(0.1, 9))
@settings(deadline=None)
def test_interval_of_few_seeds_is_exact(values, shift, scale):
    values = np.array(values)
    mean, low, high = interval(values)
    assert values.min() - 1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= values.max() + 1e-9
    if len(values) <= 3:  # the extreme resample, n times the same seed, is likelier than 1 in 40
        assert (low, high) == pytest.approx((values.min(), values.max()), abs=1e-12)
    moved = interval(shift + scale * values)
    assert moved == pytest.approx([shift + scale * v for v in (mean, low, high)], abs=1e-9)
    assert interval(values[::-1].copy()) == pytest.approx((mean, low, high), abs=1e-12)


def test_interval_covers_the_mean():
    draw = np.random.default_rng(0)
    hits = [
        low <= 0 <= high for _, low, high in (interval(draw.normal(size=20)) for _ in range(400))
    ]
    assert 0.88 < np.mean(hits) < 0.98  # a percentile bootstrap of 20 seeds covers about 93%


def test_ties_are_judged_seed_by_seed(tmp_path):
    """Seeds differ far more than samplers do: intervals overlap all over, differences do not."""
    level = [1.0, 2.0, 3.0, 4.0]
    gap = {"best": [0] * 4, "worse": [0.02, 0.03, 0.02, 0.04], "equal": [0.1, -0.1, 0.2, -0.1]}
    for name, gaps in gap.items():
        for seed in range(4):
            append(tmp_path, job(name, 8, seed, level[seed] + gaps[seed]))
    (board,) = boards(load(tmp_path))
    ends = {name: interval(np.array(level) + gap[name]) for name in gap}
    assert ends["best"].high > ends["worse"].low + 1  # unpaired, nobody could tell them apart
    assert marks(board, "w2", 8) == {"best": "best", "equal": "tie"}


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
        ("precision", 0.95, {"blur": 0.99, "good": 0.93, "bad": 0.6}, {"good": "best"}),
        ("density", 0.9, {"blur": 2.9, "good": 1.0, "bad": 0.5}, {"good": "best"}),
        # All that reach the floor are as good as real samples.
        ("w2", 0.2, {"a": 0.1, "b": 0.19, "c": 0.3}, {"b": "best", "a": "tie"}),
        ("w2", 0.01, {"a": 0.1, "b": 0.19, "c": 0.3}, {"a": "best"}),
    ],
)
def test_what_beats_real_samples_is_not_better_than_they(
    tmp_path, metric, floor, of_method, expected
):
    for (name, value), seed in itertools.product(of_method.items(), range(3)):
        values = {metric: value + seed * 1e-3}
        append(tmp_path, job(name, 8, seed, metrics=values, floor={metric: floor}))
    (board,) = boards(load(tmp_path))
    assert marks(board, metric, 8) == expected
    assert board.methods[0] in expected and board.methods[-1] not in expected
    assert "closest to real vs real" in report(tmp_path)


def test_higher_is_better_where_samples_are_counted(tmp_path):
    for seed in range(3):
        append(tmp_path, job("good", 8, seed, metrics={"recall": 0.9 + seed / 100}, floor={}))
        append(tmp_path, job("bad", 8, seed, metrics={"recall": 0.2 + seed / 100}, floor={}))
    (board,) = boards(load(tmp_path))
    assert marks(board, "recall", 8) == {"good": "best"} and board.methods == ["good", "bad"]


def test_directions_are_read_off_the_last_word():
    up = ["coverage", "precision_5", "accuracy", "text_similarity", "clip_score", "recall@10"]
    down = ["frechet", "coverage_error", "dissimilarity", "score_matching", "fid_score", "mmd"]
    assert all(map(higher_is_better, up)) and not any(map(higher_is_better, down))
