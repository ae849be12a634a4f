"""Intervals cover and equal methods tie: from rows that a simulation writes to the table's words.

The simulation knows nothing of how intervals are made. Methods share a quarter of their samples; a
metric is a mean of errors with a heavy tail, or a share near 1.
"""

import collections
import csv

import numpy as np
import pytest
from report_rows import job

from optdiff.report import table
from optdiff.report.cells import boards
from optdiff.report.intervals import interval, share_interval
from optdiff.results.row import settled

METHODS, SAMPLES, GROUPS = 5, 64, 8
COLUMNS, TOGETHER = 400, 50  # so many of a table
LAWS = {
    "mean_error": lambda draw, shape: draw.gamma(0.5, 2.0, shape),  # of mean 1
    "accuracy": lambda draw, shape: (draw.random(shape) < 0.9).astype(float),
}
PLAIN = job(floor={}, samples=SAMPLES)
TRUTH = {"mean_error": 1.0, "accuracy": 0.9}


def rows_of(metric, draw, seeds, groups, column=1):
    """Equal methods on some seeds; of a mean, a group's pull is its own mean less that of all."""
    for seed in range(seeds):
        common = LAWS[metric](draw, SAMPLES)
        own = LAWS[metric](draw, (METHODS, SAMPLES))
        scores = np.where(np.arange(SAMPLES) % 32 < 8, common, own)
        pulls = scores.reshape(METHODS, -1, GROUPS).mean(1) - scores.mean(1, keepdims=True)
        for method, (mine, pull) in enumerate(zip(scores, pulls.tolist(), strict=True)):
            row = PLAIN | {"sampler": f"m{method}", "seed": seed, "nfe_asked": column}
            row |= {"metrics": {metric: mine.mean()}, "spread": {metric: pull} if groups else {}}
            yield settled(row)


def lines_of(rows):
    return list(csv.DictReader(table.tidy(boards(list(rows))).splitlines()))


CASES = [(seeds, "mean_error", True) for seeds in (2, 3, 5)]
CASES += [(seeds, "mean_error", False) for seeds in (2, 5)]
CASES += [(2, "accuracy", True), (5, "accuracy", True), (3, "accuracy", False)]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "metric", "groups"), CASES)
def test_intervals_cover_and_equal_methods_tie(metric, seeds, groups):
    draw, covered, apart = np.random.default_rng(seeds), [], []
    for _ in range(COLUMNS // TOGETHER):
        rows = (r for c in range(TOGETHER) for r in rows_of(metric, draw, seeds, groups, c + 1))
        columns = collections.defaultdict(list)
        for line in lines_of(rows):
            covered.append(float(line["low"]) <= TRUTH[metric] <= float(line["high"]))
            columns[line["nfe_asked"]].append(line["mark"])
        for marks in columns.values():
            assert marks.count("best") == 1 and set(marks) <= {"best", "tie", "worse"}
            apart.append([mark == "worse" for mark in marks])
    assert np.shape(apart) == (COLUMNS, METHODS)
    assert np.mean(covered) >= 0.93
    if groups or metric != "accuracy":  # two seeds that agree to the sample say too little to miss
        assert np.mean(covered) <= 0.97
    assert np.mean(apart) <= 0.06
    assert np.mean(np.any(apart, axis=1)) <= 0.05 + 3 * np.sqrt(0.05 / COLUMNS)


def test_what_differs_is_told_apart_where_groups_say_so():
    """Two seeds of 64, the second method worse by 2: by seeds alone nobody could tell."""
    for groups, mark in {True: "worse", False: "tie"}.items():
        rows = list(rows_of("mean_error", np.random.default_rng(1), 2, groups))
        for row in rows:
            row["metrics"]["mean_error"] += 2.0 * (row["sampler"] == "m1")
        assert {line["method"]: line["mark"] for line in lines_of(rows)}["m1"] == mark


def test_a_mean_is_the_values_whatever_its_groups():
    """Groups of unequal size pull unequally, and their pulls do not sum to nothing."""
    rows = [
        settled(
            PLAIN | {"seed": seed, "metrics": {"w2": value}, "spread": {"w2": [3.0, -1.0, 0.5]}}
        )
        for seed, value in enumerate([1.0, 2.0])
    ]
    (line,) = csv.DictReader(table.tidy(boards(rows)).splitlines())
    assert float(line["mean"]) == pytest.approx(1.5)


def test_intervals_are_students_and_wilsons():
    values = np.array([1.0, 2.0, 3.0, 6.0])
    mean, low, high = interval(values)
    half = 3.182446 * np.std(values, ddof=1) / 2  # of the tables
    assert (mean, low, high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-6)
    assert interval(np.array([1.0])) == (1.0, None, None)
    # Wilson's ends are where p is just so far from the mean as t allows a binomial share of p.
    shares = np.array([0.9, 1.0, 0.95, 0.99, 0.97, 0.93, 0.96, 0.98])
    mean, low, high = share_interval(shares, 800)
    size = mean * (1 - mean) / (np.var(shares, ddof=1) / 8)
    for end in (low, high):
        assert abs(end - mean) == pytest.approx(
            2.364624 * np.sqrt(end * (1 - end) / size), rel=1e-6
        )
    assert 0 < low < mean < high < 1
