"""Sliced 2-Wasserstein distance between two sets of samples of any sizes."""

import numpy as np
from jaxtyping import Float, Int

from optdiff.metrics.points import Points, Reference, Samples, pair


def sliced_w2(
    samples: Samples, reference: Reference, *, projections: int = 256, seed: int = 0
) -> float:
    """Root mean square, over random directions, of the W2 distance between the projections.

    `SW2^2 = E_theta int_0^1 (F^-1(u) - G^-1(u))^2 du`, F and G the distribution functions of
    samples and reference along theta, theta uniform on the sphere (Bonneel et al. 2015, "Sliced
    and Radon Wasserstein barycenters of measures"). The integral is exact for unequal set sizes;
    the mean over directions is over a fixed random set of them, the same at every call.

    A shift by v gives `|v| / sqrt(d)` on average, so figures are in the units of one coordinate,
    as in `trajectory_error`. Finite sets of one distribution are apart by O(b^-1/2 + n^-1/2):
    compare with reference against reference at the same sizes, not with 0.

    Args:
      samples: (b, ...).
      reference: (n, ...), of the samples' shape after the first axis.
      projections: number of random directions.
      seed: of the directions.

    Returns:
      At least 0.

    Raises:
      ValueError: if shapes differ or some samples are not finite (it says how many).

    >>> sliced_w2(np.zeros((4, 1)), np.ones((6, 1)))
    1.0
    """
    x, y = pair(samples, reference)
    theta = directions(x.shape[1], projections, seed)
    x, y = np.sort(theta @ x.T, axis=1), np.sort(theta @ y.T, axis=1)
    share, i, j = _common_quantiles(x.shape[1], y.shape[1])
    return float(np.sqrt(np.mean((x[:, i] - y[:, j]) ** 2 @ share)))


def directions(dim: int, count: int, seed: int) -> Points:
    """`count` unit vectors, uniform on the sphere in `dim` dimensions.

    Returns:
      (count, dim).

    >>> directions(1, 3, 0).shape
    (3, 1)
    """
    normal = np.random.default_rng(seed).standard_normal((count, dim))
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def _common_quantiles(
    b: int, n: int
) -> tuple[Float[np.ndarray, "k"], Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Where two step quantile functions, of b and of n steps, are both constant.

    Returns the length of each interval of (0, 1), and which order statistic of either set holds
    on it. Counted in units of 1 / (b n), where every jump is an integer and none is rounded.
    """
    ends = np.union1d(n * np.arange(1, b + 1), b * np.arange(1, n + 1))
    share = np.diff(ends, prepend=0) / (b * n)
    return share, (ends - 1) // n, (ends - 1) // b
