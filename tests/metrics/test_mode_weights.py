"""Mode weights against scikit-learn's mixtures and neighbours."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from optdiff.metrics import mode_weights


def draw(rng, count, means, weights, stds):
    mode = rng.choice(len(weights), size=count, p=weights)
    return means[mode] + stds[mode, None] * rng.normal(size=(count, means.shape[1]))


@pytest.fixture
def mixture():
    """Three overlapping modes of unlike widths."""
    means = 1.5 * np.random.default_rng(0).normal(size=(3, 4))
    return means, np.array([0.6, 0.3, 0.1]), np.array([0.5, 1.0, 2.0])


def test_responsibilities_agree_with_sklearn(mixture):
    means, weights, stds = mixture
    x = np.random.default_rng(1).normal(size=(80, 4)) * 3
    oracle = GaussianMixture(3, covariance_type="spherical")
    oracle.means_, oracle.weights_, oracle.precisions_cholesky_ = means, weights, 1 / stds
    found = oracle.predict_proba(x).mean(axis=0)
    values = mode_weights(x, means, weights, stds)
    assert values["mode_error"] == pytest.approx(np.abs(found - weights).sum() / 2, rel=1e-9)


def test_narrow_modes_count_nearest_means_as_sklearn_finds_them():
    rng = np.random.default_rng(2)
    means, x = rng.normal(size=(5, 3, 3)), rng.normal(size=(200, 3, 3))
    weights = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    oracle = NearestNeighbors(n_neighbors=1).fit(means.reshape(5, 9))
    nearest = oracle.kneighbors(x.reshape(200, 9), return_distance=False)[:, 0]
    found = np.bincount(nearest, minlength=5) / 200
    values = mode_weights(x, means, weights, np.full(5, 1e-3))
    assert values["mode_error"] == pytest.approx(np.abs(found - weights).sum() / 2, rel=1e-12)


def test_unbiased_where_modes_overlap_as_counting_nearest_means_is_not(mixture):
    means, weights, stds = mixture
    x = draw(np.random.default_rng(3), 40_000, means, weights, stds)
    counted = mode_weights(x, means, weights, np.full(3, 1e-3))["mode_error"]
    assert mode_weights(x, means, weights, stds)["mode_error"] < 0.01 < 0.03 < counted


def test_dropped_modes_are_counted_and_their_weight_is_the_distance():
    rng = np.random.default_rng(4)
    means, weights = 20 * np.eye(6), np.full(6, 1 / 6)
    x = np.repeat(means[:4], 50, axis=0) + rng.normal(size=(200, 6))
    values = mode_weights(x, means, weights, np.ones(6))
    assert values == pytest.approx({"mode_error": 1 / 3, "missed_modes": 2.0})


def test_a_starved_mode_is_missed_below_its_share():
    mixture = np.array([[0.0], [10.0]]), np.array([0.8, 0.2]), np.ones(2)
    x = np.zeros((100, 1))
    x[:5] = 10  # a quarter of the 20 due
    assert mode_weights(x, *mixture)["missed_modes"] == 0
    assert mode_weights(x, *mixture, missed_below=0.3)["missed_modes"] == 1
    x[0] = 0
    assert mode_weights(x, *mixture)["missed_modes"] == 1


def test_runaway_samples_and_modes_of_no_weight_leave_no_nan():
    means, weights = np.array([[0.0], [10.0], [20.0]]), np.array([0.5, 0.5, 0.0])
    x = np.array([[-1e6], [1e6], [20.0]])
    values = mode_weights(x, means, weights, np.ones(3))
    assert values["mode_error"] == pytest.approx(1 / 6)
    assert values["missed_modes"] == 0


@pytest.mark.parametrize(
    ("means", "weights", "stds", "message"),
    [
        (np.zeros((2, 3)), np.array([0.5, 0.6]), np.ones(2), "must sum to 1, not 1.1"),
        (np.zeros((2, 3)), np.array([1.5, -0.5]), np.ones(2), "must not be negative"),
        (np.zeros((2, 4)), np.array([0.5, 0.5]), np.ones(2), r"means \(2, 4\)"),
        (np.zeros((3, 3)), np.array([0.5, 0.5]), np.ones(2), r"weights \(2,\)"),
        (np.zeros((1, 3)), np.ones(1), np.zeros(1), "must be positive"),
        (np.zeros((1, 3)), np.ones(1), np.ones(2), "one for each of 1 modes"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_mixture_that_is_none_is_refused(means, weights, stds, message):
    with pytest.raises(ValueError, match=message):
        mode_weights(np.zeros((4, 3)), means, weights, stds)
