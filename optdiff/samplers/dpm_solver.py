"""Single-step solvers: each step looks ahead by itself and remembers nothing.

DPM-Solver and DPM-Solver++ in log SNR, `lambda = -log sigma`, and their ancestral forms. The
multistep forms are in `dpmpp.py`, those for the reverse-time equation in `dpmpp_sde.py`.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.dpmpp import exponential_moments
from optdiff.samplers.renoise import ancestral_down, renoise
from optdiff.types import Sampler, data_prediction, within


def dpm2() -> Sampler:
    """DPM-Solver-2 (arXiv 2206.00927, algorithm 1 with r = 1/2; k-diffusion's DPM2): Euler to the
    middle in log SNR, and the gradient there for the whole step.

    `m = sqrt(sigma sigma');  x' = x + (sigma' - sigma) eps(x + (m - sigma) eps, m)`

    Second order; two evaluations per step; linear.

    >>> sampler = dpm2()
    """

    def update(eps, state, x, *, sigma, sigma_next, eps_fn, **unused):
        middle = jnp.sqrt(sigma * sigma_next)
        eps_middle = eps_fn(x + weighted_sum((middle - sigma, eps)), middle)
        return weighted_sum((sigma_next - sigma, eps_middle)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def dpm2_ancestral(eta: float | Float[Array, ""] = 1.0) -> Sampler:
    """k-diffusion's DPM2 ancestral: `dpm2` to `ancestral_down(eta)`, then noise back up to sigma'.

    Second order in distribution, as any renoised sampler of that order; two
    evaluations per step; affine.

    Args:
      eta: 0 is DPM2, 1 the noise of the true posterior.

    >>> sampler = dpm2_ancestral(eta=1.0)
    """
    return renoise(dpm2(), ancestral_down(eta))


@within(r="(0, 1]")
def dpmpp_2s(r: float = 0.5) -> Sampler:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1), in sigma-coordinates:

    `s = sigma e^{-r h};  u = x + (s - sigma) eps;  D_1 = D(u, s)`
    `x' = (sigma'/sigma) x + (1 - sigma'/sigma) [(1 - 1/2r) D_0 + (1/2r) D_1]`

    with `h = log(sigma/sigma')`. Of order one it is DDIM. Second order; two evaluations per step;
    linear.

    Args:
      r: in (0, 1], where in the step to look; 1/2 forgets `D_0`.

    >>> sampler = dpmpp_2s()
    """

    def update(eps, state, x, *, sigma, sigma_next, eps_fn, **unused):
        q = sigma_next / sigma
        x0 = data_prediction(x, eps, sigma)
        ahead = _look(eps_fn, (q**r, x), (1 - q**r, x0), level=sigma * q**r)
        return weighted_sum(
            (q - 1, x), ((1 - q) * (1 - 1 / (2 * r)), x0), ((1 - q) / (2 * r), ahead)
        ), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def dpmpp_2s_ancestral(eta: float | Float[Array, ""] = 1.0) -> Sampler:
    """k-diffusion's DPM++ 2S ancestral: `dpmpp_2s` to `ancestral_down(eta)`, then noise back up to
    sigma'. Second order in distribution; two evaluations per step; affine.

    Args:
      eta: 0 is DPM-Solver++(2S), 1 the noise of the true posterior.

    >>> sampler = dpmpp_2s_ancestral(eta=1.0)
    """
    return renoise(dpmpp_2s(), ancestral_down(eta))


@within(r1="(0, 1]", r2="(0, 1]")
def dpmpp_3s(r1: float = 1 / 3, r2: float = 2 / 3) -> Sampler:
    """DPM-Solver++(3S): DPM-Solver-3 (arXiv 2206.00927, algorithm 2) on the data prediction
    (2211.01095, appendix B), in sigma-coordinates:

    `u_1 = e^{-r1 h} x + w_0(r1 h) D_0;  D_1 = D(u_1, sigma e^{-r1 h})`
    `u_2 = e^{-r2 h} x + w_0(r2 h) D_0 + w_1(r2 h) (D_1 - D_0) / (r1 h);  D_2 = D(u_2, ...)`
    `x'  = e^{-h} x + w_0(h) D_0 + w_1(h) (D_2 - D_0) / (r2 h)`

    with `h = log(sigma/sigma')`, `w_0(h) = 1 - e^{-h}` and `w_1(h) = h - w_0(h)`. Third order for
    r2 = 2/3; three evaluations per step; linear.

    Args:
      r1, r2: in (0, 1], where in the step to look.

    >>> sampler = dpmpp_3s()
    """

    def update(eps, state, x, *, sigma, sigma_next, eps_fn, **unused):
        h = jnp.log(sigma / sigma_next)
        x0 = data_prediction(x, eps, sigma)

        def terms(part, ahead=None, at=None):
            """The terms of `x + dx` after a part of the step, with the slope seen at another."""
            w0, w1 = exponential_moments(part * h, 2)
            if ahead is None:
                return (jnp.exp(-part * h), x), (w0, x0)
            # Over no distance a difference says nothing.
            slope = jnp.where(h == 0, 0.0, w1 / jnp.where(h == 0, 1.0, at * h))
            return (jnp.exp(-part * h), x), (w0 - slope, x0), (slope, ahead)

        first = _look(eps_fn, *terms(r1), level=sigma * jnp.exp(-r1 * h))
        second = _look(eps_fn, *terms(r2, first, r1), level=sigma * jnp.exp(-r2 * h))
        (kept, _), *others = terms(1.0, second, r2)
        return weighted_sum((kept - 1, x), *others), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _look(eps_fn, *terms, level):
    """The data prediction at `level`, where these terms lead."""
    ahead = weighted_sum(*terms)
    return data_prediction(ahead, eps_fn(ahead, level), level)
