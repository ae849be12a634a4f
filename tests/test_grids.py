"""Grids against diffusers' levels, scipy's distributions and published tables, and the promises
that every grid makes."""

from functools import partial
from pathlib import Path

import hydra
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
)
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import interpolate, special, stats

from optdiff import grids
from optdiff.grids import SIGMA_CAP, explicit, karras, linear_sigma, linspace, uniform_logsnr
from optdiff.noise import flow, from_alphas_cumprod, scaled_linear, variance_exploding

CONF = Path(__file__).parents[1] / "conf"
YAMLS = sorted(path.stem for path in CONF.glob("grid/*.yaml"))
WITH_RANGE = {
    "karras": karras,
    "uniform_logsnr": uniform_logsnr,
    "linear_sigma": linear_sigma,
    "polyexponential": partial(grids.polyexponential, rho=2.0),
    "cosine": grids.cosine,
    "sigmoid": grids.sigmoid,
    "laplace": grids.laplace,
    "log_normal": grids.log_normal,
    "beta": grids.beta,
}
IN_TIME = {"linspace": linspace, "polynomial": grids.polynomial, "beta_time": grids.beta_time}
GRIDS = WITH_RANGE | IN_TIME
SCHEDULES = {
    "variance_exploding": variance_exploding(),
    "scaled_linear": scaled_linear(),
    "flow": flow(),
    "zero terminal SNR": from_alphas_cumprod(np.linspace(0.9999, 0.0, 10_000)),
}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SIGMAS = {"karras": karras, "exponential": uniform_logsnr, "beta": grids.beta}


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("name", SIGMAS)
def test_levels_are_those_of_diffusers(name, scheduler):
    theirs = scheduler(**SD, timestep_spacing="linspace", **{f"use_{name}_sigmas": True})
    schedule = scaled_linear()
    trained = np.asarray(schedule.sigma(jnp.arange(999, -1, -1.0)))
    for n in (2, 5, 10, 25, 60):
        ours = SIGMAS[name](schedule, n)
        in_float64 = getattr(theirs, f"_convert_to_{name}")(trained, n)
        np.testing.assert_allclose(ours, in_float64, rtol=1e-10)
        theirs.set_timesteps(n)  # in float32, from end to end
        np.testing.assert_allclose(ours, theirs.sigmas[:-1], rtol=2e-5)


@pytest.mark.parametrize("n", [2, 10, 60])
def test_uniform_logsnr_is_the_lu_lambdas_of_diffusers(n):
    theirs = DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
    schedule = scaled_linear()
    log_sigma = np.log(schedule.sigma(jnp.arange(999, -1, -1.0)))
    lambdas = theirs._convert_to_lu(log_sigma, n)
    np.testing.assert_allclose(uniform_logsnr(schedule, n), np.exp(lambdas), rtol=1e-10)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("n", [2, 5, 40])
def test_karras_is_that_of_diffusers(rho, n):
    theirs = EDMEulerScheduler(sigma_min=0.02, sigma_max=50.0, rho=rho)
    theirs.set_timesteps(n)
    ours = karras(variance_exploding(), n, rho=rho, sigma_min=0.02, sigma_max=50.0)
    np.testing.assert_allclose(ours, theirs.sigmas[:-1], rtol=1e-5)  # theirs appends zero


@pytest.mark.parametrize("n", [2, 5, 40])
def test_linspace_is_that_of_diffusers(n):
    theirs = EulerDiscreteScheduler(**SD, timestep_spacing="linspace")
    theirs.set_timesteps(n)
    # It interpolates sigma itself between timesteps, we its logarithm.
    np.testing.assert_allclose(linspace(scaled_linear(), n), theirs.sigmas[:-1], rtol=1e-4)


DISTRIBUTIONS = {  # of log sigma
    "log_normal": (grids.log_normal, stats.norm(-1.2, 1.2)),
    "log_normal, wide": (partial(grids.log_normal, p_mean=0.5, p_std=2.0), stats.norm(0.5, 2)),
    "laplace": (grids.laplace, stats.laplace(0, 0.25)),
    "laplace, shifted": (partial(grids.laplace, mu=3.0, b=1.5), stats.laplace(-1.5, 0.75)),
    "cosine": (grids.cosine, stats.hypsecant()),
    "cosine, shifted": (partial(grids.cosine, shift=4.0), stats.hypsecant(np.log(4))),
    "sigmoid, alpha_bar even": (partial(grids.sigmoid, tau=1e5), stats.logistic(0, 0.5)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_levels_are_even_quantiles_of_their_distribution(name):
    grid, distribution = DISTRIBUTIONS[name]
    for schedule in (variance_exploding(), scaled_linear()):
        z = np.log(grid(schedule, 40))
        for share in (distribution.cdf(z), distribution.sf(z)):
            np.testing.assert_allclose(share, np.linspace(share[0], share[-1], 40), atol=1e-10)


@pytest.mark.parametrize("grid", [grids.log_normal, grids.laplace])
@pytest.mark.parametrize("mean", [-60.0, 60.0])
def test_quantiles_are_there_where_p_underflows(grid, mean):
    """So far out both distributions are exponential in log sigma: at evenly spaced quantiles the
    distances from the end where they are dense are those of a Laplace distribution."""
    schedule = variance_exploding(0.5, 2.0)
    far = (
        {"p_mean": mean, "p_std": 0.2} if grid is grids.log_normal else {"mu": -2 * mean, "b": 0.1}
    )
    z = np.abs(np.log(grid(schedule, 9, **far)) - np.sign(mean) * np.log(2.0))
    rate = abs(mean) / 0.2**2 if grid is grids.log_normal else 2 / 0.1
    even = -np.log(np.linspace(1, 0, 9)[:-1]) / rate
    np.testing.assert_allclose(np.sort(z)[:-1], even, rtol=0.05, atol=1e-12)


@pytest.mark.parametrize("low, high", [(50.0, 4096.0), (1e-6, 1e-3)])
def test_quantiles_are_exact_far_in_a_tail(low, high):
    """Where `1 - cdf` is nothing but rounding."""
    z = np.log(grids.log_normal(variance_exploding(low, high), 20, p_mean=-1.0, p_std=0.6))
    tail = stats.norm(-1, 0.6).sf(z) if low > 1 else stats.norm(-1, 0.6).cdf(z)
    assert tail.max() < 1e-15
    np.testing.assert_allclose(tail, np.linspace(tail[0], tail[-1], 20), rtol=1e-9)


@pytest.mark.parametrize("start, end, tau", [(-3.0, 3.0, 1.0), (-3.0, 0.0, 0.6), (0.5, 3.0, 1.1)])
def test_sigmoid_has_even_times_in_its_published_formula(start, end, tau):
    schedule = variance_exploding(0.02, 50.0)
    levels = grids.sigmoid(schedule, 30, start=start, end=end, tau=tau)
    alpha_bar = 1 / (1 + np.asarray(levels) ** 2)
    top, bottom = special.expit(end / tau), special.expit(start / tau)
    t = (tau * special.logit(top - alpha_bar * (top - bottom)) - start) / (end - start)
    np.testing.assert_allclose(t, np.linspace(t[0], t[-1], 30), atol=1e-9)
    np.testing.assert_allclose(levels[jnp.array([0, -1])], [50.0, 0.02], rtol=1e-9)


def test_a_cold_sigmoid_is_uniform_in_log_snr():
    schedule = variance_exploding(0.1, 10.0)
    cold = grids.sigmoid(schedule, 20, tau=0.05)
    np.testing.assert_allclose(cold, uniform_logsnr(schedule, 20), rtol=1e-9)


def test_beta_levels_and_times_are_quantiles_of_scipys_beta():
    schedule = scaled_linear()
    ppf = stats.beta(0.6, 0.8).ppf(1 - np.linspace(0, 1, 40))
    levels = grids.beta(schedule, 40, alpha=0.6, beta=0.8, sigma_min=1.0, sigma_max=9.0)
    np.testing.assert_allclose(levels, 1.0 + 8.0 * ppf, rtol=1e-10)
    times = schedule.t(grids.beta_time(schedule, 40, alpha=0.6, beta=0.8))
    np.testing.assert_allclose(times, 999 * ppf, atol=1e-8)


def test_times_that_are_levels_make_grids_in_levels():
    schedule = variance_exploding()
    for power in (1.0, 2.0, 7.0):
        times = grids.polynomial(schedule, 20, power=power)
        np.testing.assert_allclose(times, karras(schedule, 20, rho=power), rtol=1e-10)
    times = grids.beta_time(schedule, 20, alpha=0.5, beta=0.9)
    np.testing.assert_allclose(times, grids.beta(schedule, 20, alpha=0.5, beta=0.9), rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_even_times_are_linspace(schedule):
    schedule = SCHEDULES[schedule]
    for even in (
        partial(grids.polynomial, power=1.0),
        partial(grids.beta_time, alpha=1.0, beta=1.0),
    ):
        np.testing.assert_allclose(even(schedule, 20), linspace(schedule, 20), rtol=1e-9)


def test_quadratic_times_are_those_of_ddim():
    schedule = scaled_linear()
    times = schedule.t(grids.polynomial(schedule, 11))
    np.testing.assert_allclose(times, 999 * np.arange(10, -1, -1) ** 2 / 100, atol=1e-8)


def test_log_sigma_is_a_power_on_the_polyexponential_grid():
    schedule = variance_exploding(0.01, 100.0)
    straight = grids.polyexponential(schedule, 20)
    np.testing.assert_allclose(straight, uniform_logsnr(schedule, 20), rtol=1e-10)
    bent = grids.polyexponential(schedule, 20, rho=3.0)
    share = np.log(bent / 0.01) / np.log(1e4)
    np.testing.assert_allclose(share, np.linspace(1, 0, 20) ** 3, atol=1e-12)


TABLES = {
    "ays_sd15": (scaled_linear(), AysSchedules["StableDiffusionSigmas"], 0.029),
    "ays_sdxl": (scaled_linear(), AysSchedules["StableDiffusionXLSigmas"], 0.029),
    "ays_svd": (
        variance_exploding(0.002, 700.0),
        AysSchedules["StableDiffusionVideoSigmas"],
        0.002,
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_align_your_steps_is_its_published_table(name):
    schedule, theirs, last = TABLES[name]  # theirs has put zero in the place of the last level
    table = np.array([*theirs[:-1], last])
    grid = getattr(grids, name)
    np.testing.assert_allclose(grid(schedule, 11), table, rtol=1e-14)
    np.testing.assert_allclose(grid(schedule, 21)[::2], table, rtol=1e-14)
    log_linear = interpolate.interp1d(np.linspace(0, 1, 11), np.log(table))
    for n in (2, 5, 8, 30):
        expected = np.exp(log_linear(np.linspace(0, 1, n)))
        np.testing.assert_allclose(grid(schedule, n), expected, rtol=1e-12)
    assert grid(schedule, 1).item() == pytest.approx(table[0], rel=1e-14)


@pytest.mark.parametrize(
    "grid, timesteps",
    [
        (grids.ays_sd15, AysSchedules["StableDiffusionTimesteps"]),
        (grids.ays_sdxl, AysSchedules["StableDiffusionXLTimesteps"]),
    ],
)
def test_align_your_steps_is_at_its_published_timesteps(grid, timesteps):
    schedule = scaled_linear()
    np.testing.assert_allclose(schedule.t(grid(schedule, 11))[:-1], timesteps, atol=1.0)


PARAMETERS = {
    "karras": {"rho": st.floats(0.5, 50.0)},
    "uniform_logsnr": {},
    "linear_sigma": {},
    "polyexponential": {"rho": st.floats(0.5, 3.0)},
    "cosine": {"shift": st.floats(0.1, 10.0)},
    "sigmoid": {
        "start": st.floats(-6.0, 0.5),
        "end": st.floats(1.0, 6.0),
        "tau": st.floats(0.2, 5.0),
    },
    "laplace": {"mu": st.floats(-5.0, 5.0), "b": st.floats(0.2, 3.0)},
    "log_normal": {"p_mean": st.floats(-3.0, 3.0), "p_std": st.floats(0.3, 3.0)},
    "beta": {"alpha": st.floats(0.3, 3.0), "beta": st.floats(0.3, 3.0)},
    "linspace": {},
    "polynomial": {"power": st.floats(0.5, 4.0)},
    "beta_time": {"alpha": st.floats(0.3, 3.0), "beta": st.floats(0.3, 3.0)},
}


@pytest.mark.parametrize("name", PARAMETERS)
@given(data=st.data(), n=st.integers(1, 60), low=st.floats(1e-4, 1.0), ratio=st.floats(1.01, 1e5))
@settings(max_examples=40, deadline=None)
def test_grids_fall_from_end_to_end(name, data, n, low, ratio):
    schedule = variance_exploding(low, low * ratio)
    parameters = data.draw(st.fixed_dictionaries(PARAMETERS[name]))
    levels = np.asarray(getattr(grids, name)(schedule, n, **parameters))
    assert levels.shape == (n,) and (levels[:-1] >= (1 + 1e-9) * levels[1:]).all()
    assert levels[0] == pytest.approx(schedule.sigma_max, rel=1e-9)
    if n > 1:
        assert levels[-1] == pytest.approx(schedule.sigma_min, rel=1e-9)


@pytest.fixture(scope="module")
def built():
    """Every grid that a yaml names, with the schedule it is for."""
    own = {"ays_svd": variance_exploding(0.002, 700.0), "gits": variance_exploding()}
    lists = {
        "interpolated": ["++grid.levels=[10.0, 3.0, 0.2]"],
        "explicit": ["++grid.levels=[10.0]"],
    }
    found = {}
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for name in YAMLS:
            chosen = ["+problem=mixture", f"+grid={name}", *lists.get(name, [])]
            grid = hydra.utils.instantiate(hydra.compose(overrides=chosen), _convert_="all")["grid"]
            found[name] = grid, own.get(name, scaled_linear())
    return found


@pytest.mark.parametrize("name", YAMLS)
def test_every_yaml_names_a_grid(name, built):
    grid, schedule = built[name]
    few = {"explicit": (1,), "skipping": (1, 2, 3, 8, 25, 50)}
    for n in few.get(name, (1, 2, 3, 8, 25, 60)):
        levels = np.asarray(grid(schedule, n))
        assert levels.shape == (n,) and levels[-1] > 0
        falls = levels[:-1] >= (1 + 1e-9) * levels[1:]
        assert (falls | ((name == "restart") & (levels[1:] == 0.3))).all()
        assert levels[0] <= schedule.sigma_max * 1.001


@pytest.mark.parametrize("name", YAMLS)
def test_levels_decrease_in_single_precision_too(name, built):
    grid, schedule = built[name]
    with jax.enable_x64(False):
        levels = np.asarray(grid(schedule, {"explicit": 1, "skipping": 50}.get(name, 60)))
    assert levels.dtype == np.float32
    assert np.sum(np.diff(levels) >= 0) == (2 if name == "restart" else 0)


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
    levels = [5.0, 1.0, 1.0, 0.25]  # twice for `plms`
    assert explicit(variance_exploding(), 4, levels=levels).tolist() == levels


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda s: karras(s, 0), "at least one level, not 0"),
        (lambda s: linspace(s, -1), "at least one level, not -1"),
        (lambda s: karras(s, 3, sigma_min=100.0), "got 100.0 and 80.0"),
        (lambda s: uniform_logsnr(s, 3, sigma_min=0.0), "sigma_min = 0.0 is not in"),
        (lambda s: explicit(s, 3, levels=[2.0, 1.0]), "has 2 levels, but 3"),
        (lambda s: explicit(s, 3, levels=[2.0, 1.0, 1.5]), "must be finite, positive and decrease"),
        (lambda s: explicit(s, 3, levels=[2.0, 1.0, 0.0]), "must be finite, positive and decrease"),
        (lambda s: explicit(s, 3, levels=[2.0, 2.0, 2.0]), "at most twice in a row"),
        (lambda s: grids.cosine(s, 0), "at least one level, not 0"),
        (lambda s: grids.ays_sd15(s, 0), "at least one level, not 0"),
        (lambda s: grids.polynomial(s, 0), "at least one level, not 0"),
        (lambda s: grids.sigmoid(s, 3, start=1.0, end=1.0), "start < end and tau > 0"),
        (lambda s: grids.polyexponential(s, 40, rho=20.0), "positive and decrease"),
        (lambda s: grids.ays_svd(s, 8), "from 700 to 0.002 is not for a model trained at 80"),
        (lambda s: grids.interpolated(s, 8, levels=[3.0]), "has a single level"),
        (lambda s: grids.interpolated(s, 8, levels=[3.0, 4.0]), "positive and decrease"),
        (lambda s: explicit(s, 2, levels=[1.0, 2.0]), "positive and decrease"),
        (lambda s: explicit(s, 2, levels=[1.0, 0.0]), "positive and decrease"),
        (lambda s: explicit(s, 2, levels=[np.inf, 1.0]), "finite"),
        (lambda s: explicit(s, 1, levels=[np.nan]), "finite"),
        (lambda s: karras(s, 3, sigma_max=np.inf), "sigma_max = inf is not in"),
    ],
)
def test_what_makes_no_grid_is_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(variance_exploding())
