"""DPM-Solver++ for the reverse-time equation with noise: the forms of DPM-Solver++ that draw it.

With `eta` times the data's own diffusion the exact solution in log SNR forgets at the rate
`1 + eta`, ends its deterministic part at `power_down(eta)` and adds noise back up to sigma'. The
multistep forms are therefore `renoise` around an integrator that knows that rate.
"""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from optdiff.samplers.directions import weighted_sum
from optdiff.samplers.dpmpp import SlopeRule, dpmpp_multistep, exact_slope, midpoint_slope
from optdiff.samplers.renoise import (
    ancestral_down,
    gap,
    power_down,
    renoise,
    split,
    standard_normal,
)
from optdiff.types import Sampler, data_prediction, within


@within(eta="[0, inf)", s_noise="[0, inf)")
def dpmpp_2m_sde(
    eta: float | Float[Array, ""] = 1.0,
    slope: SlopeRule = midpoint_slope,
    s_noise: float | Float[Array, ""] = 1.0,
) -> Sampler:
    """DPM-Solver++(2M) SDE (k-diffusion; arXiv 2211.01095, appendix B), in sigma-coordinates:

    `x' = e^{-(1 + eta) h} x + (1 + eta) (m_0 D_0 + m_1 D') + sigma' sqrt(1 - e^{-2 eta h}) z`

    with `h = log(sigma/sigma')`, `m_0 = (1 - e^{-(1 + eta) h}) / (1 + eta)`, D' the difference of
    the last two data predictions over their distance in log SNR, and `m_1` by the slope's rule.
    The first step has no slope, and is `ancestral(1)` at eta 1. Second order in distribution; one
    evaluation per step; affine.

    Args:
      eta: 0 is DPM-Solver++(2M), 1 the data's own diffusion.
      slope: `midpoint_slope` or `exact_slope`.
      s_noise: multiplies the noise.

    >>> sampler = dpmpp_2m_sde(eta=1.0, slope=midpoint_slope)
    """
    return renoise(dpmpp_multistep(2, slope, rate=1.0 + eta), power_down(eta), s_noise)


@within(eta="[0, inf)", s_noise="[0, inf)")
def dpmpp_3m_sde(
    eta: float | Float[Array, ""] = 1.0,
    s_noise: float | Float[Array, ""] = 1.0,
    final_order: int | None = None,
    lower_below: int | None = None,
) -> Sampler:
    """k-diffusion's DPM++ 3M SDE: as `dpmpp_2m_sde` with the exact slope, and

    `... + (1 + eta) m_2 f[0, 1, 2],  m_2 = int_0^h e^{-(1 + eta) (h - s)} s^2 / 2 ds`

    with D' the slope now of the parabola through the last three data predictions in log SNR, and
    `f[0, 1, 2]` their second divided difference, half of its curvature, as in `dpmpp_3m`.
    Second order in distribution for that; one evaluation per step; affine. diffusers' has 1/2
    subtracted twice from the weight of `f[0, 1, 2]`, which then does not vanish with the step.

    Args: as `dpmpp_2m_sde`, and
      final_order, lower_below: as `dpmpp_3m`. None is k-diffusion's; diffusers has 2 and 15.

    Raises:
      ValueError: for a final_order below 1.

    >>> sampler = dpmpp_3m_sde(eta=1.0)
    """
    inner = dpmpp_multistep(
        3, exact_slope, rate=1.0 + eta, final_order=final_order, lower_below=lower_below
    )
    return renoise(inner, power_down(eta), s_noise)


@within(eta="[0, inf)", s_noise="[0, inf)")
def dpmpp_sde(
    eta: float | Float[Array, ""] = 1.0, s_noise: float | Float[Array, ""] = 1.0
) -> Sampler:
    """k-diffusion's DPM++ SDE with r = 1/2: an ancestral step to the middle in log SNR, and one
    from the start for the whole step with the data prediction found there.

    `m = sqrt(sigma sigma');  u = x - (sigma - down(m)) eps + sqrt(m^2 - down(m)^2) z_m`
    `x' = (down/sigma) x + (1 - down/sigma) D(u, m) + sqrt(sigma'^2 - down^2) z`

    with `down` of `ancestral_down(eta)` and both noises increments of one Brownian motion whose
    clock is sigma, so that `z_m` is part of `z`. Second order in distribution; two evaluations per
    step; affine.

    Args:
      eta: 0 is DPM-Solver++(2S), 1 the noise of the true posterior.
      s_noise: multiplies the noise.

    >>> sampler = dpmpp_sde(eta=1.0)
    """
    down = ancestral_down(eta)

    def update(eps, state, x, *, sigma, sigma_next, key, eps_fn, **unused):
        before, after = (standard_normal(k, x) for k in split(key))
        middle = jnp.sqrt(sigma * sigma_next)
        # Of the time sigma - sigma', what passes before the middle; the quotient of differences,
        # without the differences.
        share = jnp.sqrt(sigma) / (jnp.sqrt(sigma) + jnp.sqrt(sigma_next))

        below = down(sigma, middle)
        noise = s_noise * gap(middle, below)
        ahead = x + weighted_sum((below - sigma, eps), (noise, before))
        x0 = data_prediction(ahead, eps_fn(ahead, middle), middle)

        below = down(sigma, sigma_next)
        noise = s_noise * gap(sigma_next, below)
        dx = weighted_sum(
            (below / sigma - 1, x),
            (1 - below / sigma, x0),
            (noise * jnp.sqrt(share), before),
            (noise * jnp.sqrt(1 - share), after),
        )
        return dx, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
