"""Adaptive clocks: what they decide, what it costs, and that it pays against fixed grids."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optdiff.clocks import distance, embedded, estimated, gradient_norm, stopping, x0_change
from optdiff.grids import karras
from optdiff.problems import gaussian, mixture
from optdiff.sample import identity, sample, sample_keys, sample_scan
from optdiff.samplers import constant, ddim, from_transformation, heun, residual


@pytest.fixture(scope="module")
def problem():
    return mixture(modes=4, dim=6, stds=0.3)


@pytest.fixture(scope="module")
def keys():
    return sample_keys(0, 16)


@pytest.fixture(scope="module")
def exact(problem, keys):
    return sample(problem, heun(), karras(problem.schedule, 400), keys)[0]


def rms(a):
    return np.sqrt(np.mean(np.square(a)))


@pytest.mark.parametrize("signal", [distance, gradient_norm, x0_change])
def test_a_stopped_sample_is_the_grids_own_iterate_denoised(problem, keys, signal):
    """It ends as a shorter run of the same grid would, and costs as much."""
    levels = karras(problem.schedule, 12)
    below = {distance: 0.5, gradient_norm: 0.85, x0_change: 0.1}[signal]
    clock = stopping(levels, signal=signal, below=below, from_level=2.0)
    x0, trace = sample(problem, ddim(), levels, keys, clock=clock)
    assert (trace.sigma[-1] <= 2.0).all()
    assert len(set(trace.nfe.tolist())) > 1, "samples stop at different times"
    for count in set(trace.nfe.tolist()):
        shorter, _ = sample(problem, ddim(), levels[:count], keys)
        who = np.asarray(trace.nfe) == count
        np.testing.assert_allclose(x0[who], shorter[who], rtol=1e-10, atol=1e-10)


def test_signals_are_what_they_say_on_a_gaussian():
    """For N(0, s^2), eps = x sigma / (s^2 + sigma^2), in closed form."""
    s, sigma = 0.5, jnp.array([0.1, 2.0])
    x = jnp.array([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]])
    scale = s**2 + sigma[:, None] ** 2
    eps, x0 = x * sigma[:, None] / scale, x * s**2 / scale
    size = np.sqrt(np.mean(x**2, axis=1))
    expected = size * np.asarray(sigma**2 / (s**2 + sigma**2))
    np.testing.assert_allclose(distance(x0, x0, eps, sigma), expected, rtol=1e-12)
    np.testing.assert_allclose(gradient_norm(x0, x0, eps, sigma), expected / sigma, rtol=1e-12)
    assert jnp.isinf(x0_change(x0, jnp.full_like(x0, jnp.nan), eps, sigma)).all()
    np.testing.assert_allclose(x0_change(x0, x0 - 2.0, eps, sigma), 2.0, rtol=1e-12)


def test_every_step_kept_has_an_error_within_the_tolerance(problem, keys):
    levels, tolerance = karras(problem.schedule, 60), 0.01
    clock = embedded(levels, tolerance=tolerance)
    _, trace = sample(
        problem, heun(), levels, keys, clock=clock, finish=identity, observe=lambda step: step
    )
    moved = trace.observed.sigma_next != trace.observed.sigma
    for i, b in zip(*np.nonzero(np.asarray(moved)), strict=True):
        step = jax.tree.map(
            lambda a, i=i, b=b: np.asarray(a[i])[..., b, :] if a[i].ndim == 2 else a[i],
            trace.observed,
        )
        gap = trace.observed.sigma_next[i, b] - trace.observed.sigma[i, b]
        error = rms(step.x_next - step.x - gap * step.eps)
        assert error <= tolerance * (1 + rms(step.x_next)) * (1 + 1e-9)
    np.testing.assert_allclose(trace.sigma[-1], levels[-1])
    # Two evaluations a try, refused or not; none while waiting at the end.
    tries = (np.asarray(trace.sigma[:-1]) > levels[-1]).sum(axis=0)
    np.testing.assert_array_equal(trace.nfe, 2 * tries)
    assert (np.asarray(moved).sum(axis=0) < tries).any(), "some step was refused"
    assert len(set(trace.nfe.tolist())) > 1, "samples choose for themselves"


def test_a_smaller_tolerance_costs_more_and_errs_less(problem, keys, exact):
    levels = karras(problem.schedule, 300)
    found = [
        sample(problem, heun(), levels, keys, clock=embedded(levels, tolerance=tolerance))
        for tolerance in (0.1, 0.01, 0.001)
    ]
    errors = [rms(x0 - exact) for x0, _ in found]
    costs = [trace.nfe.mean() for _, trace in found]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert costs[0] < costs[1] < costs[2]


def test_who_ran_out_of_steps_is_not_finished(problem, keys):
    """Those who did not arrive; who is stopped by the clock has."""
    levels = karras(problem.schedule, 9)
    for mode in (sample, sample_scan):
        _, short = mode(problem, heun(), levels, keys, clock=embedded(levels, tolerance=1e-3))
        assert not short.finished.any() and (short.sigma[-1] > 2.0 * levels[-1]).all()
    many = karras(problem.schedule, 60)
    _, trace = sample(problem, heun(), many, keys, clock=embedded(many, tolerance=0.02))
    assert trace.finished.all() and (trace.sigma[-1] == many[-1]).all()
    assert sample(problem, ddim(), levels, keys)[1].finished.all()
    clock = stopping(levels, below=1e3, from_level=9.0)
    _, early = sample(problem, ddim(), levels, keys, clock=clock)
    assert early.finished.all() and (early.sigma[-1] > levels[-1]).all()


def test_the_batch_makes_the_evaluations_that_its_slowest_sample_needs(problem, keys):
    """And the one by which that one learns that it is done, if it stops before the last level."""
    calls = 0
    levels = karras(problem.schedule, 12)
    clock = stopping(levels, below=0.1, from_level=2.0)

    class Watched(type(problem)):
        def denoise(self, x, sigma, cond=None):
            jax.debug.callback(count)
            return super().denoise(x, sigma, cond)

    def count():
        nonlocal calls
        calls += 1

    jax.tree_util.register_dataclass(Watched, ["means", "stds", "log_weights"], ["schedule"])
    for mode in (sample, sample_scan):
        calls = 0
        _, trace = mode(Watched(**vars(problem)), ddim(), levels, keys, clock=clock)
        jax.block_until_ready(trace)
        jax.effects_barrier()
        assert trace.batch_nfe == calls >= trace.nfe.max() > trace.nfe.min()


@pytest.mark.parametrize("mode", [sample, sample_scan])
def test_clocks_work_in_both_modes(mode, problem, keys):
    levels = karras(problem.schedule, 40)
    clock = embedded(levels, tolerance=0.05)
    x0, trace = mode(problem, heun(), levels, keys, clock=clock)
    again, cost = sample(problem, heun(), levels, keys, clock=clock)
    np.testing.assert_allclose(x0, again, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(trace.nfe, cost.nfe)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_no_level_need_be_given(rate):
    """On a point mass the estimate is the truth, so descent with a constant rate shortens the
    distance by the same share at every step and ends on the point."""
    point = gaussian(mean=jnp.array([1.0, -2.0, 3.0, 0.5]), cov=1e-16 * jnp.eye(4))
    keys, levels = sample_keys(0, 8), jnp.geomspace(80.0, 0.01, 200)
    sampler = from_transformation(optax.scale(rate), reading=residual, rule=constant)
    x0, trace = sample(point, sampler, levels, keys, clock=estimated(levels, rate=rate))
    np.testing.assert_allclose(x0, jnp.broadcast_to(point.mean, x0.shape), atol=1e-6)
    told = np.asarray(trace.sigma)[1:, 0]
    told = told[told > levels[-1]]
    np.testing.assert_allclose(told[2:] / told[1:-1], 1 - rate, rtol=1e-6)


def test_descent_without_levels_reaches_the_modes(problem, keys):
    levels = jnp.geomspace(80.0, 0.02, 100)
    sampler = from_transformation(optax.scale(0.2), reading=residual, rule=constant)
    x0, trace = sample(problem, sampler, levels, keys, clock=estimated(levels, rate=0.2))
    gaps = np.linalg.norm(np.asarray(x0)[:, None] - np.asarray(problem.means), axis=2).min(axis=1)
    assert (gaps < 4 * 0.3 * np.sqrt(6)).all()
    assert trace.nfe.max() < 100
