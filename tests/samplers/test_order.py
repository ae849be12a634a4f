"""How fast samplers converge to the probability-flow solution, read at the last positive level.

The stated grids are levels uniform in sigma and EDM's (rho = 7), both from 2 to 0.5, in 32
and 64 steps.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from optdiff.grids import karras, linear_sigma
from optdiff.noise import variance_exploding
from optdiff.problems import energy, gaussian, mixture
from optdiff.sample import identity, sample
from optdiff.samplers import (
    adam_per_sample,
    bh1,
    ddim,
    deis,
    deis_log_rho,
    dpmpp_2m,
    dpmpp_3m,
    gradient_estimation,
    heun,
    ipndm,
    lms,
    momentum,
    nesterov,
    plms,
    unip,
    unipc,
)

SCHEDULE = variance_exploding(0.5, 2.0)
PROBLEMS = {
    "gaussian": gaussian(dim=4, schedule=SCHEDULE),
    "mixture": mixture(modes=3, dim=4, stds=0.5, schedule=SCHEDULE),
}
GRIDS = [linear_sigma, karras]

FIRST_ORDER = {
    "ddim": ddim(),
    "momentum": momentum(0.2),
    "extrapolating momentum": momentum(-0.3),
    "nesterov": nesterov(0.5),
    "gradient_estimation": gradient_estimation(2.0),
    "adam_per_sample": adam_per_sample(),
    "adam_per_sample with momentum": adam_per_sample(0.3, 0.5),
}
# The first step of any ipndm is Euler's, whose one error is already of second order.
SECOND_ORDER = {
    "heun": heun(),
    "dpmpp_2m": dpmpp_2m(),
    "ipndm 2": ipndm(2),
    "ipndm 3": ipndm(3),
    "ipndm 4": ipndm(4),
    "lms 4": lms(4),
    "dpmpp_3m": dpmpp_3m(),
}
# A corrector gains an order on each step, the first included.
THIRD_ORDER = {"unipc 2": unipc(2), "unipc 3": unipc(3)}
# Once their first steps do not count.
OWN_ORDER = {
    "lms 2": (lms(2), 2),
    "lms 3": (lms(3), 3),
    "lms 4": (lms(4), 4),
    "deis 3": (deis(3), 3),
    "deis in log rho 3": (deis_log_rho(3), 3),
    "unip 2": (unip(2), 2),
    "unip 3": (unip(3), 3),
    "unipc 1": (unipc(1), 2),
    "unipc 2 bh1": (unipc(2, bh1), 3),
    "unipc 3": (unipc(3), 4),
    "dpmpp_3m": (dpmpp_3m(), 2),
}
EVERY = (
    FIRST_ORDER
    | SECOND_ORDER
    | THIRD_ORDER
    | {"plms": plms()}
    | {name: sampler for name, (sampler, _) in OWN_ORDER.items()}
)


@pytest.fixture(scope="module")
def error(keys):
    """`error(name, problem, grid, steps)`: x - exact at the last level, (b, d)."""
    level = jnp.array(SCHEDULE.sigma_max)
    start = {name: problem.prior(keys, level) for name, problem in PROBLEMS.items()}
    exact = {name: _solve(problem, start[name]) for name, problem in PROBLEMS.items()}

    @cache
    def of(name, problem, grid, steps):
        sampler, levels = EVERY[name], grid(SCHEDULE, steps + 1)
        x = start[problem]
        x, _ = sample(PROBLEMS[problem], sampler, levels, keys, x=x, finish=identity)
        return np.asarray(x) - exact[problem]

    return of


def _solve(problem, x):
    """The probability-flow equation `dx / dsigma = eps`, to about 1e-11."""

    @jax.jit
    def eps(sigma, flat):
        x_ = flat.reshape(x.shape)
        return ((x_ - problem.denoise(x_, sigma)) / sigma).ravel()

    span, accuracy = (SCHEDULE.sigma_max, SCHEDULE.sigma_min), {"rtol": 1e-12, "atol": 1e-12}
    solution = solve_ivp(eps, span, np.ravel(x), method="DOP853", **accuracy)
    return solution.y[:, -1].reshape(x.shape)


def test_reference_is_the_closed_form(keys):
    problem, levels = PROBLEMS["gaussian"], jnp.array([SCHEDULE.sigma_max, SCHEDULE.sigma_min])
    x = problem.prior(keys, levels[0])
    np.testing.assert_allclose(_solve(problem, x), problem.solution(x, *levels), rtol=1e-10)


def slope(error, *case):
    coarse, fine = (np.linalg.norm(error(*case, steps)) for steps in (32, 64))
    return np.log2(coarse / fine)


@pytest.mark.parametrize("grid", GRIDS, ids=["uniform", "karras"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order(name, problem, grid, error):
    assert slope(error, name, problem, grid) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("grid", GRIDS, ids=["uniform", "karras"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order(name, problem, grid, error):
    assert slope(error, name, problem, grid) > 1.9


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS, ids=["uniform", "karras"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", THIRD_ORDER)
def test_third_order(name, problem, grid, error):
    assert slope(error, name, problem, grid) > 2.8


@pytest.mark.parametrize("problem", PROBLEMS)
def test_plms_is_of_third_order_on_uniform_levels(problem, error):
    assert slope(error, "plms", problem, linear_sigma) > 2.8
    assert slope(error, "plms", problem, karras) == pytest.approx(2.0, abs=0.1)


def primed(schedule, n):
    """Uniform, but for three first steps so short that their errors are of fourth order."""
    width, h = schedule.sigma_max - schedule.sigma_min, 1.0 / (n - 1)
    uniform = jnp.linspace(3 * h**2, 1.0, n - 3)
    return schedule.sigma_max - width * jnp.concatenate([jnp.arange(3) * h**2, uniform])


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", OWN_ORDER)
def test_of_its_own_order_once_the_history_is_full(name, problem, error):
    assert slope(error, name, problem, primed) == pytest.approx(OWN_ORDER[name][1], abs=0.25)


def times_ddim(error, *case):
    """The error as a multiple of DDIM's, extrapolated to infinitely many steps."""
    multiple = {}
    for steps in (32, 64):
        ours, ddims = error(*case, steps), error("ddim", *case[1:], steps)
        multiple[steps] = np.vdot(ours, ddims) / np.vdot(ddims, ddims)
    return 2 * multiple[64] - multiple[32]


# Multistep methods of order one err by a multiple of what Euler errs by.
TIMES_DDIM = {
    "momentum": (1 + 0.2) / (1 - 0.2),
    "extrapolating momentum": (1 - 0.3) / (1 + 0.3),
    "nesterov": 1 + 2 * 0.5**2 / (1 - 0.5),
    "gradient_estimation": 3 - 2 * 2.0,
}


@pytest.mark.parametrize("grid", GRIDS, ids=["uniform", "karras"])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", TIMES_DDIM)
def test_leading_error_is_a_multiple_of_ddims(name, problem, grid, error):
    assert times_ddim(error, name, problem, grid) == pytest.approx(TIMES_DDIM[name], abs=0.01)
    ours, ddims = error(name, problem, grid, 64), error("ddim", problem, grid, 64)
    across = ours - np.vdot(ours, ddims) / np.vdot(ddims, ddims) * ddims
    assert np.linalg.norm(across) < 0.06 * np.linalg.norm(ours)


def test_constant_weights_are_of_first_order_where_steps_never_become_alike(error):
    """Steps of length h and 2h in turn: an h^2/2 of error each two steps, against DDIM's 5h^2/2."""

    def in_turn(schedule, n):
        lengths = np.resize([1.0, 2.0], n - 1)
        travelled = np.append(0.0, np.cumsum(lengths)) / lengths.sum()
        return SCHEDULE.sigma_max + jnp.asarray(travelled) * (
            SCHEDULE.sigma_min - SCHEDULE.sigma_max
        )

    assert slope(error, "ipndm 2", "mixture", in_turn) == pytest.approx(1.0, abs=0.3)
    assert times_ddim(error, "ipndm 2", "mixture", in_turn) == pytest.approx(1 / 5, abs=0.02)


def _sigma_to_the(degree):
    """A problem whose eps is a power of sigma, wherever the samples are."""

    def log_density(problem, x, sigma, cond):
        return -(sigma ** (degree - 1)) * x.sum(axis=1)

    return energy(PROBLEMS["gaussian"], log_density)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_integrates_polynomials_below_its_order(order, iterates):
    """On uniform levels, once the history is full; above, it does not: the order is exact."""
    levels = jnp.linspace(3.0, 1.0, 9)
    for degree in range(order + 1):
        x = iterates(ipndm(order), levels, problem=_sigma_to_the(degree), x=jnp.zeros((5, 4)))
        integral = levels ** (degree + 1) / (degree + 1)
        missed = np.abs(np.diff(x[..., 0], axis=0) - np.diff(integral)[:, None])[order - 1 :]
        assert (missed < 1e-12).all() if degree < order else (missed > 1e-4).all()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_integrates_polynomials_below_its_order(order, iterates, levels):
    """On any levels, once the history is full."""
    for degree in range(order):
        x = iterates(lms(order), levels, problem=_sigma_to_the(degree), x=jnp.zeros((5, 4)))
        integral = levels ** (degree + 1) / (degree + 1)
        missed = np.abs(np.diff(x[..., 0], axis=0) - np.diff(integral)[:, None])[order - 1 :]
        assert (missed < 1e-11 * np.abs(x).max()).all()


def test_heun_integrates_straight_lines(iterates, levels):
    x = iterates(heun(), levels, problem=_sigma_to_the(1), x=jnp.zeros((5, 4)))
    np.testing.assert_allclose(x[-1], (levels[-1] ** 2 - levels[0] ** 2) / 2, rtol=1e-12)
