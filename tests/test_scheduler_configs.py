"""Schedules and grids from `scheduler_config.json`, against the diffusers classes that write it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

from optdiff import denoisers, grids, noise

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "stable diffusion": SD,
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained betas": {
        "trained_betas": np.geomspace(1e-4, 0.05, 400).tolist(),
        "num_train_timesteps": 400,
    },
    "few timesteps": SD | {"num_train_timesteps": 50},
}
EDM = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
COUNTS = [1, 7, 8, 15, 50]


def saved(scheduler):
    """What `save_pretrained` writes."""
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


def sigmas_of(scheduler):
    """From its float32 betas, with products in float64: `1 - alpha_bar` cancels at low noise."""
    table = np.cumprod(1 - scheduler.betas.double().numpy())
    with np.errstate(divide="ignore"):  # zero terminal SNR
        return np.sqrt((1 - table) / table)


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_those_of_diffusers(name):
    theirs = DDIMScheduler(**SCHEDULES[name])
    schedule = noise.from_scheduler_config(saved(theirs))
    t = jnp.arange(len(theirs.alphas_cumprod), dtype=float)
    np.testing.assert_allclose(schedule.sigma(t), sigmas_of(theirs), rtol=1e-5)
    np.testing.assert_allclose(schedule.t(schedule.sigma(t)), t, atol=1e-6)


def test_zero_terminal_snr_is_capped_where_diffusers_caps_it():
    theirs = EulerDiscreteScheduler(**SD, rescale_betas_zero_snr=True)
    schedule = noise.from_scheduler_config(saved(theirs))
    assert schedule.sigma_max == pytest.approx(float(theirs.sigmas[0]), rel=1e-6)
    # Near the end its table is a difference of nearly equal float32 numbers, ours of float64.
    sigma = schedule.sigma(jnp.arange(999.0))
    np.testing.assert_allclose(sigma, sigmas_of(theirs)[:-1], rtol=1e-3)
    np.testing.assert_allclose(sigma[:900], sigmas_of(theirs)[:900], rtol=1e-4)
    assert schedule.t(jnp.asarray(schedule.sigma_max)) == 999


@pytest.mark.parametrize(
    "spacing, offset", [("leading", 0), ("leading", 1), ("trailing", 1), ("linspace", 1)]
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_timesteps_and_their_levels_are_those_of_diffusers(name, spacing, offset):
    theirs = DDIMScheduler(**SCHEDULES[name], timestep_spacing=spacing, steps_offset=offset)
    schedule = noise.from_scheduler_config(saved(theirs))
    grid = grids.from_scheduler_config(saved(theirs))
    trained = len(theirs.alphas_cumprod)
    for n in COUNTS:
        if spacing == "leading" and n == trained and offset:
            with pytest.raises(ValueError, match=f"timesteps {n} to 1 are not all trained"):
                grid(schedule, n)
            continue
        theirs.set_timesteps(n)
        timesteps = theirs.timesteps.numpy()
        if spacing == "linspace" and n == 1:
            timesteps = [trained - 1]  # theirs is 0, where there is no noise to start from
        levels = grid(schedule, n)
        np.testing.assert_allclose(schedule.t(levels), timesteps, atol=1e-6)
        np.testing.assert_allclose(levels, sigmas_of(theirs)[timesteps], rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_levels_of_eulers_grid_are_those_of_diffusers(spacing, offset):
    theirs = EulerDiscreteScheduler(**SD, timestep_spacing=spacing, steps_offset=offset)
    schedule = noise.from_scheduler_config(saved(theirs))
    for n in COUNTS:
        theirs.set_timesteps(n)
        levels = grids.from_scheduler_config(saved(theirs))(schedule, n)
        np.testing.assert_allclose(levels, theirs.sigmas[:-1], rtol=1e-4)


def test_unrounded_linspace_has_the_timesteps_of_euler():
    theirs, schedule = LMSDiscreteScheduler(**SD), noise.scaled_linear()
    for n in COUNTS[1:]:
        theirs.set_timesteps(n)
        levels = grids.linspace(schedule, n)
        np.testing.assert_allclose(schedule.t(levels), theirs.timesteps, rtol=1e-6, atol=1e-6)


def test_a_file_of_before_spacings_is_read_as_leading():
    old = {"_class_name": "PNDMScheduler", **SD, "steps_offset": 1, "skip_prk_steps": True}
    theirs = PNDMScheduler.from_config(old)
    theirs.set_timesteps(8)
    schedule = noise.from_scheduler_config(old)
    ours = schedule.t(grids.from_scheduler_config(old)(schedule, 8))
    np.testing.assert_allclose(ours, np.unique(theirs.timesteps)[::-1], atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_times_are_those_of_diffusers(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule = noise.from_scheduler_config(saved(theirs))
    assert schedule.sigma_max == pytest.approx(4096, rel=1e-6)
    for n in (1, 2, 8, 30):
        theirs.set_timesteps(n)
        levels = grids.from_scheduler_config(saved(theirs))(schedule, n)
        # Theirs begins at t = 1, sigma infinite; ours at the cap, a quarter of a timestep below.
        np.testing.assert_allclose(schedule.t(levels)[:1], theirs.timesteps[:1], atol=0.25)
        np.testing.assert_allclose(schedule.t(levels)[1:], theirs.timesteps[1:], atol=0.25)
        flow_time = levels / (1 + levels)
        np.testing.assert_allclose(flow_time, theirs.sigmas[:-1], atol=2.5e-4)
        np.testing.assert_allclose(schedule.sigma(schedule.t(levels)), levels, rtol=1e-9)


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("make", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_is_that_of_diffusers(make, sigma_schedule):
    """Levels, the times that stand for them, and the preconditioning at each."""
    theirs = make(sigma_max=120.0, sigma_data=1.5, rho=5.0, sigma_schedule=sigma_schedule)
    schedule, scaling = denoisers.from_scheduler_config(saved(theirs))
    for n in COUNTS:
        theirs.set_timesteps(n)
        levels = grids.from_scheduler_config(saved(theirs))(schedule, n)
        if n > 1 or sigma_schedule == "karras":  # one exponential level of theirs is the lowest
            np.testing.assert_allclose(levels, theirs.sigmas[:-1], rtol=1e-5)
            np.testing.assert_allclose(schedule.t(levels), theirs.timesteps, atol=1e-5)
    np.testing.assert_allclose(schedule.sigma(schedule.t(levels)), levels, rtol=1e-9)
    for sigma in levels:
        level = torch.tensor(float(sigma), dtype=torch.float64)
        skip, out = (theirs.precondition_outputs(*xf, level) for xf in ((1.0, 0.0), (0.0, 1.0)))
        c_in, c_noise = theirs.precondition_inputs(1.0, level), theirs.precondition_noise(level)
        np.testing.assert_allclose(scaling(schedule, sigma), (skip, out, c_in, c_noise), rtol=1e-9)


def test_equal_files_are_equal_schedules_and_scalings():
    flow = {"shift": 3.0}
    for config in [*SCHEDULES.values(), SD | {"rescale_betas_zero_snr": True}, flow, EDM]:
        for told in (True, False):
            config = config | {"time_conditioning": told}
            one, other = (denoisers.from_scheduler_config(dict(config)) for _ in range(2))
            assert one == other and hash(one) == hash(other)
    assert noise.from_scheduler_config(SD) == noise.scaled_linear()


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"beta_schedule": "exp"}, "beta_schedule = 'exp' is not supported; known are linear"),
        ({"beta_schedule": None}, "beta_schedule = None"),
        ({"timestep_type": "continuous"}, "timestep_type = 'continuous'"),
        ({"timestep_spacing": "trail"}, "timestep_spacing = 'trail' is not known"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas = True.*such as karras"),
        ({"interpolation_type": "log_linear"}, "interpolation_type = 'log_linear'"),
        (EDM | {"sigma_schedule": "lu"}, "sigma_schedule = 'lu' is not known; there is karras"),
        ({"shift": 3.0, "use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, told):
    with pytest.raises(ValueError, match=told):
        config = SD | changes
        grids.from_scheduler_config(config)(noise.from_scheduler_config(config), 8)


@pytest.mark.parametrize(
    "config, told",
    [
        ({"beta_schedule": "linear"}, "needs beta_start and beta_end"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.1}, "needs sigma_max and sigma_data"),
        (SD | {"prediction_type": "x0"}, "prediction_type = 'x0' is not known; there is epsilon"),
        (EDM | {"prediction_type": "v_prediction"}, "EDMEuler.* 'v_prediction' is not known"),
        (SD | {"time_conditioning": "no"}, "time_conditioning = 'no' must be true or false"),
    ],
)
def test_what_is_missing_or_unknown_of_a_network_is_named(config, told):
    with pytest.raises(ValueError, match=told):
        denoisers.from_scheduler_config(config)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda s: grids.leading(s, 0), "at least one level"),
        (lambda s: grids.trailing(s, 1001), "1001 levels asked for, but the schedule has 1000"),
        (lambda s: grids.leading(s, 10, steps_offset=200), "timesteps 1100 to 200 are not all"),
        (lambda s: grids.trailing(noise.flow(), 8), "without a highest level"),
    ],
)
def test_timesteps_that_do_not_exist_are_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make(noise.scaled_linear())
