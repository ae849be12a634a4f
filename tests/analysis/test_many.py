"""One program for many samplers: each ends where the driver would take it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.analysis.coefficients import coefficients
from optdiff.analysis.many import _many, evaluate_many
from optdiff.grids import karras, uniform_logsnr
from optdiff.problems import digits, mixture
from optdiff.sample import sample, sample_keys
from optdiff.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    from_transformation,
    ipndm,
    linear,
    momentum,
)


@pytest.fixture(scope="module")
def problem():
    return mixture(modes=3, dim=4)


def make_linear(parameters):
    return linear(*parameters)


def test_linear_samplers_of_all_lengths_and_grids(problem):
    kinds = [ddim(), dpmpp_2m(), ipndm(4)]
    grids, lengths = [karras] * 3 + [uniform_logsnr] * 3, [6, 1, 3, 6, 3, 6]
    jobs = [
        (kind, grid(problem.schedule, n))
        for kind, grid, n in zip(kinds * 2, grids, lengths, strict=True)
    ]
    n, keys = 6, sample_keys(0, 4)
    padded, counts = np.ones((6, n)), np.array([len(levels) for _, levels in jobs])
    gradients, points = np.zeros((6, n, n - 1)), np.ones((6, n))
    for j, (kind, levels) in enumerate(jobs):
        padded[j, : counts[j]] = levels
        found = coefficients(kind, levels)
        gradients[j, : counts[j], : counts[j] - 1] = found.gradients
        points[j, : counts[j]] = found.points
    x0 = evaluate_many(problem, make_linear, (gradients, points), padded, keys, counts=counts)
    for j, (kind, levels) in enumerate(jobs):
        alone, _ = sample(problem, kind, levels, keys)
        np.testing.assert_allclose(x0[j], alone, rtol=1e-9, atol=1e-9, err_msg=str(j))

    # Other matrices and other lengths are other data, and not another program.
    compiled = _many._cache_size()
    evaluate_many(problem, make_linear, (2 * gradients, points), padded, keys, counts=counts[::-1])
    assert _many._cache_size() == compiled


def adam(parameters):
    return from_transformation(optax.scale_by_adam(*parameters))


@pytest.mark.parametrize(
    "make, parameters",
    [
        (adam, (np.array([0.0, 0.5, 0.9]), np.array([0.9, 0.99, 0.999]))),
        # Its float32 noise rounds alike in both programs as users compile them, see the Makefile.
        pytest.param(ancestral, np.array([0.0, 0.5, 1.0]), marks=pytest.mark.slow),
    ],
)
def test_hyperparameters_of_any_family(problem, make, parameters):
    keys = sample_keys(0, 4)
    levels = np.tile(karras(problem.schedule, 6), (3, 1))
    x0 = evaluate_many(problem, make, parameters, levels, keys)
    for j in range(3):
        sampler = make(jax.tree.map(lambda a, j=j: jnp.asarray(a[j]), parameters))
        alone, _ = sample(problem, sampler, jnp.asarray(levels[j]), keys)
        np.testing.assert_allclose(x0[j], alone, rtol=1e-9, atol=1e-9)


def test_groups_that_the_number_of_samplers_does_not_fill(problem, monkeypatch):
    """Three samplers, two at a time, each from a level of its own and so from its own draw."""
    monkeypatch.setattr("optdiff.analysis.many.AT_ONCE", 2 * 4 * 4)
    keys, betas, counts = sample_keys(0, 4), np.array([0.0, 0.2, 0.4]), np.array([4, 2, 3])
    levels = np.geomspace([5.0, 7.0, 9.0], [0.1, 0.2, 0.3], 4, axis=1)
    x0 = evaluate_many(problem, momentum, betas, levels, keys, counts=counts)
    for j, count in enumerate(counts):
        alone, _ = sample(problem, momentum(betas[j]), jnp.asarray(levels[j, :count]), keys)
        np.testing.assert_allclose(x0[j], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_conditions_and_starts_are_those_given(monkeypatch):
    problem = digits(conditional=True)
    monkeypatch.setattr("optdiff.analysis.many.AT_ONCE", 2 * 4 * 784)  # two at once, of three
    keys = sample_keys(0, 4)
    cond = problem.condition(keys)
    levels = np.tile(karras(problem.schedule, 3), (3, 1)).astype(np.float32)
    x = problem.prior(keys, jnp.float32(levels[0, 0]), cond)
    betas = np.array([0.0, 0.2, 0.4], np.float32)
    x0 = evaluate_many(problem, momentum, betas, levels, keys, cond=cond, x=x)
    for j in range(3):
        given = {"cond": cond, "x": x}
        alone, _ = sample(problem, momentum(float(betas[j])), jnp.asarray(levels[j]), keys, **given)
        np.testing.assert_allclose(x0[j], alone, atol=1e-3)


def test_counts_that_the_levels_do_not_have_are_refused(problem):
    levels = np.ones((2, 3))
    for counts in ([0, 3], [1, 4]):
        with pytest.raises(ValueError, match="from 1 to 3"):
            evaluate_many(
                problem, momentum, np.zeros(2), levels, sample_keys(0, 1), counts=np.array(counts)
            )
