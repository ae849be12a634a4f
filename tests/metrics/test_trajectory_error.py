"""Trajectory error against scikit-learn, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import root_mean_squared_error

from optdiff.metrics import trajectory_error


def test_agrees_with_sklearn_over_all_coordinates():
    rng = np.random.default_rng(0)
    samples, exact = rng.normal(size=(2, 40, 6, 5))
    expected = root_mean_squared_error(exact.reshape(-1), samples.reshape(-1))
    assert trajectory_error(samples, exact) == pytest.approx(expected, rel=1e-13)


def test_small_errors_far_from_zero_keep_their_digits_in_float32():
    exact = jnp.full((4, 10), 1000.0, jnp.float32)
    samples = exact + jnp.float32(2**-10)
    assert trajectory_error(samples, exact) == 2**-10


@pytest.mark.usefixtures("unchecked")
def test_unpaired_sets_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\) and exact \(4, 2\) must have one shape"):
        trajectory_error(np.zeros((3, 2)), np.zeros((4, 2)))


def test_broken_exact_points_are_named():
    exact = np.zeros((4, 2))
    exact[1] = np.inf
    with pytest.raises(ValueError, match="exact: 1 of 4 are not finite"):
        trajectory_error(np.zeros((4, 2)), exact)
