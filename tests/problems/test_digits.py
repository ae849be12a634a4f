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

FOUR, THOUSAND = 4, 1000  # batch sizes, few of them for the compiler's sake


def brute_force(problem, x, sigma):
    """Posterior mean and log evidence of each x, term by term: x0 = image + smoothing noise."""
    x, sigma = np.asarray(x, float).reshape(len(x), -1), np.asarray(sigma, float)[:, None]
    images, smoothing = np.asarray(problem.images, float), float(problem.smoothing)
    variance = sigma**2 + smoothing**2
    log_joint = -cdist(x, images, "sqeuclidean") / (2 * variance)
    weights = softmax(log_joint, axis=1)
    # Of the noise in x - image, the share smoothing^2 / variance belongs to the data.
    mean = weights @ images + (x - weights @ images) * smoothing**2 / variance
    normalizer = 0.5 * x.shape[1] * np.log(2 * np.pi * variance[:, 0]) + np.log(len(images))
    return mean.reshape(-1, 28, 28), logsumexp(log_joint, axis=1) - normalizer


def test_denoiser_and_density_are_brute_force(handwritten, noisy, levels):
    mean, log_density = brute_force(handwritten, noisy, levels)
    np.testing.assert_allclose(handwritten.denoise(noisy, levels), mean, atol=1e-9)
    np.testing.assert_allclose(handwritten.log_density(noisy, levels), log_density, rtol=1e-10)


def test_float32_denoiser_is_right_at_every_level(single, noisy, levels):
    x = noisy.astype(jnp.float32)
    mean, _ = brute_force(single, x, levels)
    found = single.denoise(x, levels.astype(jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, mean, atol=2e-4)


def test_between_digits_several_are_weighed(handwritten):
    # At small noise the softmax is decided; halfway between two digits it must not be.
    half = (handwritten.images[:FOUR] + handwritten.images[1 : FOUR + 1]) / 2
    mean, _ = brute_force(handwritten, half, np.full(FOUR, 2.0))
    found = handwritten.denoise(half.reshape(-1, 28, 28), jnp.full(FOUR, 2.0))
    np.testing.assert_allclose(found, mean, atol=1e-9)
    # No single digit explains any of them.
    assert cdist(mean.reshape(FOUR, -1), handwritten.images).min() > 1


def test_a_condition_is_a_restriction(handwritten, noisy, levels):
    chosen = handwritten.labels == 7
    only = dataclasses.replace(
        handwritten, images=handwritten.images[chosen], labels=handwritten.labels[chosen]
    )
    cond = jnp.tile(jax.nn.one_hot(7, 10)[None], (FOUR, 1))
    for method in ("denoise", "log_density"):
        found = getattr(handwritten, method)(noisy, levels, cond)
        expected = getattr(only, method)(noisy, levels)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-9)


def test_conditions_may_differ_by_sample_and_all_ones_is_none(handwritten, noisy, levels):
    cond = jnp.eye(10)[jnp.array([3, 1, 4, 1])].at[0].set(1.0)
    found = handwritten.denoise(noisy, levels, cond)
    np.testing.assert_allclose(found[0], handwritten.denoise(noisy, levels)[0], atol=1e-12)
    same = handwritten.denoise(noisy, levels, jnp.tile(cond[2:3], (FOUR, 1)))
    np.testing.assert_allclose(found[2], same[2], atol=1e-12)


def test_conditions_are_digits_drawn_evenly(handwritten):
    handwritten = dataclasses.replace(handwritten, conditional=True)
    cond = np.asarray(handwritten.condition(sample_keys(0, THOUSAND)))
    assert set(np.unique(cond)) == {0.0, 1.0} and (cond.sum(axis=1) == 1).all()
    assert np.abs(cond.sum(axis=0) - 100).max() < 5 * np.sqrt(90)
    few = handwritten.condition(sample_keys(0, FOUR, start=7))
    np.testing.assert_array_equal(few, cond[7 : 7 + FOUR])
    assert digits().condition(sample_keys(0, FOUR)) is None


def test_guidance_leads_away_from_any_digit(handwritten, noisy, levels):
    conditional = dataclasses.replace(handwritten, conditional=True)
    guided = dataclasses.replace(digits(guidance=3.0), problem=conditional)
    assert guided.problem.conditional and guided.passes == 2
    cond = jnp.eye(10)[:FOUR]
    anything = handwritten.denoise(noisy, levels)
    given = handwritten.denoise(noisy, levels, cond)
    found = guided.denoise(noisy, levels, cond)
    np.testing.assert_allclose(found, anything + 3.0 * (given - anything), atol=1e-9)
    assert np.abs(given - anything).max() > 0.1


def test_prior_has_the_moments_of_the_marginal(handwritten):
    images, sigma = np.asarray(handwritten.images), 1.0
    draws = np.asarray(handwritten.prior(sample_keys(1, THOUSAND), jnp.array(sigma)))
    # Along a pixel that is always paper, one that rarely is, and what tells zeros from ones.
    kinds = [images[handwritten.labels == k].mean(axis=0) for k in (0, 1)]
    along = np.stack([np.eye(784)[0], np.eye(784)[14 * 28 + 14], kinds[0] - kinds[1]])
    seen, drawn = images @ along.T, draws.reshape(THOUSAND, -1) @ along.T
    spread = (float(handwritten.smoothing) ** 2 + sigma**2) * np.sum(along**2, axis=1)
    variance = seen.var(axis=0) + spread
    z = (drawn - seen.mean(axis=0)) / np.sqrt(variance)
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(THOUSAND)
    assert np.abs(z.var(axis=0) - 1).max() < 5 * np.sqrt(2 / THOUSAND)


def test_prior_keeps_to_the_condition(handwritten):
    for wanted in ([3, 1, 4, 1], [5, 9, 2, 6]):
        cond = jnp.eye(10)[jnp.array(wanted)]
        draws = handwritten.prior(sample_keys(2, FOUR), jnp.zeros(FOUR), cond)
        nearest = cdist(np.reshape(draws, (FOUR, -1)), handwritten.images).argmin(axis=1)
        np.testing.assert_array_equal(handwritten.labels[nearest], wanted)


def nearest_held_out(problem, samples):
    """Which held-out digits these decoded samples are."""
    distances = cdist(2 * np.reshape(samples, (len(samples), -1)) - 1, problem.held_out)
    assert distances.min(axis=1).max() < 2 * float(problem.smoothing) * 28
    return distances.argmin(axis=1)


def test_reference_is_held_out_digits_none_twice(handwritten):
    found = nearest_held_out(handwritten, handwritten.reference(sample_keys(0, THOUSAND)))
    assert sorted(found) == list(range(THOUSAND))
    assert found.tolist() != sorted(found)  # in an order of the keys' own
    other = nearest_held_out(handwritten, handwritten.reference(sample_keys(1, THOUSAND)))
    assert found.tolist() != other.tolist()


def test_reference_of_a_condition_has_its_digits_in_order(handwritten):
    asked = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    samples = handwritten.reference(sample_keys(0, THOUSAND), jnp.eye(10)[asked])
    found = nearest_held_out(handwritten, samples)
    assert len(set(found)) == THOUSAND
    np.testing.assert_array_equal(handwritten.held_out_labels[found], asked)


def test_more_reference_digits_than_there_are_is_an_error(handwritten):
    keys = sample_keys(0, THOUSAND)
    fewer = dataclasses.replace(
        handwritten,
        held_out=handwritten.held_out[:9],
        held_out_labels=handwritten.held_out_labels[:9],
    )
    with pytest.raises(ValueError, match="1000 digits asked for, 9 were held out"):
        fewer.reference(keys)
    with pytest.raises(ValueError, match="1000 held-out digits of kind 3 asked for"):
        handwritten.reference(keys, jnp.tile(jnp.eye(10)[3:4], (THOUSAND, 1)))


def test_decoded_pictures_are_ink_on_paper(handwritten):
    pictures = handwritten.decode(handwritten.images.reshape(-1, 28, 28))
    assert pictures.min() == 0.0 and pictures.max() == 1.0
    target = np.asarray(handwritten.target(sample_keys(0, FOUR)))
    assert -1 < target.min() < 0 and 1 < target.max() < 2  # smoothing goes a little beyond
