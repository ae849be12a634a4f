"""Scheduler files beside the diffusers classes that write them: noise, levels, ends, networks."""

import sys
import types
import warnings
from unittest import mock

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from optdiff import noise, samplers
from optdiff.denoisers import eps_scaling
from optdiff.grids import dpm_leading, leading, skipping, trailing
from optdiff.scheduler_config import CLASSES, euler_step, own_step, read

with mock.patch.dict(sys.modules, {"torchsde": types.ModuleType("torchsde")}):
    # It draws its noise from there; its levels need none.
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLES = {
    "stable diffusion": SD,
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained betas": {
        "trained_betas": np.geomspace(1e-4, 0.05, 400).tolist(),
        "num_train_timesteps": 400,
    },
    "few timesteps": SD | {"num_train_timesteps": 50},
}
FLOW = {
    "_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction",
    "use_flow_sigmas": True, "flow_shift": 3.0,
}  # fmt: skip
PUBLISHED = {  # as they stand in the folders of these names
    "SD 1.5": {
        "_class_name": "PNDMScheduler", **SD, "clip_sample": False, "num_train_timesteps": 1000,
        "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
    },
    "SD 2.1": {
        "_class_name": "DDIMScheduler", **SD, "clip_sample": False, "num_train_timesteps": 1000,
        "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None,
    },
    "SDXL": {
        "_class_name": "EulerDiscreteScheduler", **SD, "clip_sample": False,
        "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
        "use_karras_sigmas": False,
    },
    "LCM": {
        "_class_name": "LCMScheduler", **SD, "original_inference_steps": 50, "steps_offset": 1,
        "set_alpha_to_one": True, "timestep_spacing": "leading", "prediction_type": "epsilon",
    },
    "Playground 2.5": {
        "_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5, "sigma_max": 80.0,
        "sigma_min": 0.002, "sigma_schedule": "karras", "solver_order": 2, "rho": 7.0,
        "final_sigmas_type": "zero", "prediction_type": "epsilon", "num_train_timesteps": 1000,
    },
    "flow": FLOW,
}  # fmt: skip
BETAS = [name for name, known in CLASSES.items() if "beta_start" in known.fields]
SPACED = [name for name in BETAS if "timestep_spacing" in CLASSES[name].fields]
COUNTS = (4, 25)


@pytest.fixture(autouse=True)
def without_times(monkeypatch):
    """Some classes take seconds to look up the times of levels, which nothing here looks at."""
    for name in CLASSES:
        if hasattr(of_diffusers(name), "_sigma_to_t") and "Flow" not in name:
            monkeypatch.setattr(of_diffusers(name), "_sigma_to_t", lambda self, sigma, logs: 0.0)


def of_diffusers(name):
    return DPMSolverSDEScheduler if "SolverSDE" in name else getattr(diffusers, name)


def theirs(file, name):
    """The class as a user makes it of a pipeline's scheduler, whose class is the file's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = of_diffusers(file["_class_name"]).from_config(file)
        return of_diffusers(name).from_config(own.config, skip_prk_steps=True)


def table(scheduler):
    """From its float32 betas, with products in float64: `1 - alpha_bar` cancels at low noise."""
    alphas_cumprod = np.cumprod(1 - scheduler.betas.double().numpy())
    if getattr(scheduler.config, "rescale_betas_zero_snr", False):
        alphas_cumprod[-1] = 2.0**-24
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def way_of(scheduler, n):
    """The levels at which a scheduler takes n steps, and where it ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tensors in NumPy
        scheduler.set_timesteps(n)
    if not hasattr(scheduler, "sigmas"):
        sigmas = table(scheduler)
        ends = {"TCDScheduler": sigmas[0], "LCMScheduler": 0.0, "DDPMScheduler": 0.0}
        end = 0.0 if getattr(scheduler.config, "set_alpha_to_one", True) else sigmas[0]
        return sigmas[scheduler.timesteps.numpy()], ends.get(type(scheduler).__name__, end)
    sigmas = scheduler.sigmas.double().numpy()
    if getattr(scheduler.config, "use_flow_sigmas", "Flow" in type(scheduler).__name__):
        with np.errstate(divide="ignore"):
            sigmas = np.minimum(sigmas / (1 - sigmas), 4096)
    if scheduler.order == 2:
        sigmas = np.concatenate([sigmas[:1], sigmas[1::2]])[: n + 1]
    return sigmas[:-1], sigmas[-1]


def end_of(route):
    """Where a route ends, what it multiplies the end with, and if by the sampler's own step."""
    sigma, one, asked = route.levels[-1], jnp.ones((1, 1)), []

    def update(eps, sigma_next):
        asked.append(sigma_next)
        return (sigma_next - sigma) * eps

    alpha = route.finish(lambda x, s: 0 * x, one, sigma, update).item()
    moved = route.finish(lambda x, s: one, 0 * one, sigma, update).item()
    return moved / alpha + sigma.item(), alpha, bool(asked)


def require_same(file, name, counts=COUNTS, rtol=2e-4):
    """Our levels and end, by the class's first sampler, are those of the class."""
    config, sampler = read(file), next(iter(CLASSES[name].samplers), "")
    assert config.stepping(sampler) == name
    scheduler = theirs(file, name)
    for n in counts:
        levels, last = way_of(scheduler, n)
        route = config.route(n + (name == "PNDMScheduler"), sampler=sampler)
        np.testing.assert_allclose(route.levels, levels, rtol=rtol)
        np.testing.assert_allclose(end_of(route)[0], last, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("name", TABLES)
def test_the_noise_is_that_of_diffusers(name):
    scheduler = diffusers.DDIMScheduler(**TABLES[name], clip_sample=False)
    schedule = read({"_class_name": "DDIMScheduler", **scheduler.config}).schedule
    t = jnp.arange(len(scheduler.alphas_cumprod), dtype=float)
    np.testing.assert_allclose(schedule.sigma(t), table(scheduler), rtol=1e-5)
    np.testing.assert_allclose(schedule.t(schedule.sigma(t)), t, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in BETAS if CLASSES[n].samplers])
def test_a_published_file_leads_every_class_where_diffusers_leads_it(name):
    """With left-overs of other classes in it, and without some fields of this one."""
    for file in ("SD 1.5", "SDXL"):
        if (file, name) != ("SDXL", "DDIMScheduler"):  # Euler's method, by another name
            require_same(PUBLISHED[file], name)


@pytest.mark.parametrize("name", SPACED)
def test_spacings_are_those_of_the_class(name):
    """And the ends, of every field that is there or not."""
    ends = ({}, {"set_alpha_to_one": True}, {"final_sigmas_type": "sigma_min"})
    for spacing, end in zip(("leading", "trailing", "linspace"), ends, strict=True):
        file = {"_class_name": name, **SD, "timestep_spacing": spacing, "steps_offset": 2, **end}
        require_same(file, name)
    require_same({"_class_name": name, **TABLES["few timesteps"]}, name)


@pytest.mark.parametrize("name", [n for n in BETAS if "use_karras_sigmas" in CLASSES[n].fields])
def test_levels_of_other_kinds_are_those_of_the_class(name):
    """Over the range that the class has for them, which is not that of every other."""
    kinds = ("karras", "exponential", "beta")
    for kind, spacing in zip(kinds, ("leading", "trailing", "linspace"), strict=True):
        spaced = {"timestep_spacing": spacing, f"use_{kind}_sigmas": True}
        require_same({"_class_name": name, **SD, **spaced}, name)
    if "sigma_min" in CLASSES[name].fields and name != "UniPCMultistepScheduler":
        ends = {"sigma_min": 0.1, "sigma_max": 10.0, "use_karras_sigmas": True}
        require_same({"_class_name": name, **SD, **ends}, name, counts=(4,))
    if name == "DPMSolverMultistepScheduler":
        require_same({"_class_name": name, **SD, "use_lu_lambdas": True}, name, counts=(4,))


@pytest.mark.parametrize("name", [n for n in BETAS if "use_flow_sigmas" in CLASSES[n].fields])
def test_flow_sigmas_are_those_of_the_class(name):
    require_same(FLOW | {"_class_name": name}, name, rtol=2e-3)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
def test_flow_times_are_those_of_diffusers(name):
    for shift in (1.0, 3.0):
        file = {"_class_name": name, "shift": shift}
        scheduler = theirs(file, name)
        assert read(file).schedule.sigma_max == pytest.approx(4096, rel=1e-6)
        for n in COUNTS:
            sigmas = read(file).route(n).levels, way_of(scheduler, n)[0]
            levels, times = (sigma / (1 + sigma) for sigma in sigmas)
            # Theirs begin at t = 1, where sigma is infinite; ours a quarter of a timestep below.
            np.testing.assert_allclose(levels, times, atol=2.5e-4)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_is_that_of_diffusers(name):
    """Levels, the times that stand for them, and the preconditioning at each."""
    for kind in ("karras", "exponential"):
        range_ = {"sigma_max": 120.0, "sigma_data": 1.5, "rho": 5.0, "sigma_schedule": kind}
        file = {"_class_name": name, **range_}
        require_same(file, name)
    config, scheduler = read(file), theirs(file, name)
    for sigma in config.route(4).levels:
        level = torch.tensor(float(sigma), dtype=torch.float64)
        skip, out = (scheduler.precondition_outputs(*xf, level) for xf in ((1.0, 0.0), (0.0, 1.0)))
        c_in = scheduler.precondition_inputs(1.0, level)
        c_noise = scheduler.precondition_noise(level)
        scaling = config.scaling(config.schedule, sigma)
        np.testing.assert_allclose(scaling, (skip, out, c_in, c_noise), rtol=1e-9)


def test_zero_terminal_snr_is_capped_where_diffusers_caps_it():
    file = {"_class_name": "EulerDiscreteScheduler", **SD, "rescale_betas_zero_snr": True}
    with pytest.warns(UserWarning, match="'epsilon'.*begins at sigma = 4096"):
        schedule = read(file).schedule
    assert read(file | {"prediction_type": "v_prediction"}).schedule == schedule  # not a word
    scheduler = theirs(file, file["_class_name"])
    assert schedule.sigma_max == pytest.approx(float(scheduler.sigmas[0]), rel=1e-6)
    # Near the end its table is a difference of nearly equal float32 numbers, ours of float64.
    theirs_ = scheduler.sigmas[:-1].flip(0).numpy()
    sigma = schedule.sigma(jnp.arange(999.0))
    np.testing.assert_allclose(sigma[:900], theirs_[:900], rtol=1e-4)
    np.testing.assert_allclose(sigma, theirs_[:-1], rtol=1e-2)
    assert schedule.t(jnp.asarray(schedule.sigma_max)) == 999


def test_a_field_counts_for_a_class_that_has_it():
    """Published SDXL folders carry `set_alpha_to_one = false` in the file of an Euler."""
    config = read(PUBLISHED["SDXL"] | {"clip_sample": True})
    assert end_of(config.route(4, sampler="euler"))[0] == 0
    assert end_of(config.route(4, sampler="ddim"))[0] == 0  # its own method by another name
    assert end_of(config.route(4, sampler="adam"))[0] == 0  # a sampler that no class has
    lowest = config.schedule.sigma_min
    assert end_of(config.route(9, sampler="plms"))[0] == pytest.approx(lowest)  # PNDM has the field


def test_a_sampler_steps_as_its_class_or_as_the_files():
    stepping = {
        ("SD 1.5", "ddim"): "DDIMScheduler",
        ("SD 1.5", "euler"): "EulerDiscreteScheduler",
        ("SD 1.5", "momentum"): "PNDMScheduler",
        ("SDXL", "ddim"): "EulerDiscreteScheduler",
        ("SDXL", "ddpm"): "DDPMScheduler",
        ("Playground 2.5", "ddim"): "EDMEulerScheduler",
        ("Playground 2.5", "dpmpp_3m"): "EDMDPMSolverMultistepScheduler",
        ("Playground 2.5", "heun"): "EDMDPMSolverMultistepScheduler",
        ("flow", "unipc"): "UniPCMultistepScheduler",
        ("flow", "ddim"): "DPMSolverMultistepScheduler",
    }
    for (file, sampler), name in stepping.items():
        assert read(PUBLISHED[file]).stepping(sampler) == name
    known = {name for c in CLASSES.values() for name in c.samplers}
    assert known <= set(samplers.__all__)


def test_orders_are_lowered_at_the_end_as_the_class_lowers_them():
    """Euler's step to a positive end in short runs, the method's own in others; by its own, with
    what it remembers, to zero too where the class does."""
    short = {"final_sigmas_type": "sigma_min"}
    for file, name, n, own in [
        ({}, "dpmpp_2m", 25, False),
        (short, "dpmpp_2m", 14, False),
        (short, "dpmpp_2m", 15, True),
        (short | {"euler_at_final": True}, "dpmpp_2m", 15, False),
        (short | {"lower_order_final": False}, "dpmpp_2m", 4, True),
        ({}, "deis_log_rho", 14, False),
        ({}, "deis_log_rho", 15, True),
        ({}, "unipc", 25, False),
        (short, "unipc", 4, True),
        ({}, "sa_solver", 4, True),
        ({}, "lms", 4, True),
        ({}, "plms", 4, True),
        ({}, "tcd", 4, False),
    ]:
        assert end_of(read(SD | file).route(n, sampler=name))[2] == own, (name, file, n)


def test_a_single_level_is_the_highest():
    for name in BETAS:
        for spacing in ("leading", "trailing", "linspace"):
            config = read({"_class_name": name, **SD, "timestep_spacing": spacing})
            [level] = config.route(1).levels
            assert level == pytest.approx(config.schedule.sigma_max, rel=1e-9)


def test_endings_go_where_they_say():
    x, sigma = jnp.ones((1, 2)), jnp.array(2.0)
    update = lambda eps, sigma_next: 10 * (sigma_next - sigma) * eps  # noqa: E731
    eps_fn = lambda x, sigma: 3 * x  # noqa: E731
    assert euler_step(0.5, 0.25)(eps_fn, x, sigma, update)[0, 0] == 0.25 * (1 - 1.5 * 3)
    assert own_step(0.5, 0.25)(eps_fn, x, sigma, update)[0, 0] == 0.25 * (1 - 15 * 3)
    assert euler_step(0.1) is euler_step(0.1)  # one program in scan mode


def test_equal_files_are_equal_schedules_and_scalings():
    for config in [*TABLES.values(), *PUBLISHED.values()]:
        for time_conditioning in (True, False):
            config = config | {"time_conditioning": time_conditioning}
            one, other = (read(dict(config)) for _ in range(2))
            assert one == other and hash(one) == hash(other)
    assert read(SD).schedule == noise.scaled_linear() and read(SD).scaling is eps_scaling


def test_a_whole_number_may_have_a_point():
    whole, pointed = (read(SD | {"num_train_timesteps": n, "steps_offset": 1}) for n in (50, 50.0))
    assert whole == pointed and whole.route(5).levels.tolist() == pointed.route(5).levels.tolist()


def test_runge_kutta_steps_that_are_not_taken_are_told():
    with pytest.warns(UserWarning, match="skip_prk_steps = False"):
        read(SD | {"_class_name": "PNDMScheduler", "skip_prk_steps": False})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "IPNDMScheduler"}, "_class_name = 'IPNDMScheduler' is no scheduler that"),
        ({"_class_name": 7}, "_class_name = 7"),
        ({"beta_schedule": "exp"}, "beta_schedule = 'exp' is not known; there is linear"),
        ({"beta_schedule": None}, "beta_schedule = None"),
        ({"beta_start": "small"}, "beta_start = 'small'"),
        ({"num_train_timesteps": 10**10}, "num_train_timesteps = 10000000000 must be 2 to"),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps = 1000.5 is not what 1000 is one"),
        ({"steps_offset": float("inf")}, "steps_offset = inf is not"),
        ({"trained_betas": [[0.1, 0.2]]}, "trained_betas = .* nor a list of numbers"),
        ({"trained_betas": {"first": 0.1}}, "trained_betas = .* nor a list of numbers"),
        ({"prediction_type": "x0"}, "prediction_type = 'x0' is not known; there is epsilon"),
        ({"time_conditioning": "no"}, "time_conditioning = 'no' must be true or false"),
        ({"clip_sample": True}, "clip_sample = True is for pixels"),
        ({"timestep_spacing": "trail"}, "timestep_spacing = 'trail' is not known"),
        (FLOW | {"prediction_type": "epsilon"}, "'epsilon' is not known; there is flow_predict"),
        (FLOW | {"use_dynamic_shifting": True}, "use_dynamic_shifting = True.*such as karras"),
        (FLOW | {"use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "lu"}, "sigma_schedule = 'lu'"),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
            "EDMEuler.* 'v_prediction' is not known",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
            "timestep_type = 'continuous'",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"},
            "interpolation_type = 'log_linear'",
        ),
        (
            {"_class_name": "LMSDiscreteScheduler"}
            | dict.fromkeys(("use_karras_sigmas", "use_beta_sigmas"), True),
            "use_karras_sigmas and use_beta_sigmas ask for different levels",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1}, "shift_termin"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        read(SD | changes).route(8)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda s: leading(s, 0), "at least one level"),
        (lambda s: trailing(s, 1001), "1001 levels asked for, but the schedule has 1000"),
        (lambda s: dpm_leading(s, 1000), "1000 levels asked for, of 1000 trained timesteps with"),
        (lambda s: leading(s, 10, steps_offset=200), "timesteps 1100 to 200 are not all"),
        (lambda s: trailing(noise.flow(), 8), "without a highest level"),
        (lambda s: skipping(s, 51), "51 levels of the 50 that the model was distilled at"),
    ],
)
def test_timesteps_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(noise.scaled_linear())
