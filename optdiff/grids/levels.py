"""Grids evenly spaced in some function of the noise level, and what every grid owes: its range and
levels that decrease. The range is the schedule's unless `sigma_min` or `sigma_max` narrow it; both
ends are kept, and a single level is the highest.
"""

import jax
import numpy as np

from optdiff.types import Levels, NoiseSchedule, within

SIGMA_CAP = 80.0
"""Where a grid starts if the schedule has no highest level (zero terminal SNR, flow)."""

ENDS = {"sigma_min": "(0, inf)", "sigma_max": "(0, inf)"}
"""What the lowest and the highest level of a grid may be."""


@within(rho="(0, inf)", **ENDS)
def karras(
    schedule: NoiseSchedule,
    n: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """`sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`.

    EDM, arXiv 2206.00364, eq. 5.

    Args:
      schedule: gives the range unless `sigma_min` or `sigma_max` narrow it.
      n: number of levels, at least 1; a single level is `sigma_max`.
      rho: 1 is linear in sigma; larger puts more levels near zero; towards infinity, exponential.

    Returns:
      (n,) levels from `sigma_max` to `sigma_min`.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in karras(variance_exploding(), 3).tolist()]
    [80.0, 2.515, 0.002]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)
    return decreasing(np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho)


@within(**ENDS)
def uniform_logsnr(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Levels in geometric progression, hence uniform in log SNR (arXiv 2206.00927, section 3.4):
    the "exponential" sigmas and the "Lu lambdas" of diffusers.

    >>> from optdiff.noise import variance_exploding
    >>> uniform_logsnr(variance_exploding(0.01, 100.0), 3).tolist()
    [100.0, 1.0, 0.01]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)
    return decreasing(np.geomspace(high, low, n))


@within(**ENDS)
def linear_sigma(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Levels uniform in sigma: every step removes the same noise (Karras with `rho = 1`)."""
    return karras(schedule, n, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


@within(rho="(0, inf)", **ENDS)
def polyexponential(
    schedule: NoiseSchedule,
    n: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """`log sigma_i = log sigma_min + (1 - i/(n-1))^rho (log sigma_max - log sigma_min)`.

    A polynomial in log sigma, k-diffusion's `get_sigmas_polyexponential`.

    Args:
      schedule, n, sigma_min, sigma_max: as `karras`.
      rho: 1 is uniform in log SNR; larger puts more levels near `sigma_min`, smaller near
        `sigma_max`.

    Raises:
      ValueError: if rho puts levels so close to `sigma_min` that they coincide.

    >>> from optdiff.noise import variance_exploding
    >>> schedule = variance_exploding(0.01, 100.0)
    >>> [round(s, 3) for s in polyexponential(schedule, 3, rho=2.0).tolist()]
    [100.0, 0.1, 0.01]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)
    return decreasing(low * (high / low) ** (np.linspace(1.0, 0.0, n) ** rho))


@within(shift="(0, inf)", **ENDS)
def cosine(
    schedule: NoiseSchedule,
    n: int,
    *,
    shift: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """`sigma_i = shift tan(theta_i)` at evenly spaced angles theta.

    Where a model with the cosine schedule `alpha_bar = cos(theta)^2` (arXiv 2102.09672, eq. 17,
    without its offset) has evenly spaced times. The angle is the time of TrigFlow (arXiv
    2410.11081), and `shift` the resolution's shift of log SNR by `-2 log shift` (arXiv 2301.11093).

    Args:
      schedule, n, sigma_min, sigma_max: as `karras`.
      shift: the level at 45 degrees, around which the levels gather.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in cosine(variance_exploding(0.01, 100.0), 5).tolist()]
    [100.0, 2.38, 1.0, 0.42, 0.01]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)
    # The angle and what it lacks of 90 degrees, each spaced by itself: neither end cancels.
    angle = np.linspace(np.arctan(high / shift), np.arctan(low / shift), n)
    rest = np.linspace(np.arctan(shift / high), np.arctan(shift / low), n)
    return decreasing(shift * np.sin(angle) / np.sin(rest))


@within(
    start="(-inf, inf)",
    end="(-inf, inf)",
    tau="(0, inf)",
    sigma_min="(0, inf)",
    sigma_max="(0, inf)",
)
def sigmoid(
    schedule: NoiseSchedule,
    n: int,
    *,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """`alpha_bar(t) = (S(end) - S(u)) / (S(end) - S(start))`, `u = start + t (end - start)`, at
    evenly spaced t, where `S(u) = 1 / (1 + exp(-u / tau))` and `sigma^2 = 1 / alpha_bar - 1`.

    The sigmoid schedule of arXiv 2212.11972, in the form of arXiv 2301.10972, algorithm 1.

    Args:
      schedule, n, sigma_min, sigma_max: as `karras`.
      start, end: the stretch of the sigmoid in use; `-start > end` moves levels towards zero.
      tau: its temperature; larger is closer to `alpha_bar` evenly spaced, smaller to log SNR.

    Raises:
      ValueError: unless `start < end` and `tau > 0`.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in sigmoid(variance_exploding(0.01, 100.0), 5).tolist()]
    [100.0, 2.387, 1.0, 0.419, 0.01]
    """
    if not (start < end and tau > 0):
        raise ValueError(f"need start < end and tau > 0, got {start}, {end} and {tau}")
    low, high = span(schedule, n, sigma_min, sigma_max)
    # S(a) - S(b) is sinh((a - b) / 2 tau) over cosh(a / 2 tau) cosh(b / 2 tau), up to a factor, so
    # sigma^2 = sinh(t w) / sinh((1 - t) w) / tilt: solved for t w, and likewise for (1 - t) w.
    w = (end - start) / (2 * tau)
    tilt = np.cosh(start / (2 * tau)) / np.cosh(end / (2 * tau))
    log_ratio = np.log(tilt * np.square([high, low]))

    def spaced(log_ratio):
        ends = (np.logaddexp(0, log_ratio + w) - np.logaddexp(0, log_ratio - w)) / 2
        return np.linspace(*ends, n)

    return decreasing(np.sqrt(np.sinh(spaced(log_ratio)) / np.sinh(spaced(-log_ratio)) / tilt))


def span(
    schedule: NoiseSchedule,
    n: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> tuple[float, float]:
    """The lowest and the highest level of a grid of n levels, which must be at least one.

    Raises:
      ValueError: for no levels, or a range that is empty or not positive and finite.
    """
    if n < 1:
        raise ValueError(f"a grid needs at least one level, not {n}")
    low = schedule.sigma_min if sigma_min is None else sigma_min
    top = schedule.sigma_max if np.isfinite(schedule.sigma_max) else SIGMA_CAP
    high = top if sigma_max is None else sigma_max
    if not 0.0 < low < high < np.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max, finite, got {low} and {high}")
    return low, high


def decreasing(levels: np.ndarray) -> Levels:
    """These levels as an array of JAX, if they are what a grid may return.

    Raises:
      ValueError: unless they are finite, positive and decrease, in the precision they will have.
    """
    rounded = np.asarray(levels, jax.dtypes.canonicalize_dtype(float))
    if not (np.isfinite(rounded).all() and np.all(rounded > 0) and np.all(np.diff(rounded) < 0)):
        raise ValueError(
            f"noise levels must be finite, positive and decrease, got {rounded.tolist()}"
        )
    return jax.device_put(rounded)  # `jnp.asarray` would compile for every number of levels
