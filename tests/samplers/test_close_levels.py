"""Levels as good as equal and then a leap: what a polynomial through them says is rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.problems import mixture
from optdiff.sample import identity, sample, sample_keys
from optdiff.samplers import deis_log_rho, dpmpp_3m, lms, unip
from optdiff.samplers.multistep import polynomial_weights

CLOSE = 1e-4 * np.arange(4.0)
MOMENTS = [(-1.0) ** (k + 1) / (k + 1) for k in range(4)]  # of a step from 0 to -1


def test_terms_that_magnify_rounding_are_left_out():
    """In float32 three of four, in float64 none: the weights integrate cubics."""
    exact = np.asarray(polynomial_weights(list(CLOSE), MOMENTS, 4))
    powers = CLOSE ** np.arange(4)[:, None]
    np.testing.assert_allclose(powers @ exact, MOMENTS, rtol=1e-3)
    with jax.enable_x64(False):
        rounded = np.asarray(polynomial_weights(list(CLOSE), MOMENTS, 4))
    assert np.abs(exact).sum() > 1e11 and np.abs(rounded).sum() < 1e7
    np.testing.assert_allclose(rounded.sum(), -1.0, rtol=1e-2)
    np.testing.assert_array_equal(rounded[2:], 0.0)


@pytest.mark.parametrize("sampler", [lms, unip, dpmpp_3m, deis_log_rho])
def test_a_leap_from_close_levels_lands(sampler):
    levels = np.concatenate([top * (1 - CLOSE) for top in (20.0, 4.0, 0.8, 0.2)])
    with jax.enable_x64(False):
        problem, keys = mixture(modes=3, dim=4), sample_keys(0, 8)
        x, _ = sample(problem, sampler(), jnp.asarray(levels, float), keys, finish=identity)
        assert jnp.abs(x).max() < 10.0
