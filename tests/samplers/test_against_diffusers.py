"""The schedulers of diffusers as oracles, made float64: with their own float32 constants they
agree with us, and with themselves in float64, to about 1e-6 only."""

import sys
from itertools import pairwise

import diffusers
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from optdiff.samplers import ancestral, ddim, dpmpp_2m, heun, ipndm, renoise


class Double:
    """A module in which float32 means float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture
def in_float64(monkeypatch):
    """`in_float64(name, **config)`: a scheduler that computes in float64 throughout."""

    def create(name, **config):
        scheduler = getattr(diffusers, name)
        module = sys.modules[scheduler.__module__]
        monkeypatch.setattr(module, "torch", Double(torch))
        monkeypatch.setattr(module, "np", Double(np), raising=False)
        return scheduler(**config)

    torch.set_default_dtype(torch.float64)
    yield create
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def noise(iterates):
    """`noise(levels)`: the z that our noisy samplers add at each step, read off a driver run in
    which nothing but noise moves the iterate."""

    def stay(eps, state, x=None, **unused):
        return jnp.zeros_like(eps), state

    alone = optax.GradientTransformationExtraArgs(optax.init_empty_state, stay)

    def read(levels):
        x = iterates(renoise(alone, lambda sigma, sigma_next: 0.0 * sigma_next), levels)
        return np.diff(x, axis=0) / np.asarray(levels)[1:, None, None]

    return read


def exploding(sigma):
    return 1.0


def preserving(sigma):
    return 1.0 / np.sqrt(1.0 + sigma**2)


def follow(scheduler, eps, x, levels, *, alpha=exploding, output=None, options=None):
    """The iterates of a scheduler whose own coordinates are `alpha(sigma) x`."""
    levels = np.asarray(levels)
    z, visited = torch.tensor(alpha(levels[0]) * x), [x]
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        predicted = np.array(eps(z.numpy() / alpha(sigma), sigma))
        if output is not None:
            predicted = output(predicted, z.numpy(), sigma)
        step = scheduler.step(
            torch.tensor(predicted), scheduler.timesteps[i], z, **(options(i) if options else {})
        )
        z = step.prev_sample
        visited.append(z.numpy() / alpha(sigma_next))
    return np.stack(visited)


ONE_EVALUATION = {
    "Euler": ("EulerDiscreteScheduler", {}, exploding, ddim()),
    "LMS of order 1": ("LMSDiscreteScheduler", {}, exploding, ddim()),
    "DPM-Solver++(1)": ("DPMSolverMultistepScheduler", {"solver_order": 1}, preserving, ddim()),
    "UniPC-1 without corrector": (
        "UniPCMultistepScheduler",
        {"solver_order": 1, "disable_corrector": list(range(9))},
        preserving,
        ddim(),
    ),
    "DPM-Solver++(2M)": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "lower_order_final": False},
        preserving,
        dpmpp_2m(),
    ),
}


@pytest.mark.parametrize("name", ONE_EVALUATION)
def test_trajectory_is_that_of_the_scheduler(name, in_float64, iterates, levels, eps):
    scheduler, config, alpha, sampler = ONE_EVALUATION[name]
    if alpha is preserving:
        config = config | {"final_sigmas_type": "sigma_min"}  # do not fall back on the last step
    scheduler = in_float64(scheduler, **config)
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.tensor(np.asarray(levels))
    options = (lambda i: {"order": 1}) if "LMS" in name else None
    visited = iterates(sampler, levels)
    oracle = follow(scheduler, eps, visited[0], levels, alpha=alpha, options=options)
    np.testing.assert_allclose(visited, oracle, rtol=1e-10, atol=1e-10)


def test_heun_is_that_of_diffusers(in_float64, iterates, levels, eps):
    scheduler = in_float64("HeunDiscreteScheduler")
    scheduler.set_timesteps(len(levels))
    # It goes to each level twice: to look, and to stay.
    scheduler.sigmas = torch.tensor(np.repeat(levels, 2)[1:])
    visited = iterates(heun(), levels)
    oracle = follow(scheduler, eps, visited[0], np.repeat(levels, 2)[1:])
    np.testing.assert_allclose(visited, oracle[::2], rtol=1e-10, atol=1e-10)


def test_ipndm_is_that_of_diffusers(in_float64, iterates, levels, eps):
    scheduler = in_float64("IPNDMScheduler")
    scheduler.set_timesteps(len(levels) - 1)
    alphas = preserving(np.asarray(levels))
    scheduler.alphas = torch.tensor(alphas)
    scheduler.betas = torch.tensor(alphas * np.asarray(levels))

    def velocity(eps, z, sigma):
        """Its networks predict v, with `eps = beta z + alpha v`."""
        return (eps - sigma * preserving(sigma) * z) / preserving(sigma)

    visited = iterates(ipndm(4), levels)
    oracle = follow(scheduler, eps, visited[0], levels, alpha=preserving, output=velocity)
    np.testing.assert_allclose(visited, oracle, rtol=1e-10, atol=1e-10)


def test_ancestral_is_euler_ancestral(in_float64, iterates, levels, eps, noise, monkeypatch):
    scheduler = in_float64("EulerAncestralDiscreteScheduler")
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.tensor(np.asarray(levels))
    _inject(scheduler, noise(levels), monkeypatch)
    visited = iterates(ancestral(1.0), levels)
    oracle = follow(scheduler, eps, visited[0], levels)
    np.testing.assert_allclose(visited, oracle, rtol=1e-9, atol=1e-9)


TRAINED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_is_ddim_with_noise(eta, in_float64, iterates, eps, noise):
    scheduler = in_float64("DDIMScheduler", clip_sample=False, **TRAINED)
    levels = _trained_levels(scheduler, 10)
    visited = iterates(ancestral(eta), levels)
    z = noise(levels)

    def with_noise(i):
        return {"eta": eta, "variance_noise": torch.tensor(z[i])}

    oracle = follow(scheduler, eps, visited[0], levels, alpha=preserving, options=with_noise)
    np.testing.assert_allclose(visited, oracle, rtol=1e-10, atol=1e-10)


def test_ancestral_is_ddpm(in_float64, iterates, eps, noise, monkeypatch):
    scheduler = in_float64("DDPMScheduler", clip_sample=False, **TRAINED)
    levels = _trained_levels(scheduler, 10)
    _inject(scheduler, noise(levels), monkeypatch)
    visited = iterates(ancestral(1.0), levels)
    oracle = follow(scheduler, eps, visited[0], levels, alpha=preserving)
    np.testing.assert_allclose(visited, oracle, rtol=1e-10, atol=1e-10)


def _trained_levels(scheduler, n):
    """The levels of n of its timesteps; from the last it could only go to zero."""
    scheduler.set_timesteps(n)
    alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps]
    return jnp.asarray(((1 - alphas_cumprod) / alphas_cumprod).sqrt().numpy())


def _inject(scheduler, noise, monkeypatch):
    """Let the scheduler draw this noise, step by step."""
    drawn = iter(torch.tensor(noise))
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(drawn))
