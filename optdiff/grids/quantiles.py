"""Grids at evenly spaced quantiles of a distribution of noise levels: dense where it is dense.

A model is trained at levels drawn from a distribution; its quantiles step where it was trained
most. A distribution over all levels is cut at the ends of the range, which are kept.
"""

from collections.abc import Callable

import numpy as np
from scipy import special

from optdiff.grids.levels import ENDS, decreasing, span
from optdiff.types import Levels, NoiseSchedule, within


@within(p_mean="(-inf, inf)", p_std="(0, inf)", **ENDS)
def log_normal(
    schedule: NoiseSchedule,
    n: int,
    *,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Quantiles of EDM's training levels, `log sigma ~ N(p_mean, p_std^2)` cut at the range.

    arXiv 2206.00364, table 1 and section 5. For a flow model, where `sigma = t / (1 - t)`, these
    are the times of the logit-normal distribution (arXiv 2403.03206, eq. 19).

    Args:
      schedule, n, sigma_min, sigma_max: as `karras`.
      p_mean, p_std: mean and standard deviation of log sigma.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in log_normal(variance_exploding(), 5).tolist()]
    [80.0, 0.677, 0.301, 0.134, 0.002]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)
    return _quantiles(low, high, n, p_mean, p_std, special.log_ndtr, special.ndtri_exp)


@within(mu="(-inf, inf)", b="(0, inf)", **ENDS)
def laplace(
    schedule: NoiseSchedule,
    n: int,
    *,
    mu: float = 0.0,
    b: float = 0.5,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Quantiles of a Laplace distribution of log SNR, `p(lambda) = exp(-|lambda - mu| / b) / 2b`
    with `lambda = -2 log sigma`, cut at the range: `lambda = mu - b sgn(1/2 - t) log(1 - |2t - 1|)`
    at evenly spaced t.

    arXiv 2407.03297, table 1. ComfyUI's grid of this name takes `log sigma` for lambda, and does
    not cut the distribution but clamps its levels, so that some coincide.

    Args:
      schedule, n, sigma_min, sigma_max: as `karras`.
      mu: the log SNR around which levels gather; 0 is sigma = 1.
      b: how widely.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in laplace(variance_exploding(), 5).tolist()]
    [80.0, 1.189, 1.0, 0.841, 0.002]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)

    def log_cdf(z):
        return np.where(z < 0, -np.abs(z) - np.log(2), np.log1p(-np.exp(-np.abs(z)) / 2))

    return _quantiles(low, high, n, -mu / 2, b / 2, log_cdf, lambda log_p: log_p + np.log(2))


@within(alpha="(0, inf)", beta="(0, inf)", **ENDS)
def beta(
    schedule: NoiseSchedule,
    n: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """`sigma_i = sigma_min + F^-1(1 - i/(n-1)) (sigma_max - sigma_min)`, F the beta distribution's.

    The "beta sigmas" of diffusers, which names arXiv 2407.12173 for them; but that spaces times so,
    not levels: see `beta_time`.

    Args:
      schedule, n, sigma_min, sigma_max: as `karras`.
      alpha, beta: less than 1 gathers levels at `sigma_min` (alpha) and `sigma_max` (beta); 1 and 1
        are evenly spaced.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in beta(variance_exploding(), 5).tolist()]
    [80.0, 65.946, 40.001, 14.056, 0.002]
    """
    low, high = span(schedule, n, sigma_min, sigma_max)
    return decreasing(low + special.betaincinv(alpha, beta, np.linspace(1, 0, n)) * (high - low))


def _quantiles(
    low: float,
    high: float,
    n: int,
    mean: float,
    scale: float,
    log_cdf: Callable[[np.ndarray], np.ndarray],
    lower_quantile: Callable[[np.ndarray], np.ndarray],
) -> Levels:
    """Levels at evenly spaced quantiles of `log sigma`, whose distribution is symmetric.

    Between the ends of the range the distribution function rises evenly, from that of the lowest
    level to that of the highest. It is followed from the tail that is smaller, for near the other
    `1 - p` cannot be told from 1; and in logarithms, for the smaller one may underflow.

    Args:
      mean, scale: of `log sigma = mean + scale z`.
      log_cdf: `log P(Z < z)`.
      lower_quantile: z from `log P(Z < z)`, below the median.
    """
    highest, lowest = (np.log([high, low]) - mean) / scale
    with np.errstate(divide="ignore"):  # at each end the other's share is zero
        of_highest, of_lowest = np.log([np.linspace(1, 0, n), np.linspace(0, 1, n)])
    below = np.logaddexp(of_highest + log_cdf(highest), of_lowest + log_cdf(lowest))
    above = np.logaddexp(of_highest + log_cdf(-highest), of_lowest + log_cdf(-lowest))
    z = lower_quantile(np.minimum(below, above))
    levels = np.exp(mean + scale * np.where(below < above, z, -z))
    levels[-1], levels[0] = low, high
    return decreasing(levels)
