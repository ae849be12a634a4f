"""Grids: where to step. Each is a function of a noise schedule and the number of levels.

A grid returns n levels, decreasing, the first of them the highest; the driver's `finish` owns what
happens after the last. "Schedule" is what the model was trained on, "grid" where we step.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from optdiff.types import Levels, NoiseSchedule

SIGMA_CAP = 80.0
"""Where a grid starts if the schedule has no highest level (zero terminal SNR, flow)."""


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
    low, high = _range(schedule, n, sigma_min, sigma_max)
    return _levels(np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho)


def uniform_logsnr(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Levels in geometric progression, hence uniform in log SNR (arXiv 2206.00927, section 3.4).

    >>> from optdiff.noise import variance_exploding
    >>> uniform_logsnr(variance_exploding(0.01, 100.0), 3).tolist()
    [100.0, 1.0, 0.01]
    """
    low, high = _range(schedule, n, sigma_min, sigma_max)
    return _levels(np.geomspace(high, low, n))


def linear_sigma(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Levels uniform in sigma: every step removes the same noise (Karras with `rho = 1`)."""
    return karras(schedule, n, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


def linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """n levels at evenly spaced trained times, both ends included (diffusers' "linspace")."""
    low, high = _range(schedule, n, None, None)
    start, stop = (np.asarray(schedule.t(jnp.asarray(s)), np.float64) for s in (high, low))
    return _levels(np.asarray(schedule.sigma(jnp.asarray(np.linspace(start, stop, n)))))


def explicit(schedule: NoiseSchedule, n: int, *, levels: Sequence[float]) -> Levels:
    """Exactly these levels, for studies that bring their own grid.

    Raises:
      ValueError: if there are not n of them or they do not decrease.
    """
    if len(levels) != n:
        raise ValueError(f"the explicit grid has {len(levels)} levels, but {n} were asked for")
    return _levels(np.asarray(levels, np.float64))


def _range(schedule, n, sigma_min, sigma_max) -> tuple[float, float]:
    if n < 1:
        raise ValueError(f"a grid needs at least one level, not {n}")
    low = schedule.sigma_min if sigma_min is None else sigma_min
    top = schedule.sigma_max if np.isfinite(schedule.sigma_max) else SIGMA_CAP
    high = top if sigma_max is None else sigma_max
    if not 0.0 < low < high < np.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max, finite, got {low} and {high}")
    return low, high


def _levels(levels: np.ndarray) -> Levels:
    if not (np.isfinite(levels).all() and np.all(levels > 0) and np.all(np.diff(levels) < 0)):
        raise ValueError(
            f"noise levels must be finite, positive and decrease, got {levels.tolist()}"
        )
    return jnp.asarray(levels, float)
