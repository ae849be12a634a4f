"""The fitted grid: its costs against the exact flow, its path against every path, and its use."""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optdiff.analysis.gits import Trajectories, cheapest_path, gits, trajectories, truncation_costs
from optdiff.grids import karras, uniform_logsnr
from optdiff.metrics.trajectory_error import trajectory_error
from optdiff.noise import variance_exploding
from optdiff.problems import gaussian, mixture
from optdiff.sample import identity, sample, sample_keys
from optdiff.samplers import ddim, ipndm


@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(2, 8),
    gamma=st.sampled_from([0.8, 1.0, 1.15]),
)
@settings(max_examples=50, deadline=None)
def test_no_path_is_cheaper(seed, nodes, gamma):
    costs = np.random.default_rng(seed).exponential(size=(nodes, nodes))
    costs[np.tril_indices(nodes)] = np.inf

    def price(path):
        steps = zip(path, [*path[1:], nodes - 1], strict=True)
        return sum(gamma**s * costs[i, j] for s, (i, j) in enumerate(steps))

    for steps in range(1, nodes):
        paths = [[0, *rest] for rest in combinations(range(1, nodes - 1), steps - 1)]
        found = cheapest_path(costs, steps, gamma=gamma)
        assert found in paths
        assert price(found) == pytest.approx(min(map(price, paths)))


def test_costs_are_what_a_ddim_step_from_the_exact_flow_misses():
    problem, keys = gaussian(dim=6), sample_keys(0, 16)
    levels = karras(problem.schedule, 65)
    fine = trajectories(problem, keys, levels)
    costs = truncation_costs(fine)
    start = jnp.asarray(fine.x[0])
    for i, j in [(0, 10), (10, 20), (20, 50), (0, 64), (40, 41)]:
        x = problem.solution(start, levels[0], levels[i])
        step, _ = sample(problem, ddim(), levels[jnp.array([i, j])], keys, x=x, finish=identity)
        miss = step - problem.solution(start, levels[0], levels[j])
        exact = np.mean(np.linalg.norm(miss, axis=1)) / np.sqrt(6)
        assert costs[i, j] == pytest.approx(exact, rel=0.02, abs=1e-4)
    assert np.isinf(costs[np.tril_indices(66)]).all()


def test_a_straight_path_costs_nothing_and_images_count_by_coordinate():
    rng = np.random.default_rng(0)
    levels = np.array([4.0, 2.0, 1.0, 0.0])
    x0, eps = rng.normal(size=(2, 1, 5, 4, 3))
    x = x0 + levels[:, None, None, None] * eps
    costs = truncation_costs(Trajectories(levels, x, np.repeat(eps, 3, axis=0)))
    np.testing.assert_allclose(costs[np.triu_indices(4, 1)], 0.0, atol=1e-14)
    x[-1] += 0.5  # in every coordinate
    costs = truncation_costs(Trajectories(levels, x, np.repeat(eps, 3, axis=0)))
    np.testing.assert_allclose(costs[:3, 3], 0.5)


@pytest.fixture(scope="module")
def problem():
    return mixture()


@pytest.fixture(scope="module")
def grid(problem):
    return gits(problem)


@pytest.mark.slow
def test_ddim_is_better_on_fitted_levels(problem, grid):
    keys = sample_keys(1, 512)  # other samples than the levels were fitted to
    fine = karras(problem.schedule, 257)
    exact, _ = sample(problem, ipndm(order=3), fine, keys)

    def error(levels):
        return trajectory_error(sample(problem, ddim(), levels, keys)[0], exact)

    for n in (3, 5, 8):
        fitted = error(grid(problem.schedule, n))
        for usual in (karras, uniform_logsnr):
            assert fitted < 0.75 * error(usual(problem.schedule, n))


def test_the_fitted_grid_begins_at_the_top_and_falls(problem, grid):
    for n in range(1, 66):
        levels = np.asarray(grid(problem.schedule, n))
        assert levels.shape == (n,) and (levels[:-1] >= (1 + 1e-9) * levels[1:]).all()
        assert levels[0] == pytest.approx(80.0) and levels[-1] > 0
    np.testing.assert_array_equal(grid(problem.schedule, 65), karras(problem.schedule, 65))


def test_what_cannot_be_fitted_is_refused(problem, grid):
    with pytest.raises(ValueError, match="another noise schedule"):
        grid(variance_exploding(0.01, 80.0), 4)
    for n in (0, 66):
        with pytest.raises(ValueError, match=f"{n} levels asked for, but there are 1 to 65"):
            grid(problem.schedule, n)
    with pytest.raises(ValueError, match=r"candidates = 1 is not in \[2"):
        gits(problem, candidates=1)
