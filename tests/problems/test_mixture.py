"""Mixtures against quadrature, scipy's densities and the frequencies of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp as jax_logsumexp
from jax.scipy.stats import multivariate_normal as jax_normal
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import chisquare, multivariate_normal, norm

from optdiff.problems import mixture
from optdiff.sample import sample_keys

MEANS = np.array([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0], [2.0, -1.0, 0.5], [-3.0, 1.0, 2.0]])
STDS, WEIGHTS = [0.1, 0.3, 1.0, 0.2], [1.0, 5.0, 2.0, 4.0]
LEVELS = jnp.array([0.01, 0.3, 1.0, 30.0])


@pytest.fixture
def problem():
    """Modes of different widths and weights, two of them nearly concentric."""
    return mixture(means=MEANS, stds=STDS, weights=WEIGHTS)


denoise = jax.jit(lambda problem, x, sigma: problem.denoise(x, sigma))


def in_float32(problem):
    return jax.tree.map(lambda a: a.astype(jnp.float32), problem)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_denoiser_is_the_posterior_mean(sigma):
    means, stds, weights = [-1.0, 0.5, 0.6], [0.2, 0.3, 0.05], [0.5, 0.2, 0.3]
    problem = mixture(means=np.array(means)[:, None], stds=stds, weights=weights)
    xs = [-2.0, 0.2, 0.9]
    found = problem.denoise(jnp.array(xs)[:, None], jnp.array(sigma))[:, 0]

    def posterior_mean(x):
        def joint(x0):
            return norm.pdf(x, x0, sigma) * (weights * norm.pdf(x0, means, stds)).sum()

        options = dict(points=[*means, x], epsabs=0, epsrel=1e-11, limit=500)
        evidence = quad(joint, -4, 4, **options)[0]
        return quad(lambda x0: x0 * joint(x0), -4, 4, **options)[0] / evidence

    np.testing.assert_allclose(found, [posterior_mean(x) for x in xs], rtol=1e-8)


def test_log_density_is_scipys(problem):
    x = problem.prior(sample_keys(0, 4), LEVELS)
    expected = [
        logsumexp(
            [
                multivariate_normal.logpdf(point, mean, std**2 + float(sigma) ** 2)
                for mean, std in zip(MEANS, STDS, strict=True)
            ],
            b=np.array(WEIGHTS) / sum(WEIGHTS),
        )
        for point, sigma in zip(np.asarray(x), LEVELS, strict=True)
    ]
    np.testing.assert_allclose(problem.log_density(x, LEVELS), expected, rtol=1e-10)


def test_denoiser_is_tweedie(problem):
    def log_density(x, sigma):
        cov = (jnp.array(STDS) ** 2 + sigma**2)[:, None, None] * jnp.eye(3)[None]
        modes = jax.vmap(jax_normal.logpdf, (None, 0, 0))(x, jnp.array(MEANS), cov)
        return jax_logsumexp(modes, b=jnp.array(WEIGHTS))

    x = problem.prior(sample_keys(1, 4), LEVELS)
    score = jax.jit(jax.vmap(jax.grad(log_density)))(x, LEVELS)
    expected = x + LEVELS[:, None] ** 2 * score
    np.testing.assert_allclose(problem.denoise(x, LEVELS), expected, atol=1e-9)


def test_one_level_for_all_is_that_level_for_each(problem):
    x = problem.prior(sample_keys(2, 4), LEVELS)
    one, each = jnp.array(0.7), jnp.full(4, 0.7)
    np.testing.assert_array_equal(problem.denoise(x, one), problem.denoise(x, each))
    np.testing.assert_array_equal(problem.log_density(x, one), problem.log_density(x, each))


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_prior_has_the_weights_and_widths_of_the_marginal(sigma):
    # Modes far enough apart for a draw to tell which it came from.
    means = 100 * np.eye(4)
    problem = mixture(means=means, stds=STDS, weights=WEIGHTS)
    x = np.asarray(problem.prior(sample_keys(3, 12_000), jnp.array(sigma)))
    mode = x.argmax(axis=1)
    counts = np.bincount(mode, minlength=4)
    assert chisquare(counts, 12_000 * np.array(WEIGHTS) / sum(WEIGHTS)).pvalue > 1e-3
    for k in range(4):
        z = (x[mode == k] - means[k]) / np.hypot(STDS[k], sigma)
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)


def test_target_is_the_marginal_without_noise(problem):
    keys = sample_keys(4, 4)
    np.testing.assert_array_equal(problem.target(keys), problem.prior(keys, jnp.zeros(())))
    np.testing.assert_allclose(problem.weights, np.array(WEIGHTS) / sum(WEIGHTS))


@pytest.mark.parametrize("away", [0.0, 1e2, 1e6])
@pytest.mark.parametrize("std", [0.1, 1e-3])
def test_float32_stays_right_at_tiny_noise_and_far_away(std, away):
    """Where a diverging sampler leads: no NaN, and D as exact as float32 can hold x itself."""
    problem, rng = mixture(stds=std), np.random.default_rng(0)
    sigma = np.repeat([1e-3, 0.02, 1.0, 80.0], 8)
    x = problem.means[rng.integers(12, size=32)] + np.hypot(std, sigma)[:, None] * rng.normal(
        size=(32, 16)
    )
    x = (x + away * rng.normal(size=x.shape)).astype(jnp.float32)
    found = denoise(in_float32(problem), x, jnp.asarray(sigma, jnp.float32))
    exact = denoise(problem, x.astype(float), jnp.asarray(sigma))
    assert found.dtype == jnp.float32
    scale = np.maximum(np.abs(x).max(axis=1, keepdims=True), 1)
    assert np.max(np.abs(found - exact) / scale) < 2e-5


def test_far_from_all_modes_the_nearest_decides():
    problem = in_float32(mixture(means=[[0.0], [1.0]], stds=0.1))
    x = jnp.array([[-50.0], [50.0]], jnp.float32)
    small = jnp.array(1e-4, jnp.float32)
    # With sigma far below the modes' width almost all of x is kept, and almost no noise removed.
    np.testing.assert_allclose(problem.denoise(x, small), x, rtol=2e-6)
    large = jnp.array(1.0, jnp.float32)
    keep = 0.01 / 1.01
    np.testing.assert_allclose(
        problem.denoise(x, large), [[-50 * keep], [1 + 49 * keep]], rtol=1e-5
    )


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        (dict(weights=[1.0]), "2 modes but 1 weights"),
        (dict(weights=[1.0, 0.0]), "is not in"),
        (dict(weights=[1.0, float("nan")]), "is not in"),
        (dict(stds=[0.1, -1.0]), "is not in"),
        (dict(stds=0.0), "is not in"),
        (dict(stds=[0.1, 0.1, 0.1]), "2 modes but 3 stds"),
    ],
)
def test_what_makes_no_mixture_is_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        mixture(means=[[0.0, 1.0], [1.0, 0.0]], **wrong)
