"""MMD against scikit-learn's kernels, its lack of bias, and what sets its bandwidth."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from optdiff.metrics import mmd


def sklearn_mmd(x, y, scales):
    distances = euclidean_distances(y)[np.triu_indices(len(y), 1)]
    gammas = [1 / (2 * s**2 * np.median(distances**2)) for s in scales]

    def mean(a, b, weights):
        return np.mean([np.sum(weights * rbf_kernel(a, b, gamma=g)) for g in gammas])

    def others(n):
        return (1 - np.eye(n)) / (n * (n - 1))

    between = mean(x, y, np.full((len(x), len(y)), 1 / (len(x) * len(y))))
    return mean(x, x, others(len(x))) + mean(y, y, others(len(y))) - 2 * between


@pytest.mark.parametrize(("b", "n"), [(60, 60), (40, 75), (2, 90)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 2.0), (0.3, 4.0)])
def test_agrees_with_sklearn_kernels(b, n, scales):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(b, 5)) + 0.3, rng.normal(size=(n, 5))
    assert mmd(x, y, bandwidths=scales) == pytest.approx(sklearn_mmd(x, y, scales), abs=1e-13)


def test_mean_over_repeats_is_zero_for_equal_distributions():
    rng = np.random.default_rng(1)
    values = [mmd(rng.normal(size=(20, 3)), rng.normal(size=(35, 3))) for _ in range(600)]
    error = np.std(values) / np.sqrt(len(values))
    bias_of_v_statistic = 0.4 * (1 / 20 + 1 / 35)  # (1 - E k) of each set, and E k is about 0.6
    assert abs(np.mean(values)) < 4 * error < 0.1 * bias_of_v_statistic
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_bandwidth_comes_from_the_reference_alone():
    # Samples far away and far apart: only the reference's own term is left, whatever they are.
    rng = np.random.default_rng(2)
    y = rng.normal(size=(50, 3))
    far = [scale * rng.normal(size=(30, 3)) for scale in (1e6, 1e30)]
    first, second = (mmd(x, y) for x in far)
    assert first == second > 0


def test_a_reference_without_scale_is_refused():
    with pytest.raises(ValueError, match="reference: more than half of its pairs coincide"):
        mmd(np.ones((5, 2)), np.ones((6, 2)))


@pytest.mark.parametrize("bandwidths", [(), (1.0, 0.0), (-1.0,)])
def test_bandwidths_must_be_positive(bandwidths):
    with pytest.raises(ValueError, match="need one or more, all positive"):
        mmd(np.zeros((5, 2)), np.zeros((5, 2)), bandwidths=bandwidths)
