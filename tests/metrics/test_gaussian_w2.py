"""Gaussian W2 against POT and closed forms; Gelbrich as a bound, and its finite-sample floor."""

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdiff.metrics import gaussian_w2, gelbrich

seeds = st.integers(0, 2**32 - 1)


def random_gaussian(rng, d):
    factor = rng.normal(size=(d, d + 2))
    return rng.normal(size=d), factor @ factor.T / d


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 8), seed=seeds)
def test_agrees_with_pot(d, seed):
    rng = np.random.default_rng(seed)
    (m1, c1), (m2, c2) = random_gaussian(rng, d), random_gaussian(rng, d)
    expected = ot.gaussian.bures_wasserstein_distance(m1, m2, c1, c2)
    assert gaussian_w2(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-8)


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 6), seed=seeds)
def test_is_a_metric(d, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (random_gaussian(rng, d) for _ in range(3))
    assert gaussian_w2(*a, *a) < 1e-12
    assert gaussian_w2(*a, *b) == pytest.approx(gaussian_w2(*b, *a), rel=1e-10)
    assert gaussian_w2(*a, *c) <= gaussian_w2(*a, *b) + gaussian_w2(*b, *c) + 1e-12


def test_commuting_covariances_compare_standard_deviations():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    s1, s2 = rng.uniform(0, 2, size=(2, 5))
    s1[:2] = 0  # singular
    c1, c2 = (turn * s1**2) @ turn.T, (turn * s2**2) @ turn.T
    expected = np.linalg.norm(s1 - s2)
    assert gaussian_w2(np.zeros(5), c1, np.zeros(5), c2) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12])
def test_nearly_equal_gaussians_keep_their_digits(gap):
    # The traces of the textbook form agree to gap^2, far below rounding.
    cov = np.diag([1.0, 4.0, 9.0])
    near = np.diag((np.array([1.0, 2.0, 3.0]) + gap) ** 2)
    expected = gap * np.sqrt(3)
    assert gaussian_w2(np.zeros(3), cov, np.zeros(3), near) == pytest.approx(expected, rel=2e-3)


def test_is_w2_of_samples_carried_by_the_optimal_map():
    # x -> A x + b with A positive definite is optimal transport, of samples as of Gaussians.
    rng = np.random.default_rng(1)
    x = rng.standard_exponential(size=(120, 3))
    factor = rng.normal(size=(3, 3))
    y = x @ (factor @ factor.T + 0.1 * np.eye(3)) + np.array([1.0, -2.0, 0.5])
    exact = np.sqrt(ot.emd2([], [], ot.dist(x, y)))
    (m1, c1), (m2, c2) = ((z.mean(0), np.cov(z.T, bias=True)) for z in (x, y))
    assert gaussian_w2(m1, c1, m2, c2) == pytest.approx(exact, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_moments_bound_w2_from_below(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_exponential(size=(30, 2)), rng.normal(size=(40, 2)) ** 3
    exact = np.sqrt(ot.emd2([], [], ot.dist(x, y)))
    (m1, c1), (m2, c2) = ((z.mean(0), np.cov(z.T, bias=True)) for z in (x, y))
    assert gaussian_w2(m1, c1, m2, c2) <= exact + 1e-12


def test_gelbrich_is_gaussian_w2_of_numpy_moments():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 2, 3)) * 2 + 1
    mean, cov = random_gaussian(rng, 6)
    flat = x.reshape(50, 6)
    expected = ot.gaussian.bures_wasserstein_distance(flat.mean(0), mean, np.cov(flat.T), cov)
    assert gelbrich(x, mean, cov) == pytest.approx(expected, rel=1e-8)


def test_floor_of_a_perfect_sampler_is_the_documented_one():
    rng = np.random.default_rng(3)
    values, b = np.array([4.0, 1.0, 0.25]), 400
    pairs = values[:, None] * values / (2 * (values[:, None] + values))
    expected = (values.sum() + np.sum(pairs * (1 + np.eye(3)))) / b
    draws = [
        gelbrich(rng.normal(size=(b, 3)) * np.sqrt(values), np.zeros(3), np.diag(values)) ** 2
        for _ in range(1000)
    ]
    assert np.mean(draws) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (np.diag([1.0, -1.0]), "cov2: eigenvalue -1 is negative"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "cov2: not a finite symmetric matrix"),
        (np.diag([1.0, np.nan]), "cov2: not a finite symmetric matrix"),
        (np.eye(3), r"must be \(d,\), \(d,\), \(d, d\), \(d, d\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_covariance_is_refused(cov, message):
    with pytest.raises(ValueError, match=message):
        gaussian_w2(np.zeros(2), np.eye(2), np.zeros(2), cov)
