"""Solvers of the reverse-time equation: against diffusers with the same noise, against what the
authors' code computes, and in mean and covariance against a Gaussian's own."""

import inspect
import sys
from itertools import pairwise
from textwrap import dedent
from types import ModuleType

import diffusers
import diffusers_oracle
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import yamls
from diffusers_oracle import STEPS, Case, cases, create, in_float64
from exact_noise import PROBLEM, SCHEDULE, covariance_slope, pushed, recorded
from scipy.integrate import quad

from optdiff.grids import karras
from optdiff.problems import energy, gaussian, mixture
from optdiff.sample import identity, sample_scan
from optdiff.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_3s,
    dpmpp_sde,
    er_sde,
    er_sde_5,
    exact_slope,
    midpoint_slope,
    power_down,
    power_scale,
    renoise,
    sa_solver,
    unipc,
)

ALL = cases()
NO_SAMPLE = cases(predictions=("epsilon", "v_prediction"))
SDE = {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False}


@pytest.mark.parametrize("slope", [midpoint_slope, exact_slope])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_2m_sde_is_that_of_diffusers(case, slope, parity):
    kind = {midpoint_slope: "midpoint", exact_slope: "heun"}[slope]
    settings = SDE | {"solver_type": kind}
    parity("DPMSolverMultistepScheduler", dpmpp_2m_sde(slope=slope), case, noisy=True, **settings)


@pytest.fixture
def vanishing_curvature(monkeypatch):
    """diffusers subtracts 1/2 from the weight of the second difference, which then is -1 for short
    steps; k-diffusion adds it, and the weight vanishes with the step."""
    scheduler = diffusers.DPMSolverMultistepScheduler
    update = scheduler.multistep_dpm_solver_third_order_update
    source = dedent(inspect.getsource(update))
    wrong, right = (f"- 2.0 * h) / (2.0 * h) ** 2 {sign} 0.5" for sign in "-+")
    assert source.count(wrong) == 1
    exec(source.replace(wrong, right), update.__globals__, mended := {})
    monkeypatch.setattr(scheduler, update.__name__, mended[update.__name__])


@pytest.mark.parametrize("case", ALL, ids=str)
def test_3m_sde_is_that_of_k_diffusion(case, parity, vanishing_curvature):
    """As diffusers has it that never lowers its order, and as the yaml has it."""
    settings = SDE | {"solver_type": "heun", "solver_order": 3}
    parity(
        "DPMSolverMultistepScheduler", yamls.sampler("dpmpp_3m_sde"), case, noisy=True, **settings
    )


@pytest.mark.parametrize("case", [*ALL, Case(14, "leading"), Case(15, "leading")], ids=str)
def test_3m_sde_with_lowered_last_steps_is_that_of_diffusers(case, parity, vanishing_curvature):
    settings = SDE | {"solver_type": "heun", "solver_order": 3, "lower_order_final": True}
    sampler = dpmpp_3m_sde(final_order=2, lower_below=15)
    parity("DPMSolverMultistepScheduler", sampler, case, noisy=True, **settings)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_3m_sde_without_noise_is_3m(case, parity):
    settings = {"solver_type": "heun", "solver_order": 3, "lower_order_final": False}
    parity("DPMSolverMultistepScheduler", dpmpp_3m_sde(0.0), case, **settings)


@pytest.fixture
def brownian_scheduler(monkeypatch):
    """diffusers' `DPMSolverSDEScheduler`, which draws from a tree of torchsde: its noise is
    replaced here, so the package is not needed. It looks ahead in the middle of log SNR."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    def called_at(scheduler):
        levels = scheduler.sigmas.clone()
        levels[1:-1:2] = (levels[:-2:2] * levels[2::2][: len(levels[1:-1:2])]).sqrt()
        return np.asarray(levels.double())

    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", DPMSolverSDEScheduler)
    monkeypatch.setattr(diffusers_oracle, "called_at", called_at)
    return "DPMSolverSDEScheduler"


@pytest.mark.parametrize("case", NO_SAMPLE, ids=str)
def test_dpmpp_sde_is_that_of_diffusers(case, parity, brownian_scheduler):
    name, sampler = brownian_scheduler, dpmpp_sde()
    with in_float64(name):
        levels = jnp.asarray(
            diffusers_oracle.called_at(create(name, case.steps, **case.config))[:-1:2]
        )
    start = parity.problem.prior(parity.keys, levels[0])
    path = brownian_path(np.asarray(levels), recorded(lambda: parity.ours(sampler, levels, start)))

    def same_path(scheduler, call, last):
        """The noise of a step is an increment of the path over it, of variance one."""
        dtype = torch.get_default_dtype()

        def increment(start, stop):
            moved = path(float(start)) - path(float(stop))
            return torch.tensor(moved).to(dtype) / (start - stop).sqrt()

        scheduler.noise_sampler = increment
        return {}

    parity(name, sampler, case, calls_per_step=2, options=same_path)


def brownian_path(levels, draws):
    """A Brownian motion with the clock sigma, by its value at the levels and in the middle of each
    step, and zero at the last."""
    clock = np.empty(2 * len(levels) - 1)
    clock[::2], clock[1::2] = levels, np.sqrt(levels[:-1] * levels[1:])
    steps = [np.sqrt(-dt) * z for dt, z in zip(np.diff(clock), draws, strict=True)]
    values = np.concatenate([np.zeros_like(draws[0])[None], np.cumsum(steps[::-1], axis=0)])[::-1]
    return lambda sigma: values[np.argmin(np.abs(clock - sigma))]


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_sde_is_the_single_step_form_too(steps, parity, monkeypatch):
    """`sde-dpmsolver++` of order 2 looks at a level of its grid: let it be the middle, and let it
    draw the increments of our path, where it draws two noises that know nothing of each other."""

    def looks_half_way(scheduler):
        sigmas = scheduler.sigmas
        sigmas[1:-2:2] = (sigmas[:-2:2] * sigmas[2:-1:2]).sqrt()

    name, sampler = "DPMSolverSinglestepScheduler", dpmpp_sde()
    settings = {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}
    settings |= {"solver_order": 2, "patch": looks_half_way}
    with in_float64(name):
        scheduler = create(name, 2 * steps - 1, **settings)
    every = diffusers_oracle.called_at(scheduler)
    levels = jnp.asarray(every[:-1:2])
    start = parity.problem.prior(parity.keys, levels[0])
    path = brownian_path(np.asarray(levels), recorded(lambda: parity.ours(sampler, levels, start)))

    def same_path(scheduler, call, last):
        """The first noise of a step is the path's to the middle, the second that of all of it."""
        begin, end = every[call - call % 2], every[call + 1]
        moved = np.zeros(start.shape) if last else path(begin) - path(end)
        drawn = torch.tensor(moved / np.sqrt(begin - end), dtype=torch.get_default_dtype())
        module = sys.modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: drawn)
        return {}

    case = Case(2 * steps - 1)
    parity(name, sampler, case, calls_per_step=2, options=same_path, **settings)


@pytest.mark.parametrize("case", cases(levels=("trained",)), ids=str)
def test_of_order_one_the_sde_form_is_ancestral(case, parity):
    settings = SDE | {"solver_order": 1}
    parity("DPMSolverMultistepScheduler", ancestral(1.0), case, noisy=True, **settings)


def taylor_by_the_authors(x, levels, order, phi, noise, denoise):
    """Their steps for variance-exploding noise, with the integrals that they sum done by scipy."""
    data, slopes, visited = [], [], [x]
    for i, (s, t) in enumerate(pairwise(levels)):
        data.append(np.asarray(denoise(x, s)))
        r = phi(t) / phi(s)
        x = r * x + (1 - r) * data[i] + np.sqrt(t**2 - s**2 * r**2) * noise[i]
        if i >= 1:
            slopes.append((data[i] - data[i - 1]) / (s - levels[i - 1]))
            area = quad(lambda u: 1 / phi(u), t, s, epsabs=0, epsrel=1e-13)[0]
            x = x + (order > 1) * (t - s + area * phi(t)) * slopes[-1]
        if i >= 2:
            bend = 2 * (slopes[-1] - slopes[-2]) / (s - levels[i - 2])
            area = quad(lambda u, s=s: (u - s) / phi(u), t, s, epsabs=0, epsrel=1e-13)[0]
            x = x + (order > 2) * ((t - s) ** 2 / 2 + area * phi(t)) * bend
        visited.append(x)
    return np.stack(visited)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("phi", [er_sde_5, power_scale(1.0)], ids=["er_sde_5", "power"])
def test_er_sde_is_that_of_the_authors(phi, order, parity, levels):
    x = np.asarray(parity.problem.prior(parity.keys, levels[0]))
    noise, numbers = parity.noise(levels), np.asarray(levels)
    theirs = taylor_by_the_authors(
        x, numbers, order, lambda u: float(phi(jnp.array(u))), noise, parity.denoise
    )
    ours = parity.ours(er_sde(order, phi), levels, jnp.asarray(x)).iterates
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_integrates_data_that_move_straight(order, iterates):
    """`D = sigma`, whatever x: where phi is sigma^2, x = 2 sigma solves it, and only the first step
    of order 2 and 3, and all of order 1, do not know the slope. Without its noise."""
    levels = jnp.geomspace(3.0, 0.5, 6)

    def log_density(problem, x, sigma, cond):
        return -jnp.sum(x**2, axis=1) / (2 * sigma**2) + jnp.sum(x, axis=1) / sigma

    problem = energy(gaussian(dim=4), log_density)
    x = iterates(er_sde(order, power_scale(1.0), 0.0), levels, problem=problem, x=jnp.zeros((5, 4)))
    missed = np.abs(x / levels[:, None, None] ** 2 - 2 / levels[:, None, None])
    moved = np.abs(np.diff(missed, axis=0))[1:]
    assert (moved < 1e-12).all() if order > 1 else (moved > 1e-3).all()


THE_SAME = {
    "2M SDE without noise": (dpmpp_2m_sde(0.0), dpmpp_2m()),
    "SDE without noise": (dpmpp_sde(0.0), dpmpp_2s()),
    "ER-SDE-1 without noise": (er_sde(1, power_scale(0.0)), ddim()),
    "ER-SDE-1 with the data's diffusion": (er_sde(1, power_scale(1.0)), ancestral(1.0)),
    "ER-SDE-1 in between": (er_sde(1, power_scale(0.5)), renoise(ddim(), power_down(0.5))),
}


@pytest.mark.parametrize("pair", THE_SAME)
def test_these_are_one_sampler(pair, iterates, levels):
    one, other = (iterates(sampler, levels) for sampler in THE_SAME[pair])
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


SECOND_ORDER = {
    "2M SDE": dpmpp_2m_sde(),
    "2M SDE, exact slope": dpmpp_2m_sde(slope=exact_slope),
    "2M SDE, less noise": dpmpp_2m_sde(0.5),
    "3M SDE": dpmpp_3m_sde(),
    "3M SDE, less noise": dpmpp_3m_sde(0.5),
    "3M SDE, last steps of lower order": dpmpp_3m_sde(final_order=1),
    "SDE": dpmpp_sde(),
    "ER-SDE-2": er_sde(2),
    "ER-SDE-3": er_sde(3),
    "ER-SDE-3 with the data's diffusion": er_sde(3, power_scale(1.0)),
    "ER-SDE-3 without noise": er_sde(3, power_scale(0.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_in_mean_and_covariance(name):
    assert covariance_slope(lambda steps: SECOND_ORDER[name]) == pytest.approx(2.0, abs=0.25)


@pytest.mark.slow
def test_3m_sde_is_of_second_order_at_its_last_but_one_step():
    """In mean and covariance, where the last two steps are of lower order; at the end it is held to
    that above. The error of such a step, of second order too, has the other sign,
    so that it takes more steps to see the order."""
    sampler, missed = dpmpp_3m_sde(final_order=1), []

    def one_more_to_go(*args, steps_left, **given):
        return sampler.update(*args, steps_left=steps_left + 1, **given)

    on_its_way = optax.GradientTransformationExtraArgs(sampler.init, one_more_to_go)
    for steps in (32, 64):
        levels = karras(SCHEDULE, steps + 1)[:-1]
        reached = pushed(PROBLEM, on_its_way, levels)
        np.testing.assert_allclose(reached.mean, PROBLEM.mean, rtol=1e-12)
        exact = PROBLEM.cov + levels[-1] ** 2 * np.eye(2)
        missed.append(np.linalg.norm(reached.cov - exact))
    assert np.log2(missed[0] / missed[1]) == pytest.approx(2.0, abs=0.25)


WITHOUT_NOISE = {
    "ER-SDE-3": er_sde(3, power_scale(0.0)),
    "3M SDE": dpmpp_3m_sde(0.0),
    "3M SDE, last steps of lower order": dpmpp_3m_sde(0.0, final_order=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_without_noise_they_are_of_second_order_along_trajectories(name, keys):
    """On a mixture, against many steps of a method of third order."""
    problem = mixture(modes=3, dim=4, stds=0.5, schedule=SCHEDULE)
    x = problem.prior(keys, jnp.array(SCHEDULE.sigma_max))

    def end(sampler, steps):
        levels = karras(SCHEDULE, steps + 1)
        return sample_scan(problem, sampler, levels, keys, x=x, finish=identity)[0]

    exact, sampler = end(dpmpp_3s(), 300), WITHOUT_NOISE[name]
    coarse, fine = (jnp.linalg.norm(end(sampler, steps) - exact) for steps in (32, 64))
    assert jnp.log2(coarse / fine) == pytest.approx(2.0, abs=0.2)


def test_no_step_is_of_order_zero():
    for make in (dpmpp_3m_sde, dpmpp_3m, unipc, sa_solver):
        with pytest.raises(ValueError, match=r"final_order = .* is not in"):
            make(final_order=0)


def test_there_is_no_er_sde_4():
    with pytest.raises(ValueError, match="order"):
        er_sde(4)


@pytest.mark.slow
def test_er_sde_1_is_of_first_order():
    assert covariance_slope(lambda steps: er_sde(1)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_noise_has_the_size_that_is_asked_for():
    """Twice the noise is four times its part of the covariance."""
    levels = karras(SCHEDULE, 4)
    for make in (dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde, er_sde):
        none, once, twice = (pushed(PROBLEM, make(s_noise=s), levels).cov for s in (0.0, 1.0, 2.0))
        np.testing.assert_allclose(twice - none, 4 * (once - none), rtol=1e-10)
