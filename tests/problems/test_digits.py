"""Digits against brute force in float64: denoiser, conditions, guidance, prior, reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax

from optdiff.problems import digits
from optdiff.sample import sample_keys

SMOOTHING = 0.125  # the same number in float32 and float64
LEVELS = np.array([0.02, 0.3, 2.0, 80.0])


@pytest.fixture(scope="module")
def single():
    """As in production: float32."""
    return digits(conditional=True, smoothing=SMOOTHING)


@pytest.fixture(scope="module")
def problem(single):
    """The same in float64."""
    return jax.tree.map(
        lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a, single
    )


@pytest.fixture(scope="module")
def noisy(problem):
    """A noisy digit at each of the levels."""
    return problem.prior(sample_keys(0, len(LEVELS)), jnp.array(LEVELS))


def brute_force(images, x, sigma):
    """Posterior mean and log evidence of each x, term by term: x0 = image + smoothing noise."""
    x, images = np.asarray(x, float).reshape(len(x), -1), np.asarray(images, float)
    variance = sigma[:, None] ** 2 + SMOOTHING**2
    log_joint = -cdist(x, images, "sqeuclidean") / (2 * variance)
    weights = softmax(log_joint, axis=1)
    # Of the noise in x - image, the share smoothing^2 / variance belongs to the data.
    mean = weights @ images + (x - weights @ images) * SMOOTHING**2 / variance
    normalizer = 0.5 * x.shape[1] * np.log(2 * np.pi * variance[:, 0]) + np.log(len(images))
    return mean.reshape(-1, 28, 28), logsumexp(log_joint, axis=1) - normalizer


def test_denoiser_and_density_are_brute_force(problem, noisy):
    mean, log_density = brute_force(problem.images, noisy, LEVELS)
    sigma = jnp.array(LEVELS)
    np.testing.assert_allclose(problem.denoise(noisy, sigma), mean, atol=1e-9)
    np.testing.assert_allclose(problem.log_density(noisy, sigma), log_density, rtol=1e-10)


def test_float32_denoiser_is_right_at_every_level(single, noisy):
    x = noisy.astype(jnp.float32)
    mean, _ = brute_force(single.images, x, LEVELS)
    found = single.denoise(x, jnp.array(LEVELS, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, mean, atol=2e-4)


def test_between_two_digits_both_are_weighed(problem):
    # At small noise the softmax is decided; halfway between two digits it must not be.
    half = (problem.images[:1] + problem.images[1:2]) / 2
    sigma = np.array([2.0])
    mean, _ = brute_force(problem.images, half, sigma)
    found = problem.denoise(half.reshape(1, 28, 28), jnp.array(2.0))
    np.testing.assert_allclose(found, mean, atol=1e-9)
    assert np.abs(mean.reshape(-1) - np.asarray(problem.images)).max(axis=1).min() > 0.1


def test_a_condition_is_a_restriction(problem, noisy):
    for digit in (0, 7):
        chosen = problem.labels == digit
        only = dataclasses.replace(
            problem, images=problem.images[chosen], labels=problem.labels[chosen]
        )
        cond = jnp.tile(jax.nn.one_hot(digit, 10)[None], (len(LEVELS), 1))
        for method in ("denoise", "log_density"):
            found = getattr(problem, method)(noisy, jnp.array(LEVELS), cond)
            expected = getattr(only, method)(noisy, jnp.array(LEVELS))
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-9)


def test_conditions_may_differ_by_sample_and_all_ones_is_none(problem, noisy):
    sigma = jnp.array(LEVELS)
    cond = jnp.eye(10)[jnp.array([3, 1, 4, 1])].at[0].set(1.0)
    found = problem.denoise(noisy, sigma, cond)
    np.testing.assert_allclose(found[0], problem.denoise(noisy, sigma)[0], atol=1e-12)
    alone = problem.denoise(noisy[2:3], sigma[2], cond[2:3])
    np.testing.assert_allclose(found[2], alone[0], atol=1e-12)


def test_conditions_are_digits_drawn_evenly(problem):
    cond = np.asarray(problem.condition(sample_keys(0, 2000)))
    assert set(np.unique(cond)) == {0.0, 1.0} and (cond.sum(axis=1) == 1).all()
    assert np.abs(cond.sum(axis=0) - 200).max() < 5 * np.sqrt(180)
    np.testing.assert_array_equal(problem.condition(sample_keys(0, 3, start=7)), cond[7:10])
    assert digits().condition(sample_keys(0, 3)) is None


def test_guidance_leads_away_from_any_digit(problem):
    guided = dataclasses.replace(digits(guidance=3.0), problem=problem)
    assert guided.problem.conditional and guided.passes == 2
    x, cond, sigma = problem.images[:3].reshape(3, 28, 28), jnp.eye(10)[:3], jnp.array(3.0)
    anything, given = problem.denoise(x, sigma), problem.denoise(x, sigma, cond)
    found = guided.denoise(x, sigma, cond)
    np.testing.assert_allclose(found, anything + 3.0 * (given - anything), atol=1e-9)
    assert np.abs(given - anything).max() > 0.1


def test_prior_has_the_moments_of_the_marginal(problem):
    images = np.asarray(problem.images)
    values, axes = np.linalg.eigh(np.cov(images.T, bias=True))
    # The directions in which digits differ most, a middling one, and one in which all are alike.
    values, axes = values[[-1, -2, -20, 0]], axes[:, [-1, -2, -20, 0]]
    for sigma in (0.0, 1.0):
        x = np.asarray(problem.prior(sample_keys(1, 1000), jnp.array(sigma))).reshape(-1, 784)
        z = (x - images.mean(axis=0)) @ axes / np.sqrt(values + SMOOTHING**2 + sigma**2)
        assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(len(x))
        assert np.abs(z.var(axis=0) - 1).max() < 5 * np.sqrt(2 / len(x))


def test_prior_keeps_to_the_condition(problem):
    cond = jnp.eye(10)[jnp.arange(40) % 10]
    draws = np.asarray(problem.prior(sample_keys(2, 40), jnp.zeros(()), cond)).reshape(40, -1)
    nearest = cdist(draws, np.asarray(problem.images)).argmin(axis=1)
    np.testing.assert_array_equal(problem.labels[nearest], np.arange(40) % 10)


def nearest_held_out(problem, samples):
    """Which held-out digits these decoded samples are."""
    distances = cdist(2 * np.asarray(samples).reshape(len(samples), -1) - 1, problem.held_out)
    assert distances.min(axis=1).max() < 2 * SMOOTHING * 28
    return distances.argmin(axis=1)


def test_reference_is_held_out_digits_none_twice(problem):
    found = nearest_held_out(problem, problem.reference(sample_keys(0, 1000)))
    assert sorted(found) == list(range(1000))
    other = nearest_held_out(problem, problem.reference(sample_keys(1, 50)))
    assert len(set(other)) == 50 and set(other) != set(found[:50])


def test_reference_of_a_condition_has_its_digits_in_order(problem):
    asked = np.array([3] * 100 + [8] * 20 + [1, 2, 1])
    found = nearest_held_out(problem, problem.reference(sample_keys(0, 123), jnp.eye(10)[asked]))
    assert len(set(found)) == 123
    np.testing.assert_array_equal(problem.held_out_labels[found], asked)


def test_more_reference_digits_than_there_are_is_an_error(problem):
    with pytest.raises(ValueError, match=r"1001 digits .* 1000 were held out"):
        problem.reference(sample_keys(0, 1001))
    with pytest.raises(ValueError, match="101 held-out digits of kind 3"):
        problem.reference(sample_keys(0, 101), jnp.tile(jnp.eye(10)[3:4], (101, 1)))


def test_decoded_pictures_are_ink_on_paper(problem):
    pictures = problem.decode(problem.images.reshape(-1, 28, 28))
    assert pictures.min() == 0.0 and pictures.max() == 1.0
    target = np.asarray(problem.target(sample_keys(0, 100)))
    assert -1 < target.min() < 0 and 1 < target.max() < 2  # smoothing goes a little beyond
