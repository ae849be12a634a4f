"""Samplers that take noise off and put it back: against diffusers with the same noise, as one
another, and in mean and covariance against a Gaussian's own."""

import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from diffusers_oracle import STEPS, Case, create, in_float64
from exact_noise import PROBLEM, SCHEDULE, covariance_slope, pushed

from optdiff.grids import karras, restart_levels
from optdiff.noise import scaled_linear
from optdiff.sample import identity, sample, sample_keys
from optdiff.samplers import (
    ancestral,
    ancestral_down,
    churn,
    churn_down,
    churned,
    ddim,
    dpm2,
    dpm2_ancestral,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    gamma_mu,
    gradient_estimation,
    heun,
    lcm,
    lcm_boundary,
    mu_down,
    power_down,
    renoise,
    restart,
    tcd,
)

THREE_PREDICTIONS = [
    Case(steps, None, "trained", prediction)
    for steps, prediction in zip(STEPS, ("epsilon", "v_prediction", "sample"), strict=True)
]


@pytest.mark.parametrize("case", THREE_PREDICTIONS, ids=str)
def test_lcm_is_that_of_diffusers(case, parity):
    def nothing_to_scale_at_the_end(scheduler, call, last):
        if last:  # our driver denoises there
            scheduler.get_scalings_for_boundary_condition_discrete = lambda timestep: (0.0, 1.0)
        return {}

    options = {"noisy": True, "options": nothing_to_scale_at_the_end}
    # So small a scaling that the boundary counts.
    for scaling in (10.0, 1e-3):
        sampler = lcm(lcm_boundary(scaled_linear(), timestep_scaling=scaling))
        parity("LCMScheduler", sampler, case, timestep_scaling=scaling, **options)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("case", THREE_PREDICTIONS, ids=str)
def test_tcd_is_that_of_diffusers(case, eta, parity):
    def ends_at_the_first_timestep(scheduler):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]

    whole = scaled_linear()
    whole = whole._replace(sigma=lambda t, sigma=whole.sigma: sigma(jnp.floor(t + 1e-6)))
    sampler = tcd(whole, eta)  # on a schedule that knows whole timesteps alone, as theirs
    options = {"noisy": True, "options": lambda *_: {"eta": eta}}
    parity("TCDScheduler", sampler, case, patch=ends_at_the_first_timestep, **options)


def test_tcd_at_times_that_need_no_rounding(parity):
    """Half of an even timestep is a whole one, and the rule itself is theirs."""

    def at_hundredths(scheduler):
        scheduler.timesteps = torch.arange(900, 0, -100)
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]

    options = {"noisy": True, "options": lambda *_: {"eta": 0.5}}
    parity("TCDScheduler", tcd(scaled_linear(), 0.5), Case(9), patch=at_hundredths, **options)


def heun_with_noise(levels, downs, x, noise, eps):
    """The Heun of diffusers from each level to its `down`, and noise back up to the next level."""
    with in_float64("HeunDiscreteScheduler"):
        scheduler = create("HeunDiscreteScheduler", len(levels))
        scheduler.sigmas = torch.tensor(np.ravel([levels[:-1], downs], order="F"))
        visited = [x]
        for i, (sigma, down, after) in enumerate(zip(levels, downs, levels[1:], strict=False)):
            look = scheduler.step(torch.tensor(np.asarray(eps(x, sigma))), 0, torch.tensor(x))
            slope = torch.tensor(np.asarray(eps(look.prev_sample.numpy(), down)))
            x = scheduler.step(slope, 0, look.prev_sample).prev_sample.numpy()
            x = x + np.sqrt(after**2 - down**2) * noise[i]
            visited.append(x)
    return np.stack(visited)


def paper_levels(steps, gamma, s_min, s_max):
    """EDM's levels `t_i`, and its algorithm 2's raised `t_i + gamma_i t_i`."""
    levels = np.linspace(14.0 ** (1 / 7), 0.03 ** (1 / 7), steps) ** 7
    return levels, np.where((levels >= s_min) & (levels <= s_max), levels * (1 + gamma), levels)


CHURN = {"gamma": 0.15, "s_min": 0.1, "s_max": 10.0}


@pytest.mark.parametrize("steps", STEPS)
def test_churn_is_edms_algorithm_2(steps, parity, eps):
    levels, raised = paper_levels(steps, **CHURN)
    np.testing.assert_allclose(churned(jnp.asarray(levels), **CHURN), raised, rtol=1e-12)
    x = np.asarray(parity.problem.prior(parity.keys, jnp.asarray(raised[0])))
    noise = 1.007 * parity.noise(jnp.asarray(raised))
    theirs = heun_with_noise(raised, levels[1:], x, noise, eps)
    sampler = churn(heun(), s_noise=1.007, **CHURN)
    ours = parity.ours(sampler, jnp.asarray(raised), jnp.asarray(x)).iterates
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", STEPS)
def test_churn_is_that_of_diffusers_euler(steps, parity, eps, monkeypatch):
    """It asks the model before it raises the level, and steps from above with the answer from
    below. Here it is asked above: a step without gradient shows where it raises the sample to."""
    levels, raised = paper_levels(steps, **CHURN)
    x = np.asarray(parity.problem.prior(parity.keys, jnp.asarray(levels[0])))
    start = 0.1 * np.ones_like(x)  # the noise of the first raise
    noise = np.concatenate([start[None], parity.noise(jnp.asarray(raised))])
    how = {"s_churn": steps * CHURN["gamma"], "s_tmin": CHURN["s_min"], "s_tmax": CHURN["s_max"]}
    with in_float64("EulerDiscreteScheduler"):
        scheduler = create("EulerDiscreteScheduler", steps)
        scheduler.is_scale_input_called = True
        module = sys.modules[type(scheduler).__module__]
        scheduler.sigmas = torch.tensor(np.append(levels, 0.0))
        visited, z = [], torch.tensor(x)
        for i in range(steps):
            drawn = torch.tensor(noise[i])
            monkeypatch.setattr(module, "randn_tensor", lambda *args, z=drawn, **kwargs: z)
            z = scheduler.step(torch.zeros_like(z), 0.0, z, s_noise=1.007, **how).prev_sample
            visited.append(z.numpy())
            scheduler._step_index, scheduler.sigmas[i] = i, raised[i]
            slope = torch.tensor(np.asarray(eps(z.numpy(), raised[i])))
            z = scheduler.step(slope, 0.0, z).prev_sample
    sampler = churn(ddim(), s_noise=1.007, **CHURN)
    ours = parity.ours(sampler, jnp.asarray(raised), jnp.asarray(visited[0])).iterates
    np.testing.assert_allclose(ours, visited, rtol=1e-10, atol=1e-10)


def test_restart_is_heun_with_noise(parity, eps):
    levels = restart_levels(jnp.array([8.0, 3.0, 0.9, 0.4, 0.2, 0.1]), 0.3, 2.0, count=2, steps=3)
    up = [*np.linspace(2.0 ** (1 / 7), 0.3 ** (1 / 7), 4)[:-1] ** 7]
    expected = [8.0, 3.0, 0.9, 0.4, *up, *up, 0.3, 0.2, 0.1]
    np.testing.assert_allclose(levels, expected, rtol=1e-12)
    downs = [3.0, 0.9, 0.4, 0.3, *up[1:], 0.3, *up[1:], 0.3, 0.2, 0.1]
    x = np.asarray(parity.problem.prior(parity.keys, levels[0]))
    theirs = heun_with_noise(np.asarray(levels), downs, x, parity.noise(levels), eps)
    ours = parity.ours(restart(heun(), 0.3, 2.0), levels, jnp.asarray(x)).iterates
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


THE_SAME = {
    "DPM2 ancestral without noise": (dpm2_ancestral(0.0), dpm2()),
    "2S ancestral without noise": (dpmpp_2s_ancestral(0.0), dpmpp_2s()),
    "(1, 0) is DDIM": (gamma_mu(1.0, 0.0), ddim()),
    "(1, 1/2) is DDPM": (gamma_mu(1.0, 0.5), ancestral(1.0)),
    "(2, 0) is gradient estimation": (gamma_mu(2.0, 0.0), gradient_estimation(2.0)),
    "mu 1/2 is the posterior": (renoise(heun(), mu_down(0.5)), renoise(heun(), ancestral_down())),
    "churn by nothing": (churn(heun(), gamma=0.0), heun()),
    "churn is renoise": (
        churn(heun(), gamma=0.2, s_min=0.0, s_max=np.inf, s_noise=1.0),
        renoise(heun(), lambda sigma, sigma_next: sigma_next / 1.2),
    ),
    "churn, where it may": (churn(heun(), gamma=0.2, s_min=1e3, s_max=1e4), heun()),
    "restart without restarts": (restart(heun()), heun()),
    "lcm is consistency sampling": (lcm(), renoise(ddim(), lambda s, s_next: 0.0 * s_next)),
    "a trivial boundary": (lcm(lambda s: (0.0 * s, 1.0 + 0.0 * s)), lcm()),
}


@pytest.mark.parametrize("pair", THE_SAME)
def test_these_are_one_sampler(pair, iterates, levels):
    one, other = (iterates(sampler, levels) for sampler in THE_SAME[pair])
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def test_mu_divides_the_way_in_log_sigma():
    """`sigma' = sigma^mu down^(1 - mu)`."""
    sigma, sigma_next = jnp.array([9.0, 2.0, 1.0]), jnp.array([1.0, 1.9, 1.0])
    for mu in (0.0, 0.25, 0.5, 0.9):
        down = mu_down(mu)(sigma, sigma_next)
        np.testing.assert_allclose(sigma**mu * down ** (1 - mu), sigma_next, rtol=1e-12)


def test_churned_levels_are_found_again():
    levels = jnp.geomspace(50.0, 0.01, 40)
    raised = churned(levels, **CHURN)
    kept = (levels <= CHURN["s_max"]) | (levels > CHURN["s_max"] * (1 + CHURN["gamma"]))
    below = churn_down(**CHURN)(raised, raised)
    np.testing.assert_allclose(below[kept], levels[kept], rtol=1e-12)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="t_min < t_max"):
        restart(heun(), 2.0, 1.0)
    with pytest.raises(ValueError, match="within"):
        restart_levels(jnp.array([4.0, 2.0]), 0.5, 1.0)
    with pytest.raises(ValueError, match="eta"):
        tcd(scaled_linear(), 1.5)


def flow_of(problem):
    """The exact probability-flow solution as a sampler."""

    def update(eps, state, x=None, *, sigma, sigma_next, **unused):
        return problem.solution(x, sigma, sigma_next) - x, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


DOWNS = {
    "posterior": ancestral_down(1.0),
    "half of it": ancestral_down(0.5),
    "mu": mu_down(0.7),
    "power": power_down(3.0),
    "churn": churn_down(0.3),
    "consistency": lambda sigma, sigma_next: 0.0 * sigma_next,
}


@pytest.mark.parametrize("name", DOWNS)
def test_around_the_exact_flow_marginals_stay_exact(name):
    """However few the steps, so what a renoised sampler errs by is all its integrator's."""
    levels = jnp.array([2.0, 1.1, 0.5])
    left = pushed(PROBLEM, renoise(flow_of(PROBLEM), DOWNS[name]), levels)
    np.testing.assert_allclose(left.mean, PROBLEM.mean, rtol=1e-12)
    np.testing.assert_allclose(left.cov, PROBLEM.cov + 0.5**2 * np.eye(2), rtol=1e-12)


@pytest.mark.slow
def test_restarts_keep_the_marginal_and_forget_errors():
    """From any start, K restarts shrink what was missed by the flow's own contraction, K times."""
    exact = restart(flow_of(PROBLEM), 0.6, 1.5)
    levels = restart_levels(jnp.array([2.0, 1.0, 0.5]), 0.6, 1.5, count=3, steps=2)
    left = pushed(PROBLEM, exact, levels)
    np.testing.assert_allclose(left.cov, PROBLEM.cov + 0.5**2 * np.eye(2), rtol=1e-12)

    x = jnp.asarray(np.concatenate([np.zeros((1, 2)), np.eye(2)]) @ PROBLEM.basis.T)
    keys = sample_keys(0, 1)[jnp.zeros(3, int)]
    end, _ = sample(PROBLEM, exact, levels, keys, x=x, finish=identity)
    moved = np.asarray((end[1:] - end[0][None]) @ PROBLEM.basis)
    lam = np.asarray(PROBLEM.variances)
    flow = np.sqrt((lam + 0.5**2) / (lam + 2.0**2))
    again = np.sqrt((lam + 0.6**2) / (lam + 1.5**2))
    np.testing.assert_allclose(moved, np.diag(flow * again**3), atol=1e-12)


ORDERS = {
    "ancestral": (lambda steps: ancestral(), 1),
    "gradient estimation with noise": (lambda steps: gamma_mu(1.7, 0.25), 1),
    "DPM2 ancestral": (lambda steps: dpm2_ancestral(), 2),
    "2S ancestral": (lambda steps: dpmpp_2s_ancestral(), 2),
    "Heun by mu": (lambda steps: renoise(heun(), mu_down(0.25)), 2),
    "EDM's churn": (lambda steps: churn(heun(), 2.0 / steps, s_min=0.0, s_noise=1.0), 2),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order_in_mean_and_covariance(name):
    sampler_of, order = ORDERS[name]
    assert covariance_slope(sampler_of) == pytest.approx(order, abs=0.25)


def test_noise_has_the_size_that_is_asked_for():
    """Twice the noise is four times its part of the covariance."""
    levels = karras(SCHEDULE, 4)
    none, once, twice = (
        pushed(PROBLEM, churn(heun(), 0.2, 0.0, s_noise=s), levels).cov for s in (0.0, 1.0, 2.0)
    )
    np.testing.assert_allclose(twice - none, 4 * (once - none), rtol=1e-10)
