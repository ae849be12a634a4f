"""Matrices found in samplers, samplers made of matrices, and what a matrix says."""

import re
from functools import partial

import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yamls

from optdiff.analysis.coefficients import (
    NotLinear,
    amplification,
    coefficients,
    learning_rates,
    memory,
    orders,
)
from optdiff.clocks import stopping
from optdiff.grids import karras
from optdiff.noise import variance_exploding
from optdiff.problems import gaussian, mixture
from optdiff.sample import (
    eps_at,
    identity,
    plain_clock,
    sample,
    sample_keys,
    sampling_loop,
)
from optdiff.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    from_transformation,
    gradient_estimation,
    heun,
    ipndm,
    linear,
    momentum,
    nesterov,
    scale_by_sigma_step,
)

KARRAS = np.linspace(80.0 ** (1 / 7), 0.05 ** (1 / 7), 8) ** 7
IRREGULAR = np.array([30.0, 29.0, 11.0, 2.0, 0.8, 0.79])
UNIFORM = np.linspace(4.0, 0.5, 8)
MAKE_LINEAR = {
    "ddim": ddim,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": lambda: ipndm(4),
    "momentum": lambda: momentum(0.4),
    "nesterov": lambda: nesterov(0.3),
    "optax.ema": lambda: from_transformation(optax.ema(0.5, debias=False)),
    "optax.trace": lambda: from_transformation(optax.trace(0.5)),
}
LINEAR = {name: make() for name, make in MAKE_LINEAR.items()}


@pytest.fixture(scope="module")
def problem():
    return mixture(modes=3, dim=4)


def there_and_back(problem, found):
    """Along the whole trajectory, to 1e-10."""
    levels, keys = jnp.asarray(IRREGULAR), sample_keys(0, 3)
    for name, (sampler, matrix) in found.items():
        again = linear(matrix.gradients, matrix.points, matrix.start, evals=matrix.evals)
        one, other = (
            sample(problem, s, levels, keys, finish=identity, observe=lambda step: step.x_next)
            for s in (sampler, again)
        )
        gap = np.abs(one[1].observed - other[1].observed).max()
        assert gap < 1e-10 * np.abs(one[1].observed).max(), name
        np.testing.assert_array_equal(one[1].nfe, other[1].nfe)


def test_there_and_back_is_the_sampler_itself(problem):
    """Two evaluations a step, and memory that one of ours and one of optax keeps."""
    levels = jnp.asarray(IRREGULAR)
    some = {name: LINEAR[name] for name in ("heun", "nesterov", "optax.trace")}
    there_and_back(problem, {name: (s, coefficients(s, levels)) for name, s in some.items()})


@pytest.mark.slow
def test_there_and_back_is_every_yaml_that_is_linear(problem):
    levels, found = jnp.asarray(IRREGULAR), {}
    for name, config in yamls.composed("sampler").items():
        sampler = hydra.utils.instantiate(config)
        try:
            found[name] = (sampler, coefficients(sampler, levels))
        except NotLinear:
            continue
    assert found.keys() >= {"ddim", "heun", "dpmpp_2m", "ipndm", "momentum", "nesterov"}
    assert not {"adam", "adam_per_sample", "ancestral"} & found.keys()
    there_and_back(problem, found)


def test_a_matrix_comes_back_from_its_sampler():
    rng = np.random.default_rng(0)
    gradients, start = np.tril(rng.normal(size=(7, 6)), -1), rng.normal(size=7)
    start[0] = 1.0
    points = np.geomspace(9.0, 0.3, 7)
    for evals in (1, 2, 3):
        sampler = linear(gradients, points, start, evals=evals)
        found = coefficients(sampler, jnp.asarray(points[::evals]), tolerance=1e-7)
        np.testing.assert_allclose(found.gradients, gradients, atol=1e-12)
        np.testing.assert_allclose(found.start, start, atol=1e-12)
        np.testing.assert_allclose(found.points, points)
        assert found.evals == evals


NONLINEAR = {
    "normalized": lambda: from_transformation(optax.normalize_by_update_norm()),
    "sign": lambda: from_transformation(optax.scale_by_sign()),
    "Adam": lambda: from_transformation(optax.scale_by_adam()),
    "clipped": lambda: from_transformation(optax.clip_by_global_norm(5.0)),
    "noisy": ancestral,
}


@pytest.mark.parametrize("name, double", [*((name, True) for name in NONLINEAR), ("Adam", False)])
def test_what_is_not_linear_is_said_to_be_so(name, double):
    with jax.enable_x64(double), pytest.raises(NotLinear, match="of its length away"):
        coefficients(NONLINEAR[name](), jnp.asarray(KARRAS, float))


@pytest.mark.parametrize("name", ["ddim", "heun", "ipndm", "optax.ema"])
def test_a_matrix_in_single_precision_is_that_in_double(name):
    """On EDM's own levels, with the tolerances of the type."""
    exact = coefficients(LINEAR[name], karras(variance_exploding(), 8))
    with jax.enable_x64(False):
        levels = karras(variance_exploding(), 8)
        matrix = coefficients(MAKE_LINEAR[name](), levels)
        again = linear(matrix.gradients, matrix.points, matrix.start, evals=matrix.evals)
        same = coefficients(again, levels)
    assert matrix.gradients.dtype == same.gradients.dtype == np.float32
    for a, b in ((matrix, exact), (same, matrix)):
        np.testing.assert_allclose(a.gradients, b.gradients, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(orders(matrix), orders(exact))


@pytest.mark.parametrize("name", LINEAR)
def test_stability_is_that_of_a_run_on_a_gaussian(name):
    levels, std = jnp.asarray(KARRAS), 0.7
    wide = gaussian(mean=jnp.zeros(1), cov=jnp.full((1, 1), std**2))
    x = jnp.ones((1, 1))
    ran, _ = sample(wide, LINEAR[name], levels, sample_keys(0, 1), x=x, finish=identity)
    exact = wide.solution(x, levels[0], levels[-1])
    said = amplification(coefficients(LINEAR[name], levels), std)
    assert said == pytest.approx(float(ran[0, 0] / exact[0, 0]), rel=1e-10)


def test_a_method_that_keeps_the_noise_level_has_rate_one():
    found = {n: coefficients(s, jnp.asarray(UNIFORM)) for n, s in LINEAR.items()}
    for name in ("ddim", "heun", "dpmpp_2m", "ipndm", "momentum"):
        np.testing.assert_allclose(learning_rates(found[name]), 1.0, rtol=1e-9, err_msg=name)
    # An average that starts from zero goes 1 - b^n of the way; a sum tends to 1 / (1 - b).
    steps = np.arange(1, 8)
    np.testing.assert_allclose(learning_rates(found["optax.ema"]), 1 - 0.5**steps, rtol=1e-9)
    np.testing.assert_allclose(learning_rates(found["optax.trace"]), 2 - 0.5 ** (steps - 1))


def test_order_conditions_are_those_of_the_tables():
    """Adams-Bashforth meets as many as its order says, once its history is full."""
    levels = jnp.asarray(UNIFORM)
    for order in (1, 2, 3, 4):
        met = orders(coefficients(ipndm(order), levels))
        np.testing.assert_array_equal(met, np.minimum(np.arange(1, 8), order))
    assert orders(coefficients(gradient_estimation(2.0), levels)).max() == 1
    np.testing.assert_array_equal(orders(coefficients(gradient_estimation(1.5), levels))[1:], 2)
    assert (orders(coefficients(from_transformation(optax.trace(0.5)), levels))[1:] == 0).all()
    geometric = jnp.geomspace(10.0, 0.1, 8)
    np.testing.assert_array_equal(orders(coefficients(ipndm(2), geometric)), 1)


def test_memory_is_the_weight_of_the_past():
    levels = jnp.asarray(UNIFORM)
    np.testing.assert_allclose(memory(coefficients(ipndm(2), levels)), [0] + [1 / 4] * 6)
    np.testing.assert_array_equal(memory(coefficients(heun(), levels)), 0)
    found = memory(coefficients(momentum(0.4), levels))
    np.testing.assert_allclose(found, 0.4 * (np.arange(7) > 0), atol=1e-12)


def test_a_field_link_alone_is_the_plain_step(problem):
    """Coefficients know of no clipping of the truth: the identity is DDIM."""
    levels = jnp.asarray(UNIFORM)
    plain = coefficients(scale_by_sigma_step(), levels)
    np.testing.assert_array_equal(plain.gradients, coefficients(ddim(), levels).gradients)
    np.testing.assert_allclose(plain.moves, np.diag(np.diff(UNIFORM)))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"must be \(m, m - 1\)"):
        linear(jnp.zeros((3, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match="do not make steps of 2"):
        linear(jnp.zeros((4, 3)), jnp.ones(4), evals=2)


@pytest.mark.parametrize("evals", [1, 2])
def test_a_matrix_is_refused_on_levels_that_are_not_its_own(problem, evals):
    levels, keys = jnp.asarray(IRREGULAR), sample_keys(0, 3)
    matrix = coefficients(heun() if evals == 2 else ddim(), levels)
    sampler = linear(matrix.gradients, matrix.points, matrix.start, evals=evals)
    others = {
        "between": levels.at[3].set(2.5),
        "shorter": levels[1:],
        "longer": jnp.append(levels, 0.1),
        "denser": jnp.linspace(levels[0], levels[-1], 6),
    }
    named = "belongs to the levels 30, 29, 11, 2, 0.8, 0.79, but a step goes from"
    for other in others.values():
        with pytest.raises(ValueError, match=re.escape(named)):
            sample(problem, sampler, other, keys)
    same = levels * (1 + 1e-7)  # as float32 keeps them
    assert jnp.isfinite(sample(problem, sampler, same[:3], keys)[0]).all()

    some_stop = stopping(levels, below=1.0, from_level=11.0)
    waiting, trace = sample(problem, sampler, levels, keys, clock=some_stop)
    alone = heun() if evals == 2 else ddim()
    assert (trace.nfe < evals * (len(levels) - 1)).any()
    np.testing.assert_allclose(
        waiting, sample(problem, alone, levels, keys, clock=some_stop)[0], rtol=1e-9
    )

    @jax.jit
    def first_step(sigma, sigma_next):
        at, x = {"sigma": sigma, "sigma_next": sigma_next}, jnp.ones((2, 4))
        return sampler.update(x, sampler.init(x), x, eps_fn=lambda x, sigma: x, **at)[0]

    assert jnp.isfinite(first_step(*same[:2])).all()
    assert (
        jnp.isnan(first_step(*levels[1:3])).all() and jnp.isnan(first_step(*levels[::2][:2])).all()
    )


def test_gradients_reach_the_matrix(problem):
    """So that it can be learned: the derivative is that of a central difference."""
    levels, keys = jnp.asarray(UNIFORM), sample_keys(0, 2)
    found = coefficients(ipndm(2), levels)
    direction = np.tril(np.random.default_rng(0).normal(size=found.gradients.shape), -1)

    def loss(by):
        sampler = linear(found.gradients + by * direction, levels)
        carry = sampling_loop(
            lambda step, carry, count: jax.lax.scan(
                lambda c, i: (step(c, i)[0], None), carry, jnp.arange(count)
            ),
            partial(eps_at, problem, None),
            sampler,
            plain_clock(levels),
            len(levels),
            keys,
            problem.prior(keys, levels[0]),
            identity,
        )
        return carry[0].sum()

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert float(jax.grad(loss)(0.0)) == pytest.approx(float(slope), rel=1e-6)
