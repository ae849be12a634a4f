"""Scalings and guidance, asked of networks that know the answer."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.denoisers import (
    Guided,
    edm_scaling,
    eps_scaling,
    flow_scaling,
    precondition,
    v_scaling,
    x0_scaling,
)
from optdiff.noise import flow, scaled_linear, variance_exploding
from optdiff.problems import digits, gaussian
from optdiff.sample import eps_at, sample_keys
from optdiff.types import expand

SIGMA_DATA = 0.5
X0 = np.random.default_rng(0).normal(size=(4, 3, 2))
NOISE = np.random.default_rng(1).normal(size=(4, 3, 2))

# What each kind of network is trained to see and to answer, in its own coordinates: an angle for
# v (x0 cos + n sin), a mixing time for flow. None of it mentions a coefficient of a scaling.


def angle(sigma):
    """Of the variance-preserving circle: noise and data are its two sides."""
    return np.arctan2(sigma, 1.0)


def seen_on_circle(sigma):
    return np.cos(angle(sigma)) * X0 + np.sin(angle(sigma)) * NOISE


KINDS = {
    "eps": (eps_scaling, scaled_linear(), seen_on_circle, lambda sigma: NOISE),
    "x0": (x0_scaling, scaled_linear(), seen_on_circle, lambda sigma: X0),
    "v": (
        v_scaling,
        scaled_linear(),
        seen_on_circle,  # v is the circle's tangent
        lambda sigma: np.cos(angle(sigma)) * NOISE - np.sin(angle(sigma)) * X0,
    ),
    "flow": (
        flow_scaling,
        flow(),
        lambda sigma: X0 + sigma / (1 + sigma) * (NOISE - X0),
        lambda sigma: NOISE - X0,
    ),
}


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.0, 14.0, 1e3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_knows_the_answer_denoises_exactly(kind, sigma):
    scaling, schedule, seen, answer = KINDS[kind]

    def oracle(z, c_noise, cond):
        np.testing.assert_allclose(z, seen(sigma), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(c_noise, schedule.t(jnp.array(sigma)))
        return jnp.asarray(answer(sigma))

    denoise = precondition(oracle, scaling, schedule)
    found = denoise(jnp.asarray(X0 + sigma * NOISE), jnp.array(sigma), None)
    np.testing.assert_allclose(found, X0, atol=1e-12 * (1 + sigma))


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.0, 14.0, 1e3])
def test_edm_sees_and_answers_with_unit_variance(sigma):
    """What defines EDM's scaling (arXiv 2206.00364, appendix B.6): for data of the announced
    variance, input and target have variance 1, and c_out is as small as possible."""
    scaling = partial(edm_scaling, sigma_data=SIGMA_DATA)
    c = scaling(variance_exploding(), jnp.array(sigma))
    # Variances of linear combinations of independent x0 and n.
    seen = c.c_in**2 * (SIGMA_DATA**2 + sigma**2)
    on_x0, on_noise = (1 - c.c_skip) / c.c_out, -c.c_skip * sigma / c.c_out
    target = on_x0**2 * SIGMA_DATA**2 + on_noise**2
    np.testing.assert_allclose([seen, target], 1.0, rtol=1e-9)

    def out(skip):
        return (1 - skip) ** 2 * SIGMA_DATA**2 + (skip * sigma) ** 2

    assert jax.grad(out)(c.c_skip) == pytest.approx(0.0, abs=1e-12)
    assert c.c_noise == pytest.approx(np.log(sigma**0.25))

    def oracle(z, c_noise, cond):
        return jnp.asarray(on_x0 * X0 + on_noise * NOISE)

    denoise = precondition(oracle, scaling, variance_exploding())
    found = denoise(jnp.asarray(X0 + sigma * NOISE), jnp.array(sigma), None)
    np.testing.assert_allclose(found, X0, atol=1e-12 * (1 + sigma))


@pytest.mark.parametrize("scaling", [KINDS[k][0] for k in KINDS] + [edm_scaling])
def test_levels_may_differ_by_sample(scaling):
    schedule = flow() if scaling is flow_scaling else scaled_linear()
    asked = []

    def network(z, c_noise, cond):
        asked.append(c_noise.shape)
        return jnp.tanh(z) + c_noise.reshape(-1, *[1] * (z.ndim - 1))

    denoise = precondition(network, scaling, schedule)
    x, sigma = jnp.asarray(X0), jnp.array([0.05, 0.5, 3.0, 12.0])
    together = denoise(x, sigma, None)
    for i in range(4):
        alone = denoise(x[i : i + 1], sigma[i], None)
        np.testing.assert_allclose(together[i], alone[0], atol=1e-12)
    assert asked == [(4,), (), (), (), ()]


def test_samples_keep_their_dtype():
    denoise = precondition(lambda z, t, cond: z, v_scaling, scaled_linear())
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert denoise(x, jnp.array(2.0), None).dtype == jnp.bfloat16


@partial(jax.tree_util.register_dataclass, data_fields=["weight"], meta_fields=[])
@dataclass(frozen=True)
class Conditional:
    """A denoiser that listens to everything: x, sigma, its weights and its condition."""

    weight: jax.Array

    def denoise(self, x, sigma, cond):
        return jnp.tanh(x * expand(sigma, x)) * self.weight * (1 + cond)


CONDITIONAL = Conditional(jnp.array([[2.0, -1.0]]))
X, SIGMA, COND = jnp.asarray(X0[:, 0]), jnp.array([0.5, 1.0, 2.0, 5.0]), jnp.asarray(NOISE[:, 0])


def test_guidance_of_nothing_of_one_and_of_more():
    anything = CONDITIONAL.denoise(X, SIGMA, jnp.zeros_like(COND))
    given = CONDITIONAL.denoise(X, SIGMA, COND)
    for scale, expected in [
        (0.0, anything),
        (1.0, given),
        (7.5, 7.5 * given - 6.5 * anything),
    ]:
        guided = Guided(CONDITIONAL, scale, jnp.zeros(2))
        found = guided.denoise(X, SIGMA, COND)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        one_level = guided.denoise(X[1:2], SIGMA[1], COND[1:2])
        np.testing.assert_allclose(found[1], one_level[0], atol=1e-12)


def test_a_negative_condition_takes_the_place_of_none():
    negative = jnp.array([0.3, -0.7])
    found = Guided(CONDITIONAL, 2.0, negative).denoise(X, SIGMA, COND)
    away = CONDITIONAL.denoise(X, SIGMA, jnp.tile(negative[None], (4, 1)))
    np.testing.assert_allclose(found, 2 * CONDITIONAL.denoise(X, SIGMA, COND) - away, atol=1e-12)


def test_conditions_may_be_trees():
    class Shifted:
        """D is the condition's own target, so that guidance is plain arithmetic."""

        def denoise(self, x, sigma, cond):
            return cond["a"] + cond["b"]["c"]

    cond = {"a": jnp.array([[1.0], [2.0]]), "b": {"c": jnp.array([[10.0], [20.0]])}}
    uncond = {"a": jnp.array([0.0]), "b": {"c": jnp.array([5.0])}}
    found = Guided(Shifted(), 3.0, uncond).denoise(jnp.zeros((2, 1)), jnp.array(1.0), cond)
    np.testing.assert_allclose(found, [[5 + 3 * 6], [5 + 3 * 17]])


def test_guidance_is_two_passes_of_one_program_and_the_scale_is_a_leaf():
    guided, more = (Guided(CONDITIONAL, jnp.array(scale), jnp.zeros(2)) for scale in (2.0, 9.0))
    assert guided.passes == 2
    little = eps_at(guided, COND, X, SIGMA)
    compiled = eps_at._cache_size()
    assert np.abs(eps_at(more, COND, X, SIGMA) - little).max() > 1
    assert eps_at._cache_size() == compiled


def test_guidance_hands_everything_else_on():
    conditional = digits(conditional=True)
    guided, keys = Guided(conditional, 2.0, jnp.ones(10)), sample_keys(0, 4)
    cond = guided.condition(keys)
    np.testing.assert_array_equal(cond, conditional.condition(keys))
    start = guided.prior(keys, jnp.ones(()), cond)
    np.testing.assert_array_equal(start, conditional.prior(keys, jnp.ones(()), cond))
    np.testing.assert_array_equal(guided.decode(start), conditional.decode(start))
    np.testing.assert_array_equal(guided.reference(keys, cond), conditional.reference(keys, cond))
    assert guided.schedule is conditional.schedule


def test_guidance_without_a_condition_says_so():
    with pytest.raises(ValueError, match="needs a condition per sample"):
        Guided(gaussian(dim=2), 2.0, None).denoise(jnp.zeros((1, 2)), jnp.ones(()), None)
