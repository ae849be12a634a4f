"""The sampler `restart` on the grid of the same name: the yamls together put noise in again."""

from pathlib import Path

import hydra
import jax.numpy as jnp
import numpy as np
import pytest

from optdiff.cost import evaluations
from optdiff.grids import karras, with_restarts
from optdiff.noise import variance_exploding
from optdiff.sample import sample_keys, sample_scan

CONF = Path(__file__).parents[2] / "conf"
SCHEDULE = variance_exploding(0.01, 10.0)


def composed(*overrides):
    """Sampler and grid as a job gets them."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", ["sampler=restart", "grid=restart", *overrides])
        return hydra.utils.instantiate({name: config[name] for name in ("sampler", "grid")})


@pytest.fixture(scope="module")
def pair():
    return composed()


def test_the_grid_restarts_where_the_sampler_does(problem, keys, pair, iterates):
    """From one start, keys part the samples at the restart and not before."""
    levels = pair["grid"](SCHEDULE, 10)
    (up,) = np.flatnonzero(np.diff(levels) > 0) + 1
    x = problem.prior(keys, levels[0])
    others = sample_keys(9, len(keys))
    ours, theirs = (
        sample_scan(problem, pair["sampler"], levels, k, x=x, observe=lambda step: step.x_next)[1]
        for k in (keys, others)
    )
    apart = np.abs(ours.observed - theirs.observed).max(axis=(1, 2))
    np.testing.assert_allclose(apart[: up - 1], 0.0, atol=1e-12)
    assert (apart[up - 1 :] > 1e-3).all()
    added = np.std(ours.observed[up - 1] - theirs.observed[up - 1])
    assert added == pytest.approx(np.sqrt(2 * (0.3**2 - 0.06**2)), rel=0.3)
    assert ours.nfe.tolist() == [evaluations(pair["sampler"], 10)] * len(keys)


def test_the_interval_is_said_once():
    levels = composed("sampler.t_min=0.1", "sampler.t_max=2.0")["grid"](SCHEDULE, 12)
    up = np.flatnonzero(np.diff(levels) > 0) + 1
    np.testing.assert_allclose(levels[up], 2.0, rtol=1e-12)
    assert jnp.isclose(levels, 0.1).sum() == 1


@pytest.mark.parametrize("ends", [(0.01, 10.0), (0.06, 10.0), (0.01, 0.3), (0.06, 0.3)])
def test_every_number_of_levels_is_met(ends):
    """Also where the grid has levels at the interval's ends."""
    schedule = variance_exploding(*ends)
    for n in range(1, 8):
        np.testing.assert_array_equal(with_restarts(schedule, n), karras(schedule, n))
    for n in range(8, 40):
        levels = np.asarray(with_restarts(schedule, n))
        assert len(levels) == n and (levels[-1], levels[0]) == pytest.approx(ends)
        assert np.isclose(levels[1:], 0.3, rtol=1e-9).sum() == (2 if n >= 14 else 1)


def test_an_interval_that_the_grid_does_not_pass_is_refused():
    with pytest.raises(ValueError, match="within"):
        with_restarts(SCHEDULE, 10, t_min=20.0, t_max=30.0)
    with pytest.raises(ValueError, match="at least one level"):
        with_restarts(SCHEDULE, 0)
