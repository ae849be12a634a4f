"""Ancestral sampling against what can be written down on a Gaussian: every moment, at every n."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers_oracle import Case

from optdiff.grids import karras, uniform_logsnr
from optdiff.noise import variance_exploding
from optdiff.problems import gaussian
from optdiff.sample import identity, sample, sample_keys
from optdiff.samplers import ancestral, ancestral_down

SCHEDULE = variance_exploding(0.1, 20.0)
PROBLEM = gaussian(mean=[1.0, -2.0], cov=[[2.0, 0.6], [0.6, 0.5]], schedule=SCHEDULE)
COUNT = 40_000


def moments_of_ancestral(levels, eta=1.0):
    """Mean and covariance that DDPM's own rule leaves, from the exact marginal: each step draws
    `x0 ~ D(x)` without its spread, and noise of the posterior's variance beside it."""
    cov, eye = np.asarray(PROBLEM.cov), np.eye(2)
    reached = cov + levels[0] ** 2 * eye
    for sigma, after in pairwise(levels):
        shrink = cov @ np.linalg.inv(cov + sigma**2 * eye)  # D - mean = shrink (x - mean)
        kept = np.sqrt(after**2 - eta**2 * after**2 * (sigma**2 - after**2) / sigma**2) / sigma
        affine = kept * eye + (1 - kept) * shrink
        fresh = eta**2 * after**2 * (1 - after**2 / sigma**2)
        reached = affine @ reached @ affine.T + fresh * eye
    return np.asarray(PROBLEM.mean), reached


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_mean_and_covariance_are_those_of_the_rule(eta):
    """At five coarse levels, where the rule is far from the data's own covariance."""
    levels = uniform_logsnr(SCHEDULE, 5)
    x, _ = sample(PROBLEM, ancestral(eta), levels, sample_keys(0, COUNT), finish=identity)
    _require_moments(x, *moments_of_ancestral(np.asarray(levels), eta))
    with pytest.raises(AssertionError):
        _require_moments(x, PROBLEM.mean, PROBLEM.cov + levels[-1] ** 2 * np.eye(2))


def test_more_steps_lead_to_the_data():
    """The rule's covariance converges at first order, and samples of many steps have it."""
    target = np.asarray(PROBLEM.cov) + SCHEDULE.sigma_min**2 * np.eye(2)
    missed = [
        np.linalg.norm(moments_of_ancestral(np.asarray(karras(SCHEDULE, n)))[1] - target)
        for n in (101, 201, 401)
    ]
    np.testing.assert_allclose(np.log2(missed[:-1]) - np.log2(missed[1:]), 1.0, atol=0.1)

    levels = karras(SCHEDULE, 101)
    x, _ = sample(PROBLEM, ancestral(), levels, sample_keys(1, 10_000), finish=identity)
    _require_moments(x, *moments_of_ancestral(np.asarray(levels)))
    assert missed[0] < 0.1 * np.linalg.norm(target)


def _require_moments(x, mean, cov):
    """Sample mean and covariance within 4.5 of their standard deviations."""
    x, cov = np.asarray(x), np.asarray(cov)
    variances = np.diag(cov)
    spread = np.sqrt((np.outer(variances, variances) + cov**2) / len(x))
    assert (np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(variances / len(x))).all()
    assert (np.abs(np.cov(x.T) - cov) < 4.5 * spread).all()


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noise_removed_and_added_is_the_posteriors(eta):
    """`down` and the noise add up to the next level; at eta 1, `down` is `sigma'^2 / sigma`."""
    sigma, sigma_next = jnp.array([10.0, 3.0, 1.0]), jnp.array([9.0, 0.1, 1.0])
    below = ancestral_down(eta)(sigma, sigma_next)
    posterior = 1.0 / (1.0 / sigma_next**2 + 1.0 / (sigma**2 - sigma_next**2))
    np.testing.assert_allclose(sigma_next**2 - below**2, eta**2 * posterior, rtol=1e-12, atol=1e-12)
    assert (below <= sigma_next).all()


def test_noise_is_independent_between_samples_and_steps():
    """On one point, an iterate at the bottom is made of nothing but noise."""
    point = gaussian(mean=[0.0] * 3, cov=np.zeros((3, 3)))
    keys, levels = sample_keys(0, 20_000), jnp.array([4.0, 2.0, 1.0])
    x = jnp.zeros((20_000, 3))
    _, trace = sample(
        point, ancestral(), levels, keys, x=x, finish=identity, observe=lambda step: step.x_next
    )
    first, second = np.asarray(trace.observed)
    # What is left of the first noise is `down / sigma` of it, here sigma'^2 / sigma^2 = 1/4.
    z = np.concatenate([first / np.sqrt(3.0), (second - first / 4) / np.sqrt(3.0 / 4)], axis=1)
    np.testing.assert_allclose(np.cov(z.T), np.eye(6), atol=4.5 / np.sqrt(20_000) * np.sqrt(2))
    between = np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]
    assert abs(between) < 4.5 / np.sqrt(z.size)


def test_precision_does_not_change_the_noise():
    point, keys = gaussian(mean=[0.0] * 3, cov=np.zeros((3, 3))), sample_keys(0, 500)
    drawn = {
        dtype: sample(
            point,
            ancestral(),
            jnp.array([2.0, 1.0]),
            keys,
            x=jnp.zeros((500, 3), dtype),
            finish=identity,
        )[0]
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16)
    }
    np.testing.assert_allclose(drawn[jnp.float32], drawn[jnp.float64], rtol=1e-6)
    rounded = drawn[jnp.bfloat16].astype(float)
    np.testing.assert_allclose(rounded, drawn[jnp.float64], rtol=1e-2)


def test_on_any_levels_it_is_euler_ancestral(levels, parity):
    """To 1e-10, where levels are far from each other and where they are close."""

    def patch(scheduler):
        values = np.append(levels, 0.0)
        scheduler.sigmas = torch.tensor(values, dtype=torch.get_default_dtype())

    case = Case(len(levels))
    how = {"noisy": True, "patch": patch, "tolerance": 1e-10}
    parity("EulerAncestralDiscreteScheduler", ancestral(1.0), case, **how)
