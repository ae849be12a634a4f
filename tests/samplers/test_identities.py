"""Which samplers are one and the same, and which formula each is; on every kind of grid."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.problems import gaussian
from optdiff.samplers import (
    adam_per_sample,
    ancestral,
    bh1,
    bh2,
    constant,
    ddim,
    deis,
    deis_log_rho,
    deis_rho,
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_3m_sde,
    eps,
    from_optimizer,
    from_transformation,
    gradient_estimation,
    heun,
    ipndm,
    ipndm_v,
    lms,
    momentum,
    nesterov,
    per_sample,
    plms,
    renoise,
    residual,
    sa_solver,
    scale_by_heavy_ball,
    scale_by_sigma_step,
    score,
    unip,
    unipc,
    whole_batch,
)

optimistic = optax.scale_by_optimistic_gradient

THE_SAME = {
    # gradient descent, whatever the gradient is called
    "sgd on eps": (from_optimizer(optax.sgd(1.0), reading=eps), ddim()),
    "sgd on the residual": (from_optimizer(optax.sgd(1.0), reading=residual), ddim()),
    "sgd on the score": (from_optimizer(optax.sgd(1.0), reading=score), ddim()),
    "nothing done to eps": (from_transformation(optax.identity()), ddim()),
    # limits
    "ipndm of order 1": (ipndm(1), ddim()),
    "gradient estimation at 1": (gradient_estimation(1.0), ddim()),
    "momentum without memory": (momentum(0.0), ddim()),
    "nesterov without look-ahead": (nesterov(0.0), ddim()),
    "adam per sample without memory": (adam_per_sample(b1=0.0, b2=0.0), ddim()),
    "ancestral without noise": (ancestral(0.0), ddim()),
    "renoise from the level itself": (renoise(heun(), lambda s, s_next: s_next), heun()),
    "lms of order 1": (lms(1), ddim()),
    "deis of order 1": (deis(1), ddim()),
    "unipc's predictor of order 1": (unip(1), ddim()),
    "sa_solver of one point, tau 0": (sa_solver(1, 0, jnp.zeros_like), ddim()),
    "sa_solver of one point, tau 1": (sa_solver(1, 0, jnp.ones_like), ancestral(1.0)),
    # neighbours
    "deis in the level itself is lms": (deis(4, jnp.asarray), lms(4)),
    "deis in rho, order 3": (deis_rho(3), lms(3)),
    "ipndm_v of order 4": (ipndm_v(4), deis(4, jnp.asarray)),
    "unipc's predictor of order 2 is 2m": (unip(2, bh2), dpmpp_2m()),
    "sa_solver (1, 2) is unipc": (sa_solver(1, 2, jnp.zeros_like), unipc(1, bh1)),
    "sa_solver (2, 3) is unipc": (sa_solver(2, 3, jnp.zeros_like), unipc(2, bh1)),
    "sa_solver (3, 4) is unipc": (sa_solver(3, 4, jnp.zeros_like), unipc(3, bh1)),
    "sa_solver without corrector": (sa_solver(3, 0, jnp.zeros_like), unip(3, bh1)),
    "Adams-Bashforth 2 is gradient estimation": (ipndm(2), gradient_estimation(1.5)),
    "optimistic descent is gradient estimation": (
        optax.chain(optimistic(alpha=1.0, beta=1.0), scale_by_sigma_step()),
        gradient_estimation(2.0),
    ),
    "optimistic descent, through the door": (
        from_transformation(optimistic(alpha=1.0, beta=0.3)),
        gradient_estimation(1.3),
    ),
    "optimistic descent, the alias": (
        from_optimizer(optax.optimistic_gradient_descent(1.0, alpha=1.0, beta=0.7)),
        gradient_estimation(1.7),
    ),
    # wrappings
    "heun sample by sample": (per_sample(heun()), heun()),
    "2M sample by sample": (per_sample(dpmpp_2m()), dpmpp_2m()),
    "heavy ball sample by sample": (
        from_transformation(scale_by_heavy_ball(0.4), wrap=per_sample),
        momentum(0.4),
    ),
    "elementwise, wrapped or not": (
        from_transformation(optax.scale_by_adam(), wrap=per_sample),
        from_transformation(optax.scale_by_adam(), wrap=whole_batch),
    ),
}


@pytest.mark.parametrize("pair", THE_SAME)
def test_these_are_one_sampler(pair, iterates, levels):
    one, other = (iterates(sampler, levels) for sampler in THE_SAME[pair])
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_constant_weights_are_those_of_constant_steps(order, iterates):
    levels = jnp.linspace(4.0, 0.25, 9)
    np.testing.assert_allclose(
        iterates(ipndm(order), levels), iterates(lms(order), levels), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("sampler", [lms(2), ipndm_v(2), deis_rho(2)])
def test_two_steps_extrapolate_by_half_their_ratio(sampler, iterates, levels):
    """Variable-step Adams-Bashforth 2 is gradient estimation with `gamma = 1 + h / (2 h_prev)`."""
    h = -np.diff(levels)
    gammas = iter([1.0, *(1 + h[1:] / (2 * h[:-1]))])
    plain = gradient_estimation(1.0)

    def update(*args, **given):
        return gradient_estimation(next(gammas)).update(*args, **given)

    varied = optax.GradientTransformationExtraArgs(plain.init, update)
    np.testing.assert_allclose(
        iterates(sampler, levels), iterates(varied, levels), rtol=1e-10, atol=1e-10
    )


def test_plms_begins_with_heuns_step_where_the_second_level_is_given_twice(iterates, levels):
    twice = jnp.concatenate([levels[:2], levels[1:]])
    np.testing.assert_allclose(
        iterates(plms(), twice)[2], iterates(heun(), levels)[1], rtol=1e-10, atol=1e-10
    )


def test_the_last_orders_come_down_to_ddims(iterates, levels):
    """From wherever the steps before have led."""
    lowered = (dpmpp_3m(final_order=1), dpmpp_3m_sde(0.0, final_order=1), unip(3, final_order=1))
    for sampler in lowered:
        x = iterates(sampler, levels)
        last = iterates(ddim(), levels[-2:], x=jnp.asarray(x[-2]))
        np.testing.assert_allclose(x[-1], last[-1], rtol=1e-10, atol=1e-10)


def test_ddim_is_euler(iterates, levels, eps):
    x = iterates(ddim(), levels)
    for i in range(len(levels) - 1):
        slope = eps(x[i], levels[i])
        np.testing.assert_allclose(x[i + 1], x[i] + (levels[i + 1] - levels[i]) * slope, rtol=1e-10)


def test_ddim_descends_the_smoothed_distance(problem, iterates, levels):
    """Autodiff of `-sigma^2 log p`, half the squared smoothed distance, with optax's own loop."""
    objective = jax.jit(
        jax.grad(lambda x, sigma: -(sigma**2) * problem.log_density(x, sigma).sum())
    )
    rates = 1.0 - levels[1:] / levels[:-1]
    optimizer = optax.sgd(lambda count: rates[count])
    x = jnp.asarray(iterates(ddim(), levels)[0])
    state, visited = optimizer.init(x), [x]
    for sigma in levels[:-1]:
        updates, state = optimizer.update(objective(x, sigma), state)
        x = optax.apply_updates(x, updates)
        visited.append(x)
    np.testing.assert_allclose(iterates(ddim(), levels), visited, rtol=1e-9, atol=1e-9)

    same = from_optimizer(optimizer, reading=residual, rule=constant)
    np.testing.assert_allclose(
        iterates(same, levels), iterates(ddim(), levels), rtol=1e-10, atol=1e-10
    )


def test_a_learning_rate_multiplies_the_annealed_step(iterates, levels):
    half = iterates(from_optimizer(optax.sgd(0.5)), levels)[1]
    x, whole = iterates(ddim(), levels)[:2]
    np.testing.assert_allclose(half, (x + whole) / 2, rtol=1e-10, atol=1e-10)


def test_renoising_from_zero_is_consistency_sampling(problem, iterates, levels):
    """`x' = D(x, sigma) + sigma' z` (arXiv 2303.01469, algorithm 1)."""
    x = iterates(renoise(ddim(), _to_zero), levels)
    noise = iterates(renoise(_stay, _to_zero), levels)
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        z = (noise[i + 1] - noise[i]) / sigma_next
        expected = problem.denoise(jnp.asarray(x[i]), sigma) + sigma_next * z
        np.testing.assert_allclose(x[i + 1], expected, rtol=1e-10, atol=1e-10)


EXACT_ON_A_POINT = {
    "ddim": ddim(),
    "heun": heun(),
    "dpmpp_2m": dpmpp_2m(),
    "ipndm 2": ipndm(2),
    "ipndm 3": ipndm(3),
    "ipndm 4": ipndm(4),
    "lms": lms(4),
    "plms": plms(),
    "deis": deis(4),
    "deis in log rho": deis_log_rho(3),
    "dpmpp_3m": dpmpp_3m(),
    "unip": unip(3),
    "unipc": unipc(3),
    "unipc bh1": unipc(2, bh1),
    "sa_solver": sa_solver(3, 4, jnp.zeros_like),
    "gradient estimation": gradient_estimation(2.0),
    "averaging": momentum(0.6),
    "extrapolating": momentum(-0.6),
    "nesterov": nesterov(0.5),
    "nesterov backwards": nesterov(-0.3),
    "adam per sample": adam_per_sample(0.5, 0.9),
}


@pytest.mark.parametrize("name", EXACT_ON_A_POINT)
def test_noise_level_is_kept_true(name, iterates, keys, levels):
    """Data in one point leave a constant eps, and any rule whose weights are consistent follows
    the straight line `x_i - point = sigma_i n` to the last digit, whatever the grid."""
    point = gaussian(mean=jnp.arange(6.0), cov=jnp.zeros((6, 6)))
    n = jax.random.normal(jax.random.key(5), (len(keys), 6))
    n = n / jnp.sqrt(jnp.mean(n**2, axis=1, keepdims=True))  # adam_per_sample expects this length
    x = point.mean[None] + levels[0] * n
    line = point.mean[None, None] + levels[:, None, None] * n[None]
    visited = iterates(EXACT_ON_A_POINT[name], levels, problem=point, x=x)
    np.testing.assert_allclose(visited, line, rtol=1e-10, atol=1e-10)


def _to_zero(sigma, sigma_next):
    return jnp.zeros_like(sigma_next)


_stay = optax.GradientTransformationExtraArgs(
    optax.init_empty_state, lambda eps, state, x=None, **unused: (jnp.zeros_like(eps), state)
)
