"""Memorization against scikit-learn's neighbours, and what it says of copies and of new data."""

import importlib

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from optdiff.metrics import memorization
from optdiff.metrics.points import squared_distances


def draws(seed, *counts, d=6):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(count, d)) for count in counts]


@pytest.mark.parametrize("percentile", [1.0, 10.0, 50.0])
def test_agrees_with_sklearn_neighbours(percentile):
    x, training, held_out = draws(0, 150, 400, 300)
    x[::3] = training[:50] + 0.3 * x[::3]
    tree = NearestNeighbors(n_neighbors=1).fit(training)
    near, honest = (tree.kneighbors(points)[0][:, 0] for points in (x, held_out))
    expected = (near < np.percentile(honest, percentile)).mean()
    assert memorization(x, training, held_out, percentile=percentile) == expected
    assert 0 < expected < 1


def test_new_data_get_the_percentile_and_copies_everything():
    rows = [memorization(*draws(seed, 500, 300, 500), percentile=5.0) for seed in range(20)]
    assert np.mean(rows) == pytest.approx(0.05, abs=0.01)
    x, training, held_out = draws(3, 100, 300, 500)
    assert memorization(training[:100], training, held_out) == 1.0
    assert memorization(x + 50.0, training, held_out) == 0.0


def test_many_training_examples_are_searched_in_parts(monkeypatch):
    x, training, held_out = draws(1, 70, 200, 90)
    whole = memorization(x, training, held_out, percentile=30.0)
    # By its name in sys.modules: the package shows the function in the module's place.
    module = importlib.import_module("optdiff.metrics.memorization")
    asked = []
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 200 * 16)
    monkeypatch.setattr(
        module, "squared_distances", lambda x, y: asked.append(len(x)) or squared_distances(x, y)
    )
    assert memorization(x, training, held_out, percentile=30.0) == whole
    assert asked == [16] * 4 + [6] + [16] * 5 + [10]


def test_what_cannot_be_compared_is_refused(unchecked):
    x, training, held_out = draws(2, 10, 10, 10)
    with pytest.raises(ValueError, match=r"samples \(10, 5\), training \(10, 6\), held_out"):
        memorization(x[:, :5], training, held_out)
    with pytest.raises(ValueError, match="percentile=0: must lie"):
        memorization(x, training, held_out, percentile=0)
