"""Schedules: maps that undo each other, diffusers' tables, and equality however spelled."""

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler
from scipy.special import expit

from optdiff.grids import karras
from optdiff.noise import (
    flow,
    from_alphas_cumprod,
    linear,
    scaled_linear,
    squared_cosine,
    variance_exploding,
)
from optdiff.problems import gaussian
from optdiff.sample import eps_at, sample, sample_keys
from optdiff.samplers import ddim

TABULATED = {
    "linear": (linear, dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)),
    "scaled_linear": (
        scaled_linear,
        dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ),
    "squared_cosine": (squared_cosine, dict(beta_schedule="squaredcos_cap_v2")),
}
SCHEDULES = {name: make for name, (make, _) in TABULATED.items()} | {
    "variance_exploding": variance_exploding,
    "flow": flow,
}


@pytest.fixture
def zero_terminal_snr():
    """Stable Diffusion's schedule rescaled to end in pure noise, as diffusers does it."""
    _, options = TABULATED["scaled_linear"]
    table = DDIMScheduler(**options, rescale_betas_zero_snr=True).alphas_cumprod
    return from_alphas_cumprod(table.double().numpy())


@pytest.mark.parametrize("name", SCHEDULES)
def test_sigma_and_t_undo_each_other(name):
    schedule = SCHEDULES[name]()
    top = min(schedule.sigma_max, 1e4)
    sigma = jnp.geomspace(schedule.sigma_min, top, 101)
    np.testing.assert_allclose(schedule.sigma(schedule.t(sigma)), sigma, rtol=1e-9)
    t = jnp.linspace(schedule.t(sigma[0]), schedule.t(sigma[-1]), 101)
    np.testing.assert_allclose(schedule.t(schedule.sigma(t)), t, rtol=1e-9, atol=1e-9)
    assert (np.diff(schedule.sigma(t)) > 0).all()


@pytest.mark.parametrize("name", TABULATED)
def test_tables_are_those_of_diffusers(name):
    make, options = TABULATED[name]
    schedule, table = make(), DDPMScheduler(**options).betas.double().numpy()
    alphas_cumprod = np.cumprod(1 - table)  # its float32 betas, but products in float64
    expected = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    np.testing.assert_allclose(schedule.sigma(jnp.arange(1000.0)), expected, rtol=1e-5)
    assert schedule.sigma_min == pytest.approx(expected[0], rel=1e-5)
    assert schedule.sigma_max == pytest.approx(expected[-1], rel=1e-5)


def test_half_a_timestep_is_the_geometric_mean():
    schedule = scaled_linear()
    below, between, above = schedule.sigma(jnp.array([500.0, 500.5, 501.0]))
    assert between == pytest.approx(np.sqrt(below * above), rel=1e-12)


def test_maps_of_a_table_end_where_it_ends():
    schedule = scaled_linear()
    np.testing.assert_array_equal(schedule.t(jnp.array([0.0, 1e-6, 1e6])), [0, 0, 999])
    ends = schedule.sigma(jnp.array([-3.0, 2000.0]))
    np.testing.assert_allclose(ends, [schedule.sigma_min, schedule.sigma_max])


def test_zero_terminal_snr_has_no_highest_level(zero_terminal_snr):
    assert zero_terminal_snr.sigma_max == np.inf
    t = jnp.arange(999.0)  # the last timestep is pure noise
    sigma = zero_terminal_snr.sigma(t)
    assert np.isfinite(sigma).all() and (np.diff(sigma) > 0).all()
    np.testing.assert_allclose(zero_terminal_snr.t(sigma), t, atol=1e-6)
    assert zero_terminal_snr.t(jnp.array(jnp.inf)) == 998


def test_flow_time_is_the_share_of_noise():
    # log sigma is the log-odds of t; and sigma(t) n + x0 is (1 - t) x0 + t n up to scale.
    t = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(expit(np.log(flow().sigma(t))), t)
    assert flow().sigma_max == np.inf and flow(t_max=0.8).sigma_max == pytest.approx(4.0)


def test_equal_numbers_are_equal_schedules_however_spelled(zero_terminal_snr):
    pairs = [
        (variance_exploding(), variance_exploding(sigma_min=0.002, sigma_max=80.0)),
        (flow(), flow(0.002, t_max=1.0)),
        (linear(), linear(1e-4, beta_end=0.02, steps=1000)),
        (scaled_linear(), scaled_linear(beta_start=0.00085)),
        (squared_cosine(), squared_cosine(1000)),
        (from_alphas_cumprod(np.array([0.9, 0.5])), from_alphas_cumprod(np.array([0.9, 0.5]))),
    ]
    for one, other in pairs:
        assert one == other and hash(one) == hash(other)
    assert len({one for one, _ in pairs} | {zero_terminal_snr}) == len(pairs) + 1
    assert linear() != linear(steps=999)


def test_an_equal_schedule_does_not_recompile_the_denoiser():
    problem = gaussian(dim=2, schedule=flow())
    levels, keys = karras(problem.schedule, 3), sample_keys(0, 2)
    sample(problem, ddim(), levels, keys)
    compiled = eps_at._cache_size()
    sample(gaussian(dim=2, seed=1, schedule=flow(sigma_min=0.002)), ddim(), levels, keys)
    assert eps_at._cache_size() == compiled


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: variance_exploding(1.0, 1.0), "0 < sigma_min < sigma_max, got 1.0 and 1.0"),
        (lambda: variance_exploding(0.0, 1.0), "0 < sigma_min"),
        (lambda: flow(t_max=1.5), "t_max is a time"),
        (lambda: flow(sigma_min=5.0, t_max=0.5), "got 5.0 and 1.0"),
        (lambda: from_alphas_cumprod(np.array([0.5, 0.9])), "decreases"),
        (lambda: from_alphas_cumprod(np.array([0.5, -0.1])), "decreases"),
        (lambda: from_alphas_cumprod(np.array([1.0, 0.5])), "decreases"),
        (lambda: from_alphas_cumprod(np.array([0.9, np.nan])), "decreases"),
        (lambda: from_alphas_cumprod(np.array([])), "decreases"),
    ],
)
def test_what_is_no_schedule_is_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
