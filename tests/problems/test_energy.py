"""A log-probability as a denoiser: one gradient equals the closed forms and 784 differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.problems import digits, energy, mixture
from optdiff.sample import sample_keys

LEVELS = jnp.array([0.02, 0.3, 2.0, 80.0])


def in_float64(problem):
    return jax.tree.map(
        lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a, problem
    )


@pytest.fixture(scope="module")
def handwritten():
    return in_float64(digits(conditional=True))


def test_gradient_equals_the_closed_form_on_mixture():
    problem, keys = mixture(stds=list(np.linspace(0.05, 0.5, 12))), sample_keys(0, 4)
    x = problem.prior(keys, LEVELS)
    by_gradient = energy(problem).denoise(x, LEVELS)
    np.testing.assert_allclose(by_gradient, problem.denoise(x, LEVELS), atol=1e-8)
    assert np.abs(by_gradient - x).max() > 1


@pytest.mark.parametrize("conditional", [False, True])
def test_gradient_equals_the_closed_form_on_digits(handwritten, conditional):
    keys = sample_keys(0, 4)
    cond = handwritten.condition(keys) if conditional else None
    x = handwritten.prior(keys, LEVELS, cond)
    by_gradient = energy(handwritten).denoise(x, LEVELS, cond)
    exact = handwritten.denoise(x, LEVELS, cond)
    np.testing.assert_allclose(by_gradient, exact, atol=1e-8)


def test_gradient_equals_784_finite_differences_on_a_digit(handwritten):
    sigma, h = jnp.array(1.0), 1e-5
    x = handwritten.prior(sample_keys(1, 1), sigma)
    one_gradient = (energy(handwritten).denoise(x, sigma) - x) / sigma**2
    nudged = jnp.eye(784).reshape(784, 28, 28) * h
    up, down = (handwritten.log_density(moved, sigma) for moved in (x + nudged, x - nudged))
    differences = ((up - down) / (2 * h)).reshape(28, 28)
    # The third derivative costs h^2, rounding of a log-density near 1e3 about 1e-13 / h.
    np.testing.assert_allclose(one_gradient[0], differences, atol=1e-7)
    assert np.abs(differences).max() > 0.1


def test_any_density_will_do():
    """Of a Laplace density the denoiser is soft thresholding's plain gradient step."""

    def laplace(problem, x, sigma, cond):
        return -jnp.abs(x).sum(axis=1)

    x = jnp.array([[3.0, -2.0]])
    found = energy(mixture(dim=2), laplace).denoise(x, jnp.array(0.5))
    np.testing.assert_allclose(found, [[2.75, -1.75]])


def test_everything_but_the_denoiser_is_the_problems_own(handwritten):
    by_gradient, keys = energy(handwritten), sample_keys(0, 3)
    cond = handwritten.condition(keys)
    np.testing.assert_array_equal(by_gradient.condition(keys), cond)
    for method in ("target", "reference"):
        expected = getattr(handwritten, method)(keys, cond)
        np.testing.assert_array_equal(getattr(by_gradient, method)(keys, cond), expected)
    start = by_gradient.prior(keys, LEVELS[0], cond)
    np.testing.assert_array_equal(start, handwritten.prior(keys, LEVELS[0], cond))
    np.testing.assert_array_equal(by_gradient.decode(start), handwritten.decode(start))
    assert by_gradient.schedule is handwritten.schedule
