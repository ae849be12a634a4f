"""Scalings and guidance, asked of networks that know the answer."""

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
from optdiff.sample import _eps, sample_keys

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


@pytest.fixture(scope="module")
def conditional():
    return digits(conditional=True)


@pytest.fixture(scope="module")
def asked(conditional):
    """Noisy digits at a level of each sample's own, and what each should become."""
    keys, sigma = sample_keys(0, 3), jnp.array([0.5, 2.0, 5.0], jnp.float32)
    cond = conditional.condition(keys)
    return conditional.prior(keys, sigma).astype(jnp.float32), sigma, cond


def test_guidance_of_nothing_of_one_and_of_more(conditional, asked):
    x, sigma, cond = asked
    anything = conditional.denoise(x, sigma, jnp.ones_like(cond))
    given = conditional.denoise(x, sigma, cond)
    for scale, expected in [
        (0.0, anything),
        (1.0, given),
        (7.5, 7.5 * given - 6.5 * anything),
    ]:
        found = Guided(conditional, scale, jnp.ones(10)).denoise(x, sigma, cond)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        one_level = Guided(conditional, scale, jnp.ones(10)).denoise(x[1:2], sigma[1], cond[1:2])
        np.testing.assert_allclose(found[1], one_level[0], atol=2e-5)


def test_a_negative_condition_takes_the_place_of_none(conditional, asked):
    x, sigma, cond = asked
    seven = jax.nn.one_hot(7, 10)
    found = Guided(conditional, 2.0, seven).denoise(x, sigma, cond)
    away = conditional.denoise(x, sigma, jnp.tile(seven[None], (3, 1)))
    np.testing.assert_allclose(found, 2 * conditional.denoise(x, sigma, cond) - away, atol=2e-5)


def test_conditions_may_be_trees():
    class Shifted:
        """D is the condition's own target, so that guidance is plain arithmetic."""

        def denoise(self, x, sigma, cond):
            return cond["a"] + cond["b"]["c"]

    cond = {"a": jnp.array([[1.0], [2.0]]), "b": {"c": jnp.array([[10.0], [20.0]])}}
    uncond = {"a": jnp.array([0.0]), "b": {"c": jnp.array([5.0])}}
    found = Guided(Shifted(), 3.0, uncond).denoise(jnp.zeros((2, 1)), jnp.array(1.0), cond)
    np.testing.assert_allclose(found, [[5 + 3 * 6], [5 + 3 * 17]])


def test_guidance_is_two_passes_of_one_network_and_the_scale_is_a_leaf(conditional, asked):
    x, sigma, cond = asked
    guided = Guided(conditional, jnp.float32(2.0), jnp.ones(10))
    assert guided.passes == 2
    _eps(guided, cond, x, sigma)
    compiled = _eps._cache_size()
    more = jax.tree.map(lambda leaf: leaf, Guided(conditional, jnp.float32(9.0), jnp.ones(10)))
    assert float(more.scale) == 9.0
    assert np.abs(_eps(more, cond, x, sigma) - _eps(guided, cond, x, sigma)).max() > 1e-3
    assert _eps._cache_size() == compiled


def test_guidance_hands_everything_else_on(conditional):
    guided, keys = Guided(conditional, 2.0, jnp.ones(10)), sample_keys(0, 3)
    cond = guided.condition(keys)
    np.testing.assert_array_equal(cond, conditional.condition(keys))
    start = guided.prior(keys, jnp.ones(()), cond)
    np.testing.assert_array_equal(start, conditional.prior(keys, jnp.ones(()), cond))
    np.testing.assert_array_equal(guided.decode(start), conditional.decode(start))
    np.testing.assert_array_equal(guided.reference(keys, cond), conditional.reference(keys, cond))
    assert guided.schedule is conditional.schedule


def test_guidance_without_a_condition_says_so(conditional):
    with pytest.raises(ValueError, match="needs a condition per sample"):
        Guided(gaussian(dim=2), 2.0, None).denoise(jnp.zeros((1, 2)), jnp.ones(()), None)
