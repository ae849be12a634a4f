"""A log-probability as a denoiser: one gradient equals the closed forms and 784 differences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.problems import energy, mixture
from optdiff.sample import sample_keys


def test_gradient_equals_the_closed_form_on_mixture(levels):
    problem = mixture(stds=list(np.linspace(0.05, 0.5, 12)))
    x = problem.prior(sample_keys(0, 4), levels)
    denoise = jax.jit(lambda problem: problem.denoise(x, levels))
    by_gradient = denoise(energy(problem))
    np.testing.assert_allclose(by_gradient, denoise(problem), atol=1e-8)
    assert np.abs(by_gradient - x).max() > 1


@pytest.mark.parametrize("conditional", [False, True])
def test_gradient_equals_the_closed_form_on_digits(handwritten, noisy, levels, conditional):
    cond = jnp.eye(10)[jnp.array([3, 1, 4, 1])] if conditional else None
    by_gradient = energy(handwritten).denoise(noisy, levels, cond)
    exact = handwritten.denoise(noisy, levels, cond)
    np.testing.assert_allclose(by_gradient, exact, atol=1e-8)


def test_gradient_equals_784_finite_differences_on_a_digit(handwritten, noisy, levels):
    which, sigma, h = 2, float(levels[2]), 1e-5
    x, found = (np.asarray(a[which]) for a in (noisy, energy(handwritten).denoise(noisy, levels)))
    gradient = (found - x) / sigma**2
    nudges = h * np.eye(784).reshape(784, 28, 28)
    moved = jnp.asarray(np.concatenate([x + nudges, x - nudges]))
    up, down = np.split(np.asarray(handwritten.log_density(moved, levels[which])), 2)
    # The third derivative costs h^2, rounding of a log-density near 1e3 about 1e-13 / h.
    np.testing.assert_allclose(gradient.ravel(), (up - down) / (2 * h), atol=1e-7)
    assert np.abs(gradient).max() > 0.1


def test_any_density_will_do():
    """Of a Laplace density D is one step of the sign of x, as long as sigma^2."""

    def laplace(problem, x, sigma, cond):
        return -jnp.abs(x).sum(axis=1)

    x = jnp.array([[3.0, -2.0]])
    found = energy(mixture(dim=2), laplace).denoise(x, jnp.array(0.5))
    np.testing.assert_allclose(found, [[2.75, -1.75]])


def test_everything_but_the_denoiser_is_the_problems_own(handwritten, levels):
    handwritten = replace(handwritten, conditional=True)
    by_gradient, keys = energy(handwritten), sample_keys(0, 4)
    cond = handwritten.condition(keys)
    np.testing.assert_array_equal(by_gradient.condition(keys), cond)
    for method in ("target", "reference"):
        expected = getattr(handwritten, method)(keys, cond)
        np.testing.assert_array_equal(getattr(by_gradient, method)(keys, cond), expected)
    start = by_gradient.prior(keys, levels, cond)
    np.testing.assert_array_equal(start, handwritten.prior(keys, levels, cond))
    np.testing.assert_array_equal(by_gradient.decode(start), handwritten.decode(start))
    assert by_gradient.schedule is handwritten.schedule
