"""Optax transformations that keep a random key in their state: noise of each sample's own."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.problems import gaussian
from optdiff.problems.gaussian import Gaussian
from optdiff.sample import identity, sample, sample_keys, sample_scan
from optdiff.samplers import from_optimizer, from_transformation, scale_by_sigma_step, whole_batch


class Clean(Gaussian):
    """A problem that finds no noise in anything: the gradient is zero."""

    def denoise(self, x, sigma, cond=None):
        return x


jax.tree_util.register_dataclass(Clean, ["mean", "basis", "variances"], ["schedule"])
CLEAN = Clean(**vars(gaussian(dim=2)))


def noisy_with_raw_words():
    """As older transformations keep their keys."""

    def update(updates, key, params=None):
        key, now = jax.random.split(key)
        return updates + jax.random.normal(now, updates.shape), key

    return optax.GradientTransformation(lambda x: jax.random.PRNGKey(0), update)


# Those for private learning take the first axis for examples, of which they return the mean.
BACK = optax.stateless(lambda mean, params: mean[None])
NOISY = {
    "add_noise": optax.add_noise(1.0, 0.0, key=0),
    "noisy_sgd": optax.noisy_sgd(1.0, eta=1.0, gamma=0.0),
    "dpsgd": optax.chain(optax.contrib.dpsgd(1.0, 1.0, 1.0, seed=0), BACK),
    "differentially_private_aggregate": optax.chain(
        optax.contrib.differentially_private_aggregate(1.0, 1.0, 0), BACK
    ),
    "in a chain": optax.chain(optax.trace(0.0), optax.add_noise(1.0, 0.0, key=7)),
    "raw words": noisy_with_raw_words(),
}
ASK_FOR_A_LOSS = {"sophia", "hutchinson_estimator_diag_hessian"}  # refused, as sampling has none


def test_none_that_keeps_a_key_is_forgotten():
    """Whatever of optax takes a key or a seed."""
    takes = set()
    for room in (optax, optax.contrib):
        for name, make in inspect.getmembers(room, inspect.isfunction):
            asks = {"key", "seed", "rng", "random_seed"} & set(inspect.signature(make).parameters)
            takes |= {name} if asks and not name.startswith("_") else set()
    assert takes - {"power_iteration"} <= set(NOISY) | ASK_FOR_A_LOSS


def noise(name, seed, count=512, mode=sample, start=0):
    """What one step adds to samples that all start at zero."""
    x = jnp.zeros((count, 1, 16))
    sampler, levels = from_optimizer(NOISY[name]), jnp.array([2.0, 1.0])
    x0, _ = mode(CLEAN, sampler, levels, sample_keys(seed, count, start), x=x, finish=identity)
    return np.asarray(x0).reshape(count, 16)


@pytest.mark.parametrize("name", NOISY)
def test_noise_differs_by_sample_and_by_seed(name):
    first, second = noise(name, 0), noise(name, 2**32)
    for drawn in (first, second):
        std, mean = drawn.std(), drawn.mean(axis=0)
        assert (np.abs(mean) < 5 * std / np.sqrt(len(drawn))).all(), "a mean over samples vanishes"
        between = np.corrcoef(drawn) - np.eye(len(drawn))
        assert np.abs(between).max() < 0.95, "no two samples share their noise"
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["add_noise", "raw words"])
def test_noise_depends_neither_on_company_nor_on_mode(name):
    together = noise(name, 3, count=8)
    np.testing.assert_allclose(noise(name, 3, count=2, start=5), together[5:7], atol=1e-12)
    np.testing.assert_allclose(noise(name, 3, count=8, mode=sample_scan), together, atol=1e-12)


def test_noise_of_every_step_is_new():
    sampler = from_transformation(optax.add_noise(1.0, 0.0, key=0))
    levels = jnp.arange(40.0, 0.0, -1.0)
    options = {"x": jnp.zeros((4, 16)), "observe": lambda step: step.x_next - step.x}
    _, trace = sample_scan(CLEAN, sampler, levels, sample_keys(0, 4), **options)
    between = np.corrcoef(np.asarray(trace.observed).reshape(-1, 16))
    assert np.abs(between - np.eye(len(between))).max() < 0.95


@pytest.mark.parametrize("mode", [sample, sample_scan])
@pytest.mark.parametrize("name", ["add_noise", "raw words"])
def test_one_key_for_all_samples_is_refused(mode, name):
    problem, keys = gaussian(dim=2), sample_keys(0, 2)
    bare = optax.chain(NOISY[name], scale_by_sigma_step())
    for sampler in (from_transformation(NOISY[name], wrap=whole_batch), bare):
        with pytest.raises(ValueError, match="wrap its transformation in `per_sample`"):
            mode(problem, sampler, jnp.array([2.0, 1.0]), keys)
