"""Gaussian data against Tweedie's formula, an ODE solver and the moments of draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal
from scipy.integrate import solve_ivp

from optdiff.problems import gaussian
from optdiff.sample import sample_keys

COV = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
MEAN = np.array([1.0, -2.0, 0.5])
CASES = {
    "given covariance": dict(mean=MEAN, cov=COV),
    "power law": dict(dim=3, power=3.0, seed=2),
    "singular": dict(mean=MEAN, cov=np.diag([1.0, 4.0, 0.0])),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def problem(request):
    return gaussian(**CASES[request.param])


LEVELS = jnp.array([0.01, 1.0, 30.0])


def test_denoiser_is_tweedie(problem):
    def log_density(x, sigma):
        cov = problem.cov + sigma**2 * jnp.eye(len(problem.mean))
        return multivariate_normal.logpdf(x, problem.mean, cov)

    x = problem.prior(sample_keys(0, 3), LEVELS)
    score = jax.jit(jax.vmap(jax.grad(log_density)))(x, LEVELS)
    expected = x + LEVELS[:, None] ** 2 * score
    np.testing.assert_allclose(problem.denoise(x, LEVELS), expected, atol=1e-9)


@pytest.mark.parametrize("ends", [(5.0, 0.5), (0.5, 5.0), (40.0, 0.01)])
def test_solution_solves_the_probability_flow(problem, ends):
    start, stop = ends
    x = problem.prior(sample_keys(1, 2), jnp.array(start))

    def flow(sigma, flat):
        y = jnp.asarray(flat).reshape(x.shape)
        return np.ravel((y - problem.denoise(y, jnp.array(sigma))) / sigma)

    path = solve_ivp(flow, ends, np.ravel(x), method="DOP853", rtol=1e-9, atol=1e-11)
    found = problem.solution(x, jnp.array(start), jnp.array(stop))
    np.testing.assert_allclose(np.ravel(found), path.y[:, -1], rtol=1e-7, atol=1e-8)


def test_solutions_compose_down_to_zero(problem):
    x = problem.prior(sample_keys(2, 4), jnp.array(9.0))
    levels = [jnp.array(s) for s in (9.0, 1.0, 1e-3, 0.0)]
    there = x
    for before, after in itertools.pairwise(levels):
        there = problem.solution(there, before, after)
    at_once = problem.solution(x, levels[0], levels[-1])
    np.testing.assert_allclose(there, at_once, atol=1e-12)


def test_levels_may_differ_by_sample():
    problem, sigma = gaussian(mean=MEAN, cov=COV), LEVELS
    x = problem.prior(sample_keys(3, 3), sigma)
    for i in range(3):
        alone = x[i : i + 1], sigma[i]
        np.testing.assert_allclose(
            problem.denoise(x, sigma)[i], problem.denoise(*alone)[0], atol=1e-12
        )
        np.testing.assert_allclose(
            problem.solution(x, sigma, sigma / 2)[i],
            problem.solution(*alone, sigma[i] / 2)[0],
            atol=1e-12,
        )
        np.testing.assert_allclose(
            problem.prior(sample_keys(3, 3), sigma)[i],
            problem.prior(sample_keys(3, 1, start=i), sigma[i])[0],
            atol=1e-12,
        )


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_prior_has_the_moments_of_the_marginal(sigma):
    problem, count = gaussian(mean=MEAN, cov=COV), 20_000
    x = np.asarray(problem.prior(sample_keys(4, count), jnp.array(sigma)))
    root = np.linalg.cholesky(COV + sigma**2 * np.eye(3))
    white = np.linalg.solve(root, (x - MEAN).T)  # should be N(0, I)
    assert np.abs(white.mean(axis=1)).max() < 5 / np.sqrt(count)
    assert np.abs(np.cov(white) - np.eye(3)).max() < 5 * np.sqrt(2 / count)


def test_covariance_is_the_one_given_and_default_is_a_power_law():
    np.testing.assert_allclose(gaussian(cov=COV).cov, COV, atol=1e-14)
    eigenvalues = np.linalg.eigvalsh(gaussian(dim=5, power=2.0).cov)[::-1]
    np.testing.assert_allclose(eigenvalues, 1 / np.arange(1, 6) ** 2, rtol=1e-10)


@pytest.mark.parametrize(
    "cov, complaint",
    [
        ([[1.0, 0.5], [0.4, 1.0]], "symmetric"),
        ([[1.0, 2.0], [2.0, 1.0]], "eigenvalue -1"),
        ([[1.0, 0.0]], r"square matrix, but has shape \(1, 2\)"),
        ([[1.0, np.nan], [np.nan, 1.0]], "finite"),
        ([[np.inf, 0.0], [0.0, 1.0]], "finite"),
    ],
)
def test_what_is_no_covariance_is_refused(cov, complaint):
    with pytest.raises(ValueError, match=complaint):
        gaussian(cov=cov)


def test_a_singular_covariance_may_carry_the_rounding_of_float32():
    factor = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    problem = gaussian(cov=factor @ factor.T)
    assert float(problem.variances.min()) == 0


def test_mean_and_covariance_must_agree():
    with pytest.raises(ValueError, match="mean has 2 entries, but cov has 3 rows"):
        gaussian(mean=[0.0, 1.0], cov=COV)
