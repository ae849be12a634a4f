"""Readings, step rules, and the door through which optax's transformations come in."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.problems import gaussian
from optdiff.sample import sample_keys, sample_scan
from optdiff.samplers import (
    constant,
    eps,
    from_optimizer,
    from_transformation,
    heun,
    per_sample,
    residual,
    scale_by_reading,
    score,
    whole_batch,
)
from optdiff.samplers.directions import weighted_sum


@pytest.mark.parametrize("sigma", [jnp.array(0.7), jnp.linspace(0.3, 5.0, 5)])
def test_readings_are_three_gradients_of_one_prediction(problem, keys, sigma):
    """Up to signs: the noise, the way to the data, and the autodiff of log p."""
    x = problem.prior(keys, sigma)
    level = sigma.reshape(-1, 1)
    predicted = (x - problem.denoise(x, sigma)) / level
    log_gradient = jax.grad(lambda x: problem.log_density(x, sigma).sum())(x)
    gradients = {eps: predicted, residual: predicted * level, score: -log_gradient}
    for reading, expected in gradients.items():
        link = scale_by_reading(reading)
        gradient, _ = link.update(predicted, link.init(x), x, sigma=sigma)
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-9)


def test_constant_rule_is_the_optimizers_own_step(problem, iterates, levels):
    """The lecture's plain descent: subtract a constant times the gradient, again and again."""
    x = iterates(from_optimizer(optax.sgd(0.3), reading=residual, rule=constant), levels)
    for i, sigma in enumerate(levels[:-1]):
        towards = jnp.asarray(x[i]) - problem.denoise(jnp.asarray(x[i]), sigma)
        np.testing.assert_allclose(x[i + 1], x[i] - 0.3 * towards, rtol=1e-10, atol=1e-10)


def test_transformations_see_the_iterate(iterates, levels, eps):
    x = iterates(from_transformation(optax.add_decayed_weights(0.1)), levels)
    for i in range(len(levels) - 1):
        direction = eps(x[i], levels[i]) + 0.1 * x[i]
        moved = x[i] - (levels[i] - levels[i + 1]) * direction
        np.testing.assert_allclose(x[i + 1], moved, rtol=1e-10, atol=1e-10)


NORMED = {
    "normalized": optax.normalize_by_update_norm(),
    "clipped": optax.clip_by_global_norm(1.0),
    "lamb": optax.lamb(0.1),
    "distance over gradients": optax.contrib.dog(),
}


def _update(tx, x):
    """The second update of a wrapped transformation at x, for some gradient."""
    given = {
        "sigma": jnp.array(2.0),
        "sigma_next": jnp.array(1.0),
        "steps_left": 1,
        "key": sample_keys(0, len(x)),
        "eps_fn": None,
    }
    state = tx.init(x)
    for _ in range(2):
        out, state = tx.update(x * jnp.cos(x), state, x, **given)
    return out


@pytest.mark.parametrize("name", NORMED)
def test_samples_never_talk_through_a_norm(name):
    x = (
        jax.random.normal(jax.random.key(0), (4, 3, 2))
        * jnp.array([1e-2, 1.0, 3.0, 50.0])[:, None, None]
    )
    together = _update(per_sample(NORMED[name]), x)
    alone = [_update(per_sample(NORMED[name]), x[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-10)
    assert not np.allclose(_update(whole_batch(NORMED[name]), x), alone), "it does take norms"


def test_per_sample_evaluates_the_whole_batch_at_once():
    """Look-ahead methods inside see one sample; the network sees all, each at its own level."""
    seen = []

    def eps_fn(x, sigma):
        seen.append((x.shape, sigma.shape))
        return x * sigma[:, None]

    x, sigma = jnp.ones((3, 2)), jnp.array([3.0, 2.0, 1.0])
    tx = per_sample(heun())
    moved, _ = tx.update(
        x,
        tx.init(x),
        x,
        sigma=sigma,
        sigma_next=sigma / 2,
        steps_left=1,
        key=sample_keys(0, 3),
        eps_fn=eps_fn,
    )
    assert seen == [((3, 2), (3,))]
    euler = x * (1 - sigma / 2)[:, None]
    expected = -(sigma / 4)[:, None] * (x + euler * (sigma / 2)[:, None])
    np.testing.assert_allclose(moved, expected, rtol=1e-12)


def test_gradients_reach_the_weights_through_per_sample():
    problem, levels, keys = gaussian(dim=3), jnp.geomspace(10.0, 0.1, 4), sample_keys(0, 2)

    def gradient(sampler):
        def total(problem):
            return jnp.sum(sample_scan(problem, sampler, levels, keys, x=jnp.ones((2, 3)))[0] ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(total))(problem))

    for wrapped, plain in zip(gradient(per_sample(heun())), gradient(heun()), strict=True):
        np.testing.assert_allclose(wrapped, plain, rtol=1e-9)
        assert np.abs(plain).max() > 1e-6


def test_weighted_sums_round_once():
    """Coefficients keep their precision; the sum takes the first field's."""
    third = jnp.full(2, 1 / 3)
    field = jnp.ones((2, 3), jnp.bfloat16)
    total = weighted_sum((third, field), (2 * third, field))
    assert total.dtype == jnp.bfloat16
    assert (total == 1.0).all(), "a third in bfloat16 and twice that add up to less"
