"""Energy distance against scipy, in one dimension and in many, and its lack of bias."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import energy_distance as scipy_energy_distance

from optdiff.metrics import energy_distance


@pytest.mark.parametrize(("b", "n"), [(50, 50), (30, 71)])
def test_one_dimension_is_scipy_squared_less_the_bias_of_its_v_statistic(b, n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(b, 1)), 2 * rng.normal(size=(n, 1)) + 1
    bias = pdist(x).mean() / b + pdist(y).mean() / n
    expected = scipy_energy_distance(x[:, 0], y[:, 0]) ** 2 - bias
    assert energy_distance(x, y) == pytest.approx(expected, abs=1e-12)


def test_many_dimensions_far_from_zero_agree_with_scipy_distances():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6, 5)) + 1e3, rng.normal(size=(55, 6, 5)) + 1e3 + 0.2
    flat_x, flat_y = x.reshape(40, 30), y.reshape(55, 30)
    expected = 2 * cdist(flat_x, flat_y).mean() - pdist(flat_x).mean() - pdist(flat_y).mean()
    assert energy_distance(x, y) == pytest.approx(expected, abs=1e-11)


def test_mean_over_repeats_is_zero_for_equal_distributions():
    rng = np.random.default_rng(3)
    values = [
        energy_distance(rng.normal(size=(20, 3)), rng.normal(size=(35, 3))) for _ in range(600)
    ]
    error = np.std(values) / np.sqrt(len(values))
    bias_of_v_statistic = 2.2 * (1 / 20 + 1 / 35)  # E|X - X'| is about 2.26 in three dimensions
    assert abs(np.mean(values)) < 4 * error < 0.1 * bias_of_v_statistic
