"""Noise schedules: which noise levels a model was trained on, as functions of its own time.

Two schedules made from the same numbers are equal, however they were spelled: problems carry their
schedule as static data, and an equal schedule must not recompile a network. So functions are shared
or cached. Where to step between the levels is a grid's business (`grids`).
"""

from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.types import NoiseSchedule

ALPHA_BAR_CAP = 2.0**-24
"""What a checkpoint's `alpha_bar = 0` is read as, sigma = 4096: where diffusers' Euler begins."""


def variance_exploding(sigma_min: float = 0.002, sigma_max: float = 80.0) -> NoiseSchedule:
    """`sigma(t) = t`, the schedule of EDM (arXiv 2206.00364, table 1) and of the exact problems.

    Args:
      sigma_min: the lowest level, in units of the data.
      sigma_max: the highest level; should dwarf the data.

    >>> variance_exploding().sigma(jnp.array(3.0)).item()
    3.0
    """
    _require_range(sigma_min, sigma_max)
    return NoiseSchedule(_identity, _identity, float(sigma_min), float(sigma_max))


def flow(sigma_min: float = 0.002, t_max: float = 1.0) -> NoiseSchedule:
    """Linear interpolation `z = (1 - t) x0 + t n`: `sigma(t) = t / (1 - t)` (arXiv 2210.02747).

    `sigma_max` is infinite at `t_max = 1`; grids then start at a cap.

    >>> flow().t(jnp.array(1.0)).item()
    0.5
    """
    if not 0.0 < t_max <= 1.0:
        raise ValueError(f"t_max is a time in (0, 1], not {t_max}")
    sigma_max = np.inf if t_max == 1.0 else t_max / (1.0 - t_max)
    _require_range(sigma_min, sigma_max)
    return NoiseSchedule(_flow_sigma, _flow_t, float(sigma_min), float(sigma_max))


def linear(beta_start=1e-4, beta_end=0.02, steps: int = 1000) -> NoiseSchedule:
    """DDPM's schedule (arXiv 2006.11239, section 4): beta linear in the timestep."""
    return from_alphas_cumprod(np.cumprod(1.0 - _linear(beta_start, beta_end, steps)))


def scaled_linear(beta_start=0.00085, beta_end=0.012, steps: int = 1000) -> NoiseSchedule:
    """Latent diffusion's schedule (arXiv 2112.10752): sqrt(beta) linear in the timestep."""
    return from_alphas_cumprod(np.cumprod(1.0 - _scaled_linear(beta_start, beta_end, steps)))


def squared_cosine(steps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
    """The cosine schedule (arXiv 2102.09672, eq. 17), betas clipped at `max_beta`."""
    return from_alphas_cumprod(np.cumprod(1.0 - _squared_cosine(steps, max_beta)))


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> NoiseSchedule:
    """EDM's levels with the time that its networks are asked with, `t = log(sigma) / 4`
    (arXiv 2206.00364, table 1).

    >>> edm().t(jnp.array(1.0)).item()
    0.0
    """
    _require_range(sigma_min, sigma_max)
    return NoiseSchedule(_edm_sigma, _edm_t, float(sigma_min), float(sigma_max))


@cache
def flow_in_steps(steps: int) -> NoiseSchedule:
    """`flow` with the time of a network that counts to `steps`: `t = steps sigma / (1 + sigma)`,
    from 1. Its highest level, infinite, is put where `ALPHA_BAR_CAP` puts that of other models.

    >>> flow_in_steps(1000).t(jnp.array(1.0)).item()
    500.0
    """

    def sigma(t: Array) -> Array:
        return _flow_sigma(t / steps)

    def t(sigma: Array) -> Array:
        return steps * _flow_t(sigma)

    sigma_max = float(np.sqrt((1.0 - ALPHA_BAR_CAP) / ALPHA_BAR_CAP))
    return NoiseSchedule(sigma, t, 1.0 / (steps - 1.0), sigma_max)


def end_in_noise(alphas_cumprod: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    """Zero terminal SNR (arXiv 2305.08891, algorithm 1): `sqrt(alpha_bar)` shifted and scaled so
    that it keeps its first value and ends at zero, which is put at `ALPHA_BAR_CAP`."""
    root = np.sqrt(alphas_cumprod)
    alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alphas_cumprod[-1] = ALPHA_BAR_CAP
    return alphas_cumprod


def from_alphas_cumprod(alphas_cumprod: Float[np.ndarray, "t"]) -> NoiseSchedule:
    """A variance-preserving schedule from its table, `sigma^2 = (1 - alpha_bar) / alpha_bar`.

    Between the integer timesteps `log sigma` is linear in t; outside them both maps clamp. A table
    that ends at `alpha_bar = 0` (zero terminal SNR, arXiv 2305.08891) has infinite `sigma_max`, and
    its maps end at the last finite level: grids start from a cap.

    Args:
      alphas_cumprod: (t,), at least two, decreasing, in [0, 1).

    Raises:
      ValueError: if the table does not decrease or leaves [0, 1).
    """
    table = np.asarray(alphas_cumprod, np.float64)
    inside = table.ndim == 1 and len(table) > 1 and table[0] < 1 and table[-1] >= 0
    if not (inside and np.all(np.diff(table) < 0)):
        raise ValueError(
            "alphas_cumprod must be a vector that decreases, from below 1 to at least 0"
        )
    return _tabulated(tuple(table.tolist()))


@cache
def _tabulated(alphas_cumprod: tuple[float, ...]) -> NoiseSchedule:
    table = np.array(alphas_cumprod)
    with np.errstate(divide="ignore"):
        log_sigma = 0.5 * (np.log1p(-table) - np.log(table))
    finite = np.isfinite(log_sigma)
    times, log_finite = np.arange(len(table), dtype=np.float64)[finite], log_sigma[finite]

    def sigma(t: Array) -> Array:
        return jnp.exp(jnp.interp(t, jnp.asarray(times), jnp.asarray(log_finite)))

    def t(sigma: Array) -> Array:
        return jnp.interp(jnp.log(sigma), jnp.asarray(log_finite), jnp.asarray(times))

    return NoiseSchedule(sigma, t, float(np.exp(log_sigma[0])), float(np.exp(log_sigma[-1])))


def _linear(start: float, end: float, steps: int) -> Float[np.ndarray, "t"]:
    return np.linspace(start, end, steps)


def _scaled_linear(start: float, end: float, steps: int) -> Float[np.ndarray, "t"]:
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def _squared_cosine(steps: int, max_beta: float) -> Float[np.ndarray, "t"]:
    t = np.arange(steps + 1) / steps
    alpha_bar = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta)


BETAS = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda start, end, steps: _squared_cosine(steps, 0.999),
}
"""Tables of beta by their names in diffusers: functions of first and last value, and of length."""


def _edm_sigma(t: Array) -> Array:
    return jnp.exp(4.0 * t)


def _edm_t(sigma: Array) -> Array:
    return jnp.log(sigma) / 4.0


def _identity(t: Array) -> Array:
    return t


def _flow_sigma(t: Array) -> Array:
    return t / (1.0 - t)


def _flow_t(sigma: Array) -> Array:
    return sigma / (1.0 + sigma)


def _require_range(sigma_min: float, sigma_max: float) -> None:
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
