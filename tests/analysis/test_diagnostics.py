"""Diagnostics where the geometry is known: data that are a single point, and a right angle."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.analysis.diagnostics import Observed, diagnose, observe
from optdiff.grids import karras
from optdiff.problems import gaussian
from optdiff.sample import Step, sample, sample_keys, sample_scan
from optdiff.samplers import ddim

POINT = np.array([1.0, -2.0, 3.0, 0.5])


@pytest.fixture
def to_a_point():
    """All data at one point: the gradient leads straight there and distances are plain."""
    return gaussian(mean=POINT, cov=np.zeros((4, 4)))


def test_the_way_to_a_point(to_a_point):
    levels, keys, seen = karras(to_a_point.schedule, 6), sample_keys(0, 5), []
    _, trace = sample(
        to_a_point,
        ddim(),
        levels,
        keys,
        observe=observe,
        on_step=lambda step: seen.append(np.asarray(step.x)),
    )
    found = diagnose(trace.observed)
    away = np.linalg.norm(np.stack(seen) - POINT, axis=2) / 2  # sqrt(d) = 2
    np.testing.assert_allclose(found.distance, away, rtol=1e-10)
    np.testing.assert_allclose(found.gradient_norm, away / levels[:-1, None], rtol=1e-10)
    np.testing.assert_allclose(found.cosine[1:], 1.0, rtol=1e-10)
    assert np.isnan(found.cosine[0]).all()
    # Straight descent covers the way in proportion to the noise: the distance is a constant times
    # sigma, so the gradient's norm never changes.
    np.testing.assert_allclose(found.gradient_norm[1:], found.gradient_norm[:-1], rtol=1e-9)
    np.testing.assert_array_equal(found.sigma, levels[:-1])


def test_cosine_of_known_angles():
    eps = jnp.array([[[2.0, 0.0]], [[0.0, 3.0]], [[0.0, -1.0]], [[1.0, -1.0]]])
    found = diagnose(Observed(jnp.arange(4.0, 0.0, -1.0), eps))
    np.testing.assert_allclose(found.cosine[1:, 0], [0.0, -1.0, np.sqrt(0.5)], atol=1e-15)
    np.testing.assert_allclose(found.gradient_norm[:, 0] ** 2, [2.0, 4.5, 0.5, 1.0])


def test_a_gradient_that_vanished_has_no_direction():
    found = diagnose(Observed(jnp.ones(2), jnp.array([[[1.0, 0.0]], [[0.0, 0.0]]])))
    assert np.isnan(found.cosine).all() and found.gradient_norm[1, 0] == 0


def test_no_steps_have_no_diagnostics():
    found = diagnose(Observed(jnp.zeros(0), jnp.zeros((0, 3, 4))))
    assert found.sigma.shape == (0,) and found.cosine.shape == found.distance.shape == (0, 3)


def test_scan_and_host_see_the_same(to_a_point):
    levels, keys = karras(to_a_point.schedule, 6), sample_keys(0, 5)
    _, host = sample(to_a_point, ddim(), levels, keys, observe=observe)
    _, scan = sample_scan(to_a_point, ddim(), levels, keys, observe=observe)
    for a, b in zip(diagnose(host.observed), diagnose(scan.observed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_memory_is_bounded_by_the_watched_samples():
    x = jnp.arange(200.0).reshape(100, 2)
    step = Step(0, x, x, jnp.array(1.0), jnp.array(0.5), x)
    np.testing.assert_array_equal(observe(step).eps, x[:64])
    np.testing.assert_array_equal(partial(observe, samples=3)(step).eps, x[:3])


def test_levels_of_each_sample_and_half_precision():
    eps = jnp.ones((3, 2, 2), jnp.bfloat16)
    sigma = jnp.array([1.0, 2.0, 4.0])
    step = Step(0, eps, eps, sigma, sigma / 2, eps)
    kept = observe(step, samples=2)
    found = diagnose(Observed(kept.sigma[None], kept.eps[None]))
    np.testing.assert_array_equal(found.distance, [[1.0, 2.0]])
    assert found.distance.dtype == np.float64
