"""Samplers that look ahead within a step, against diffusers, their limits and their order."""

import diffusers_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_oracle import Case, cases
from scipy.integrate import solve_ivp

from optdiff.grids import karras, linear_sigma
from optdiff.noise import variance_exploding
from optdiff.problems import energy, gaussian, mixture
from optdiff.sample import identity, sample
from optdiff.samplers import dpm2, dpm2_ancestral, dpmpp_2s, dpmpp_3s

TWO_CALLS = cases(predictions=("epsilon", "v_prediction"))


@pytest.fixture
def half_way(monkeypatch):
    """Where KDPM2 looks is a second table, whose entries lie otherwise in its ancestral form."""

    def called_at(scheduler):
        calls = len(scheduler.timesteps)
        levels = scheduler.sigmas[: calls + 1].clone()
        middles = scheduler.sigmas_interpol[0 if hasattr(scheduler, "sigmas_down") else 1 :]
        levels[1:-1:2] = middles[: calls - 1 : 2]
        return np.asarray(levels.double())

    monkeypatch.setattr(diffusers_oracle, "called_at", called_at)


@pytest.mark.parametrize("case", TWO_CALLS, ids=str)
def test_dpm2_is_that_of_diffusers(case, parity, half_way):
    parity("KDPM2DiscreteScheduler", dpm2(), case, calls_per_step=2)


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO_CALLS, ids=str)
def test_dpm2_ancestral_is_that_of_diffusers(case, parity, half_way):
    name = "KDPM2AncestralDiscreteScheduler"
    parity(name, dpm2_ancestral(), case, calls_per_step=2, noisy=True)


def looks_where_we_look(order):
    """The single-step scheduler of diffusers looks ahead at levels of its grid: let those between
    every `order`-th be at equal distances in log SNR, as ours are."""

    def patch(scheduler):
        levels = scheduler.sigmas
        start, stop = levels[:-2:order], levels[order:-1:order]
        for i in range(1, order):
            levels[i:-2:order] = start * (stop / start) ** (i / order)

    return patch


SINGLE_STEP = {"lower_order_final": True}  # which is order 1 on the step to zero alone
LEVELS = ("trained", "karras", "exponential", "beta")
PREDICTIONS = ("epsilon", "v_prediction", "sample", "epsilon")
DECIDED = [
    Case(steps, None, levels, prediction)
    for steps, (levels, prediction) in zip(
        (5, 10, 25, 5, 10, 25), [*zip(LEVELS, PREDICTIONS, strict=True)] * 2, strict=False
    )
]


@pytest.mark.parametrize("case", DECIDED, ids=str)
def test_2s_is_that_of_diffusers(case, parity):
    parity(
        "DPMSolverSinglestepScheduler",
        dpmpp_2s(),
        case._replace(steps=2 * case.steps - 1),
        calls_per_step=2,
        solver_order=2,
        patch=looks_where_we_look(2),
        **SINGLE_STEP,
    )


def slopes_exact_then_not(scheduler, call, last):
    """At order 3 the method integrates the slope exactly when it looks for the second time, and
    fits no curvature. diffusers has both only as kinds of solver: choose one for each call."""
    scheduler.register_to_config(solver_type=("midpoint", "heun", "midpoint")[call % 3])
    return {}


@pytest.mark.parametrize("case", DECIDED, ids=str)
def test_3s_is_that_of_diffusers(case, parity):
    parity(
        "DPMSolverSinglestepScheduler",
        dpmpp_3s(),
        case._replace(steps=3 * case.steps - 2),
        calls_per_step=3,
        solver_order=3,
        patch=looks_where_we_look(3),
        options=slopes_exact_then_not,
        **SINGLE_STEP,
    )


SCHEDULE = variance_exploding(0.5, 2.0)
PROBLEMS = {
    "gaussian": gaussian(dim=4, schedule=SCHEDULE),
    "mixture": mixture(modes=3, dim=4, stds=0.5, schedule=SCHEDULE),
}
ORDERS = {
    "dpm2": (dpm2(), 2),
    "2S": (dpmpp_2s(), 2),
    "2S that looks early": (dpmpp_2s(0.3), 2),
    "2S that looks at the end": (dpmpp_2s(1.0), 2),
    "3S": (dpmpp_3s(), 3),
    "3S that looks early": (dpmpp_3s(0.2), 3),
    "3S that looks elsewhere": (dpmpp_3s(0.2, 0.5), 2),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def solved(request, keys):
    """A problem, starts at its highest level, and where the probability flow takes them."""
    problem = PROBLEMS[request.param]
    x = problem.prior(keys, jnp.array(SCHEDULE.sigma_max))

    @jax.jit
    def eps(sigma, flat):
        here = flat.reshape(x.shape)
        return ((here - problem.denoise(here, sigma)) / sigma).ravel()

    span = SCHEDULE.sigma_max, SCHEDULE.sigma_min
    flow = solve_ivp(eps, span, np.ravel(x), method="DOP853", rtol=1e-12, atol=1e-12)
    return problem, x, flow.y[:, -1].reshape(x.shape)


@pytest.mark.parametrize("grid", [linear_sigma, karras], ids=["uniform", "karras"])
@pytest.mark.parametrize("name", ORDERS)
def test_order_along_trajectories(name, grid, solved, keys):
    problem, x, exact = solved
    sampler, order = ORDERS[name]
    missed = [
        sample(problem, sampler, grid(SCHEDULE, steps + 1), keys, x=x, finish=identity)[0] - exact
        for steps in (16, 32)
    ]
    coarse, fine = map(np.linalg.norm, missed)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", ["dpm2", "2S", "3S"])
def test_noise_level_is_kept_true(name, iterates, keys, levels):
    """Data in one point leave a constant eps, and the way is straight, whatever the grid."""
    point = gaussian(mean=jnp.arange(6.0), cov=jnp.zeros((6, 6)))
    n = jax.random.normal(jax.random.key(5), (len(keys), 6))
    line = point.mean[None, None] + levels[:, None, None] * n[None]
    visited = iterates(ORDERS[name][0], levels, problem=point, x=line[0])
    np.testing.assert_allclose(visited, line, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_3s_is_exact_for_data_that_move_straight_in_log_snr(slope, iterates, levels):
    """`D = 1 - slope log sigma` wherever x is, so that `(x - 1 + slope (log sigma + 1)) / sigma`
    stays; 2S, which knows the middle alone, follows only data that rest."""

    def log_density(problem, x, sigma, cond):
        data = 1 - slope * jnp.log(sigma)
        return -jnp.sum((x - data) ** 2, axis=1) / (2 * sigma**2)

    problem = energy(gaussian(dim=4), log_density)
    for sampler, exact in ((dpmpp_3s(), True), (dpmpp_2s(), slope == 0.0)):
        x = iterates(sampler, levels, problem=problem, x=jnp.zeros((5, 4)))
        log_sigma, sigma = (np.asarray(f(levels))[:, None, None] for f in (jnp.log, jnp.array))
        stays = (x - 1 + slope * (log_sigma + 1)) / sigma
        moved = np.abs(np.diff(stays, axis=0)).max()
        assert moved < 1e-10 if exact else moved > 1e-4
