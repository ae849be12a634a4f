"""Sliced W2 against POT, for equal and unequal set sizes, and against its closed form."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdiff.metrics import sliced_w2
from optdiff.metrics.sliced_w2 import directions

sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(b=sizes, n=sizes, seed=st.integers(0, 2**32 - 1))
def test_one_dimension_is_exact_w2_for_any_sizes(b, n, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(b, 1)), rng.standard_exponential(size=(n, 1))
    expected = np.sqrt(ot.emd2_1d(x, y))
    assert sliced_w2(x, y, projections=3) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("b", "n"), [(64, 64), (50, 80), (37, 101)])
def test_agrees_with_pot_on_the_same_directions(b, n):
    rng = np.random.default_rng(b)
    x, y = rng.normal(size=(b, 3, 4)), 0.5 * rng.normal(size=(n, 3, 4)) + 1
    expected = ot.sliced_wasserstein_distance(
        x.reshape(b, 12), y.reshape(n, 12), projections=directions(12, 256, 7).T
    )
    assert sliced_w2(x, y, seed=7) == pytest.approx(expected, rel=1e-12)


def test_isotropic_gaussians_match_the_closed_form():
    # Each projection is N(0, 1) against N(theta . v, s^2), so SW2^2 = |v|^2 / d + (1 - s)^2.
    rng = np.random.default_rng(0)
    shift = np.array([2.0, -1.0, 0.5, 0.0])
    x, y = rng.normal(size=(6_000, 4)), 0.5 * rng.normal(size=(5_000, 4)) + shift
    expected = np.sqrt(shift @ shift / 4 + 0.25)
    assert sliced_w2(x, y, projections=1000) == pytest.approx(expected, rel=0.02)


def test_directions_are_unit_vectors_and_favour_none():
    theta = directions(5, 20_000, 0)
    np.testing.assert_allclose(np.linalg.norm(theta, axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(theta.T @ theta / len(theta), np.eye(5) / 5, atol=0.01)
