"""Propagated Gaussians against exact solutions, drawn samples and the covariance form of W2."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.analysis.affine import exact_w2, propagate
from optdiff.grids import karras
from optdiff.metrics import gaussian_w2
from optdiff.problems import gaussian
from optdiff.sample import identity, sample, sample_keys
from optdiff.samplers import (
    adam_per_sample,
    ancestral,
    ddim,
    dpmpp_2m,
    from_optimizer,
    from_transformation,
    gradient_estimation,
    heun,
    ipndm,
    momentum,
    nesterov,
)

AFFINE = {
    "ddim": ddim(),
    "heun": heun(),
    "dpmpp_2m": dpmpp_2m(),
    "ipndm": ipndm(4),
    "momentum": momentum(0.3),
    "nesterov": nesterov(0.3),
    "gradient_estimation": gradient_estimation(),
    "sgd": from_optimizer(optax.sgd(1.0)),
}
NOT_AFFINE = {
    "adam": from_transformation(optax.scale_by_adam()),
    "adam_per_sample": adam_per_sample(),
    "sign": from_transformation(optax.scale_by_sign()),
    "clipped": from_transformation(optax.clip_by_global_norm(6.0)),
    "ancestral": ancestral(),
    "a little noise": ancestral(eta=0.05),
}


def exact_flow(problem):
    """A sampler that follows the probability-flow solution exactly."""

    def update(eps, state, x=None, *, sigma, sigma_next, **unused):
        return problem.solution(x, sigma, sigma_next) - x, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@pytest.fixture(scope="module")
def problem():
    return gaussian(dim=32)


def test_the_exact_flow_carries_one_marginal_into_another(problem):
    levels = karras(problem.schedule, 5, sigma_min=0.1)
    pushed = propagate(problem, exact_flow(problem), levels, finish=identity)
    np.testing.assert_allclose(pushed.mean, problem.mean, atol=1e-12)
    np.testing.assert_allclose(pushed.cov, problem.cov + 0.1**2 * np.eye(32), atol=1e-12)


def test_w2_of_the_exact_flow_is_what_the_last_denoising_shrinks(problem):
    # Along an eigenvector D multiplies the deviation, of variance lam + s^2, by lam / (lam + s^2).
    lam, s = np.asarray(problem.variances), 0.1
    levels = karras(problem.schedule, 5, sigma_min=s)
    expected = np.linalg.norm(np.sqrt(lam) - lam / np.sqrt(lam + s**2))
    assert exact_w2(problem, exact_flow(problem), levels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["ddim", "heun", "ipndm"])
def test_moments_are_those_of_samples(problem, name):
    levels, count = karras(problem.schedule, 5), 4000
    pushed = propagate(problem, AFFINE[name], levels)
    x0, _ = sample(problem, AFFINE[name], levels, sample_keys(0, count))
    # In coordinates where the samples should be N(0, I), moments have known standard errors.
    white = np.linalg.solve(pushed.root, (np.asarray(x0) - pushed.mean).T)
    assert np.abs(white.mean(axis=1)).max() < 5 / np.sqrt(count)
    assert np.abs(np.cov(white) - np.eye(32)).max() < 5 * np.sqrt(2 / count)


@pytest.mark.parametrize("spectrum", [np.linspace(0.5, 4.0, 32), np.arange(32.0) % 2])
def test_w2_agrees_with_the_form_in_covariances(spectrum):
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))
    problem = gaussian(cov=(turn * spectrum) @ turn.T)
    levels = karras(problem.schedule, 6)
    for sampler in AFFINE.values():
        pushed = propagate(problem, sampler, levels)
        expected = gaussian_w2(pushed.mean, pushed.cov, problem.mean, problem.cov)
        # A root of a covariance is only good to the square root of rounding.
        assert exact_w2(problem, sampler, levels) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_other_samplers_are_told_apart(problem, name):
    levels = karras(problem.schedule, 6)
    assert propagate(problem, NOT_AFFINE[name], levels) is None
    assert exact_w2(problem, NOT_AFFINE[name], levels) is None


@pytest.mark.parametrize("n", [4, 32])
@pytest.mark.parametrize("name", AFFINE)
def test_float32_is_exact_to_a_thousandth(problem, name, n):
    single = jax.tree.map(lambda a: a.astype(jnp.float32), problem)
    levels = karras(problem.schedule, n)
    coarse = exact_w2(single, AFFINE[name], levels.astype(jnp.float32))
    assert coarse == pytest.approx(exact_w2(problem, AFFINE[name], levels), rel=1e-3)


def test_a_single_level_is_the_denoiser_alone(problem):
    lam, s = np.asarray(problem.variances), 80.0
    expected = np.linalg.norm(np.sqrt(lam) - lam / np.sqrt(lam + s**2))
    assert exact_w2(problem, ddim(), jnp.array([s])) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_w2_falls_at_the_order_of_the_sampler(problem, name, order):
    # sigma_min is far below the smallest standard deviation, so the last denoising adds little.
    coarse, fine = (
        exact_w2(problem, AFFINE[name], karras(problem.schedule, n, sigma_min=1e-5))
        for n in (51, 101)
    )
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.1)
