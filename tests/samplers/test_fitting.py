"""What lets optax's odd optimizers in, and hyperparameters that follow steps or the noise level."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.sample import sample_keys
from optdiff.samplers import (
    adam_per_sample,
    adaptive_momentum,
    begin_beside,
    by_level,
    constant,
    eps,
    eqm_nag,
    from_optimizer,
    from_transformation,
    image_axes,
    momentum,
    nesterov,
    per_sample,
    pfdiff,
    residual,
    scale_by_root_size,
    unless_at_rest,
    with_read_out,
)


def falling(sigma):
    """More averaging the more noise there is."""
    return sigma / (1.0 + sigma)


def test_a_constant_level_schedule_is_a_constant(iterates, levels):
    followed = by_level(momentum, beta=lambda sigma: 0.3)
    np.testing.assert_allclose(iterates(followed, levels), iterates(momentum(0.3), levels))


def test_hyperparameters_follow_the_level(iterates, levels, eps):
    x = iterates(by_level(momentum, beta=falling), levels)
    velocity = eps(x[0], levels[0])
    for i in range(len(levels) - 1):
        beta = levels[i] / (1 + levels[i])
        velocity = beta * velocity + (1 - beta) * eps(x[i], levels[i])
        moved = x[i] - (levels[i] - levels[i + 1]) * velocity
        np.testing.assert_allclose(x[i + 1], moved, rtol=1e-10, atol=1e-10)


def test_a_learning_rate_by_level_is_a_reading(iterates, levels):
    """`sigma eps` is the residual, whoever multiplies."""
    followed = by_level(optax.sgd, learning_rate=lambda sigma: 0.3 * sigma)
    ours = from_optimizer(followed, reading=eps, rule=constant)
    same = from_optimizer(optax.sgd(0.3), reading=residual, rule=constant)
    np.testing.assert_allclose(iterates(ours, levels), iterates(same, levels), rtol=1e-10)


def test_schedules_of_optax_serve_by_level_and_by_step(iterates):
    """On uniform levels the two count alike."""
    levels = jnp.linspace(8.0, 1.0, 8)
    ramp = optax.linear_schedule(0.9, 0.1, transition_steps=8)
    by_step = from_optimizer(optax.sgd(lambda count: ramp(8 - count)))
    followed = from_optimizer(by_level(optax.sgd, learning_rate=ramp))
    np.testing.assert_allclose(iterates(followed, levels), iterates(by_step, levels), rtol=1e-5)


def given(sigma, count):
    levels = {"sigma": sigma, "sigma_next": sigma / 2, "steps_left": 2}
    return levels | {"key": sample_keys(0, count), "eps_fn": None}


@pytest.mark.parametrize(
    "sampler",
    [
        by_level(momentum, beta=falling),
        by_level(nesterov, mu=falling),
        by_level(pfdiff, foresight=falling),
        by_level(eqm_nag, mu=falling, learning_rate=falling),
        by_level(adam_per_sample, b1=falling, b2=falling),
        by_level(adaptive_momentum, a=falling, b2=falling),
        from_transformation(by_level(optax.scale_by_adam, b1=falling, b2=0.9)),
    ],
)
def test_a_level_per_sample_is_a_hyperparameter_per_sample(sampler):
    x, sigma = jax.random.normal(jax.random.key(0), (3, 4)), jnp.array([8.0, 2.0, 0.1])

    def second(x, sigma):
        state = sampler.init(x)
        _, state = sampler.update(jnp.sin(x), state, x, **given(sigma, len(x)))
        return sampler.update(jnp.cos(x), state, x, **given(sigma / 2, len(x)))[0]

    alone = [second(x[i : i + 1], sigma[i])[0] for i in range(3)]
    np.testing.assert_allclose(second(x, sigma), alone, rtol=1e-12)


def test_levels_do_not_widen_what_is_remembered():
    x = jnp.ones((2, 3), jnp.bfloat16)
    sampler = from_transformation(by_level(optax.scale_by_adam, b1=falling))
    state = sampler.init(x)
    dx, after = sampler.update(x, state, x, **given(jnp.array(2.0), 2))
    assert dx.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_schedule_free_ends_at_its_average(problem, iterates, levels):
    """Gradients at y between the iterate z and the average x of all the z (arXiv 2405.15682,
    eqs. 3 to 5), which is where the last step goes."""
    rate, beta = 0.4, 0.8
    optimizer = with_read_out(
        optax.contrib.schedule_free_sgd(rate, b1=beta), optax.contrib.schedule_free_eval_params
    )
    visited = iterates(from_optimizer(optimizer, reading=residual, rule=constant), levels)
    y = z = x = jnp.asarray(visited[0])
    for i, sigma in enumerate(levels[:-1]):
        np.testing.assert_allclose(visited[i], y, rtol=1e-9, atol=1e-9)
        z = z - rate * (y - problem.denoise(y, sigma))
        x = x + (z - x) / (i + 1)
        y = beta * x + (1 - beta) * z
    np.testing.assert_allclose(visited[-1], x, rtol=1e-9, atol=1e-9)


def test_at_rest_nothing_moves_or_is_learnt():
    """Prodigy divides by its gradients; between two real ones it is as if there had been none."""
    plain, guarded = optax.contrib.prodigy(), unless_at_rest(optax.contrib.prodigy())
    x, still = jnp.array([1.0, -2.0]), jnp.zeros(2)
    state, guarded_state = plain.init(x), guarded.init(x)
    for gradient in (still, x, still, 2 * x):
        update, guarded_state = guarded.update(gradient, guarded_state, x)
        if gradient is still:
            np.testing.assert_array_equal(update, still)
        else:
            expected, state = plain.update(gradient, state, x)
            np.testing.assert_array_equal(update, expected)


def test_a_start_beside_gives_distances_a_gradient():
    def moved(x, optimizer):
        updates, _ = optimizer.update(x, optimizer.init(x), x)
        return jnp.sum(updates**2)

    x, dog = jnp.array([3.0, -4.0]), optax.contrib.dog(init_step=("heuristic", 1.0))
    assert jnp.isnan(jax.grad(moved)(x, dog)).all()
    np.testing.assert_allclose(moved(x, begin_beside(dog)), moved(x, dog), rtol=1e-3)
    # The first step has length 1 + |x|.
    np.testing.assert_allclose(jax.grad(moved)(x, begin_beside(dog)), 2 * 6 * x / 5, rtol=1e-3)


@pytest.mark.parametrize("shape", [(2, 9), (2, 3, 3), (2, 3, 2, 2)])
def test_unit_length_becomes_unit_mean_square(shape):
    tx = per_sample(optax.chain(optax.normalize_by_update_norm(), scale_by_root_size()))
    x = jnp.array([1.0, 50.0]).reshape(2, *[1] * (len(shape) - 1)) + jnp.zeros(shape)
    x = x * jnp.cos(jnp.arange(x.size)).reshape(shape)
    unit, _ = tx.update(x, tx.init(x), x, **given(jnp.array(1.0), 2))
    squares = jnp.mean(unit.reshape(2, -1) ** 2, axis=1)
    np.testing.assert_allclose(squares, 1.0, rtol=1e-5)


def test_muon_sees_each_channel_as_a_matrix():
    """It makes the singular values of each alike, those of the direction it is given."""
    muon = optax.contrib.muon(
        -1.0, ns_coeffs=(2.0, -1.5, 0.5), ns_steps=24, muon_weight_dimension_numbers=image_axes
    )
    x = jax.random.normal(jax.random.key(0), (5, 4, 3))
    update, _ = muon.update(x, muon.init(x), x)
    for channel, direction in zip(jnp.moveaxis(update, -1, 0), jnp.moveaxis(x, -1, 0), strict=True):
        u, _, vt = np.linalg.svd(direction, full_matrices=False)
        np.testing.assert_allclose(channel, u @ vt, atol=1e-6)
