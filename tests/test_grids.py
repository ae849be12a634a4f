"""Grids against diffusers' levels, and the promises every grid makes."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from optdiff.grids import SIGMA_CAP, explicit, karras, linear_sigma, linspace, uniform_logsnr
from optdiff.noise import flow, from_alphas_cumprod, scaled_linear, variance_exploding

WITH_RANGE = {"karras": karras, "uniform_logsnr": uniform_logsnr, "linear_sigma": linear_sigma}
GRIDS = WITH_RANGE | {"linspace": linspace}
SCHEDULES = {
    "variance_exploding": variance_exploding(),
    "scaled_linear": scaled_linear(),
    "flow": flow(),
    "zero terminal SNR": from_alphas_cumprod(np.linspace(0.9999, 0.0, 10_000)),
}


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("n", [2, 5, 40])
def test_karras_is_that_of_diffusers(rho, n):
    theirs = EDMEulerScheduler(sigma_min=0.02, sigma_max=50.0, rho=rho)
    theirs.set_timesteps(n)
    ours = karras(variance_exploding(), n, rho=rho, sigma_min=0.02, sigma_max=50.0)
    np.testing.assert_allclose(ours, theirs.sigmas[:-1], rtol=1e-5)  # theirs appends zero


@pytest.mark.parametrize("n", [2, 5, 40])
def test_uniform_logsnr_is_the_exponential_grid_of_diffusers(n):
    theirs = EDMEulerScheduler(sigma_min=0.02, sigma_max=50.0, sigma_schedule="exponential")
    theirs.set_timesteps(n)
    ours = uniform_logsnr(variance_exploding(0.02, 50.0), n)
    np.testing.assert_allclose(ours, theirs.sigmas[:-1], rtol=1e-5)


@pytest.mark.parametrize("n", [2, 5, 40])
def test_linspace_is_that_of_diffusers(n):
    theirs = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="linspace",
    )
    theirs.set_timesteps(n)
    # It interpolates sigma itself between timesteps, we its logarithm.
    np.testing.assert_allclose(linspace(scaled_linear(), n), theirs.sigmas[:-1], rtol=1e-4)


@given(
    n=st.integers(1, 200),
    low=st.floats(1e-4, 1.0),
    ratio=st.floats(1.01, 1e5),
    rho=st.floats(0.5, 50.0),
)
@settings(max_examples=60, deadline=None)
def test_grids_fall_from_end_to_end(n, low, ratio, rho):
    schedule = variance_exploding(low, low * ratio)
    for grid in (partial(karras, rho=rho), uniform_logsnr, linear_sigma, linspace):
        levels = np.asarray(grid(schedule, n))
        assert levels.shape == (n,) and (np.diff(levels) < 0).all()
        assert levels[0] == pytest.approx(schedule.sigma_max, rel=1e-9)
        if n > 1:
            assert levels[-1] == pytest.approx(schedule.sigma_min, rel=1e-9)


def test_rho_leads_from_linear_to_exponential():
    schedule = variance_exploding(0.1, 10.0)
    np.testing.assert_allclose(linear_sigma(schedule, 10), np.linspace(10, 0.1, 10))
    steep = karras(schedule, 10, rho=1e5)
    np.testing.assert_allclose(steep, uniform_logsnr(schedule, 10), rtol=1e-3)
    ratios = np.asarray(uniform_logsnr(schedule, 10))
    np.testing.assert_allclose(ratios[1:] / ratios[:-1], 0.01 ** (1 / 9))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_fits_every_schedule(grid, schedule):
    schedule = SCHEDULES[schedule]
    for n in (1, 2, 17):
        levels = np.asarray(GRIDS[grid](schedule, n))
        top = schedule.sigma_max if np.isfinite(schedule.sigma_max) else SIGMA_CAP
        assert levels.shape == (n,) and (np.diff(levels) < 0).all() and levels[-1] > 0
        assert levels[0] == pytest.approx(top, rel=1e-6)


@pytest.mark.parametrize("grid", WITH_RANGE)
def test_a_range_given_is_the_range_kept(grid):
    for schedule in SCHEDULES.values():
        levels = WITH_RANGE[grid](schedule, 5, sigma_min=0.3, sigma_max=200.0)
        np.testing.assert_allclose(levels[jnp.array([0, -1])], [200.0, 0.3])


def test_explicit_levels_are_taken_as_they_are():
    levels = explicit(variance_exploding(), 3, levels=[5.0, 1.0, 0.25])
    assert levels.tolist() == [5.0, 1.0, 0.25]


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda s: karras(s, 0), "at least one level, not 0"),
        (lambda s: linspace(s, -1), "at least one level, not -1"),
        (lambda s: karras(s, 3, sigma_min=100.0), "got 100.0 and 80.0"),
        (lambda s: uniform_logsnr(s, 3, sigma_min=0.0), "0 < sigma_min"),
        (lambda s: explicit(s, 3, levels=[2.0, 1.0]), "has 2 levels, but 3"),
        (lambda s: explicit(s, 2, levels=[1.0, 2.0]), "positive and decrease"),
        (lambda s: explicit(s, 2, levels=[1.0, 0.0]), "positive and decrease"),
        (lambda s: explicit(s, 2, levels=[np.inf, 1.0]), "finite"),
        (lambda s: explicit(s, 1, levels=[np.nan]), "finite"),
        (lambda s: karras(s, 3, sigma_max=np.inf), "finite"),
    ],
)
def test_what_makes_no_grid_is_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(variance_exploding())
