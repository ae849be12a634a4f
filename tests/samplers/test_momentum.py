"""Momentum and foresight: what each coincides with, its published recursion, and its order."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.cost import evals_per_step
from optdiff.grids import karras, linear_sigma
from optdiff.noise import variance_exploding
from optdiff.problems import gaussian
from optdiff.sample import identity, sample, sample_keys
from optdiff.samplers import (
    adaptive_momentum,
    ancestral,
    anneal,
    constant,
    ddim,
    eqm_nag,
    from_transformation,
    ghvb,
    gradient_estimation,
    ipndm,
    momentum,
    pfdiff,
    residual,
)

THE_SAME = {
    "generalized heavy ball of order 1": (ghvb(1.0), ddim()),
    "of order 2": (ghvb(2), ipndm(2)),
    "of order 3": (ghvb(3), ipndm(3)),
    "of order 4": (ghvb(4), ipndm(4)),
    "below order 1": (ghvb(0.3), momentum(0.7)),
    "no foresight": (pfdiff(0.0), ddim()),
    "no look-ahead": (eqm_nag(0.0), ddim()),
    "no look-ahead, on the residual": (eqm_nag(0.0, reading=residual), ddim()),
    "no adaptation": (adaptive_momentum(a=0.0, b2=1.0), ddim()),
    "no adaptation, with noise": (adaptive_momentum(0.0, 1.0, eta=0.7), ancestral(0.7)),
    "optimistic descent": (
        from_transformation(optax.scale_by_optimistic_gradient(alpha=1.0, beta=0.5)),
        ipndm(2),
    ),
}


@pytest.mark.parametrize("pair", THE_SAME)
def test_these_are_one_sampler(pair, iterates, levels):
    one, other = (iterates(sampler, levels) for sampler in THE_SAME[pair])
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


UNIFORM = jnp.linspace(4.0, 0.25, 9)


@pytest.mark.parametrize("foresight", [1 / 3, 1 / 2, 3 / 4])
def test_foresight_on_uniform_levels_is_optimistic_descent(foresight, iterates):
    ahead, optimistic = pfdiff(foresight), gradient_estimation(1.0 + foresight)
    np.testing.assert_allclose(
        iterates(ahead, UNIFORM), iterates(optimistic, UNIFORM), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("sampler", [ghvb(3.5), pfdiff(), eqm_nag(), adaptive_momentum()])
def test_foresight_costs_nothing(sampler):
    assert evals_per_step(sampler) == 1


# Weights over (v_n, v_{n-1}, ...) as printed for each order, before the division by beta.
PRINTED = {
    2: lambda b: np.array([2 + b, -(2 - b)]) / 2,
    3: lambda b: np.array([18 + 5 * b, -(24 - 8 * b), 6 - b]) / 12,
    4: lambda b: np.array([46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)]) / 24,
}


@pytest.mark.parametrize("order", [1.2, 2.5, 3.9])
def test_ghvb_follows_the_published_recursion(order, iterates, levels, eps):
    terms, beta = int(order) + 1, order % 1
    x = iterates(ghvb(order), levels)[0]
    velocities, visited = [], [x]
    for sigma, sigma_next in pairwise(levels):
        gradient = np.asarray(eps(x, sigma))
        last = velocities[0] if velocities else gradient
        velocities = [(1 - beta) * last + beta * gradient, *velocities][:terms]
        weights = PRINTED[len(velocities)](beta) / beta if len(velocities) > 1 else [1.0]
        direction = sum(w * v for w, v in zip(weights, velocities, strict=True))
        x = x + (sigma_next - sigma) * direction
        visited.append(x)
    np.testing.assert_allclose(iterates(ghvb(order), levels), visited, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [0, -1.0, 4.1])
def test_orders_that_are_not(order):
    with pytest.raises(ValueError, match="above 0 and at most 4"):
        ghvb(order)


def test_pfdiff_1_follows_the_papers_algorithm(iterates, eps):
    """Bases and springboards in turn on one uniform grid; ours is given the springboards'."""
    t = jnp.linspace(4.0, 0.25, 11)
    start = iterates(pfdiff(), t[::2])[0]
    past = eps(start, t[0])
    base, springboards = start - (t[0] - t[1]) * past, [start]
    for i in range(1, len(t) - 1, 2):
        springboard = base - (t[i] - t[i + 1]) * past
        springboards.append(springboard)
        if i + 2 < len(t):
            past = eps(springboard, t[i + 1])
            base = base - (t[i] - t[i + 2]) * past
    np.testing.assert_allclose(iterates(pfdiff(), t[::2]), springboards, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("foresight", [1 / 3, 1 / 2])
def test_foresight_on_any_grid(foresight, iterates, levels, eps):
    """Base and springboard as the docstring has them, with the base's levels written out."""
    y = iterates(pfdiff(foresight), levels)[0]
    base, s, visited = y, levels[0], [y]
    for sigma, sigma_next in pairwise(levels):
        gradient = eps(y, sigma)
        s_next = foresight * sigma + (1 - foresight) * sigma_next
        base, s = base - (s - s_next) * gradient, s_next
        y = base - (s - sigma_next) * gradient
        visited.append(y)
    np.testing.assert_allclose(iterates(pfdiff(foresight), levels), visited, rtol=1e-9, atol=1e-9)


KEEP_THE_LEVEL = [ghvb(0.6), ghvb(1.5), ghvb(3.7), pfdiff(1 / 3), pfdiff(3 / 4)]


@pytest.mark.parametrize("sampler", KEEP_THE_LEVEL)
def test_the_level_is_kept_true(sampler, iterates, keys, levels):
    """On data in one point eps rests, and weights that are consistent follow the straight line."""
    point = gaussian(mean=jnp.arange(6.0), cov=jnp.zeros((6, 6)))
    n = jax.random.normal(jax.random.key(5), (len(keys), 6))
    line = point.mean[None, None] + levels[:, None, None] * n[None]
    visited = iterates(sampler, levels, problem=point, x=line[0])
    np.testing.assert_allclose(visited, line, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", [anneal, constant])
def test_eqm_nag_follows_its_equation(rule, iterates, levels, eps):
    """`x' = x - eta f(x + mu (x - x_prev))`; the iterates are the points ahead."""
    mu, rate = 0.4, 0.8
    sampler = eqm_nag(mu, rate, reading=residual, rule=rule)
    x = previous = iterates(sampler, levels)[0]
    ahead = [x]
    for sigma, sigma_next in pairwise(levels):
        eta = rate * (1 - sigma_next / sigma) if rule is anneal else rate
        previous, x = x, x - eta * sigma * eps(ahead[-1], sigma)
        ahead.append(x + mu * (x - previous))
    np.testing.assert_allclose(iterates(sampler, levels), ahead, rtol=1e-9, atol=1e-9)


def test_eqm_nag_has_less_noise_than_it_says(iterates, keys):
    """By mu times the last step; on a point, where all lies on a line, it shows."""
    point = gaussian(mean=jnp.zeros(6), cov=jnp.zeros((6, 6)))
    n = jax.random.normal(jax.random.key(5), (len(keys), 6))
    visited = iterates(eqm_nag(0.5), jnp.array([4.0, 3.0]), problem=point, x=4.0 * n)
    np.testing.assert_allclose(visited[1], (3.0 - 0.5 * 1.0) * n, rtol=1e-12)


SCHEDULE = variance_exploding(0.5, 2.0)
PROBLEM = gaussian(dim=4, schedule=SCHEDULE)
ORDERS = {
    "ghvb below 1": (ghvb(0.7), 1),
    "ghvb between 1 and 2": (ghvb(1.6), 2),
    "ghvb between 3 and 4": (ghvb(3.6), 2),
    "pfdiff-1": (pfdiff(1 / 2), 2),
    "pfdiff-2_1": (pfdiff(1 / 3), 1),
    "eqm_nag": (eqm_nag(0.3), 1),
}


def slope(sampler, grid):
    keys, missed = sample_keys(0, 5), []
    for steps in (32, 64):
        levels = grid(SCHEDULE, steps + 1)
        x = PROBLEM.prior(keys, levels[0])
        found, _ = sample(PROBLEM, sampler, levels, keys, x=x, finish=identity)
        missed.append(np.linalg.norm(found - PROBLEM.solution(x, levels[0], levels[-1])))
    return np.log2(missed[0] / missed[1])


@pytest.mark.parametrize("grid", [linear_sigma, karras])
@pytest.mark.parametrize("name", ORDERS)
def test_order(name, grid):
    sampler, order = ORDERS[name]
    assert slope(sampler, grid) == pytest.approx(order, abs=0.2)


def in_turn(schedule, n):
    """Steps of length h and 2h in turn, which never become alike."""
    travelled = np.append(0.0, np.cumsum(np.resize([1.0, 2.0], n - 1)))
    way = jnp.asarray(travelled / travelled[-1])
    return schedule.sigma_max + way * (schedule.sigma_min - schedule.sigma_max)


def test_pfdiff_1_needs_no_smooth_grid():
    """Its weights are the trapezoid rule's, where constant-step weights fall to order one."""
    assert slope(pfdiff(1 / 2), in_turn) == pytest.approx(2.0, abs=0.2)
    assert slope(ipndm(2), in_turn) == pytest.approx(1.0, abs=0.3)
