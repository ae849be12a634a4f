"""How well samples keep the weights of a mixture's modes, and how many modes they miss."""

import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from optdiff.metrics.points import Points, Samples, points, squared_distances


def mode_weights(
    samples: Samples,
    means: Float[Array | np.ndarray, "k ..."],
    weights: Float[Array | np.ndarray, "k"],
    *,
    covariances: Float[Array | np.ndarray, "k d d"] | None = None,
    missed_below: float = 0.25,
) -> dict[str, float]:
    """Total variation between the samples' and the true mode weights, and modes missed.

    `TV = 1/2 sum_k |w^_k - w_k|`. With covariances, `w^_k` is the mean responsibility
    `w_k N(x; m_k, C_k) / sum_j w_j N(x; m_j, C_j)`, whose expectation for a perfect sampler is
    `w_k` even where modes overlap. Without, each sample counts for the nearest mean: right only
    for modes well apart and of like width. A mode is missed where `w^_k < missed_below * w_k`.

    Counting is noisy: b perfect samples have a TV of about `sum_k sqrt(w_k / (2 pi b))`, and a
    mode due 16 samples is called missed by chance less than once in 10,000 times (of 4 due, about
    one time in 50). Samples between modes go to one or the other: this sees weights, not shape.

    Args:
      samples: (b, ...).
      means: (k, ...), of the samples' shape after the first axis.
      weights: (k,), not negative, summing to 1.
      covariances: (k, d, d) of the flattened samples, or None for the nearest mean.
      missed_below: the share of its due below which a mode counts as missed.

    Returns:
      "weights_tv" in [0, 1] and "missed_modes" in [0, k]. Less is better in both.

    Raises:
      ValueError: if shapes disagree, weights do not sum to 1, a covariance is not positive
        definite, or some samples are not finite (it says how many).

    >>> mode_weights(np.zeros((8, 2)), np.array([[0.0, 0.0], [9.0, 9.0]]), np.array([0.75, 0.25]))
    {'weights_tv': 0.25, 'missed_modes': 1.0}
    """
    due = np.asarray(weights).astype(np.float64)
    if not (np.all(due >= 0) and abs(due.sum() - 1) < 1e-4):
        raise ValueError(f"weights must not be negative and must sum to 1, not {due.sum():.6g}")
    if samples.shape[1:] != means.shape[1:] or due.shape != means.shape[:1]:
        raise ValueError(
            f"samples {samples.shape}, means {means.shape} and weights {due.shape} must be "
            "(b, ...), (k, ...) and (k,)"
        )
    x, centres = points(samples), points(means, "means")
    k, d = centres.shape
    if covariances is not None and covariances.shape != (k, d, d):
        raise ValueError(f"covariances {covariances.shape} must be (k, d, d), here {(k, d, d)}")
    x, centres = x - centres.mean(axis=0), centres - centres.mean(axis=0)
    if covariances is None:
        nearest = squared_distances(x, centres).argmin(axis=1)
        found = np.bincount(nearest, minlength=len(due)) / len(x)
    else:
        found = _responsibilities(x, centres, due, covariances).mean(axis=0)
    return {
        "weights_tv": float(np.abs(found - due).sum() / 2),
        "missed_modes": float(np.sum(found < missed_below * due)),
    }


def _responsibilities(
    x: Points, means: Points, weights: np.ndarray, covariances: Float[Array | np.ndarray, "k d d"]
) -> Float[np.ndarray, "b k"]:
    """Posterior probability of each mode given each sample."""
    with np.errstate(divide="ignore"):  # a mode of weight zero has log weight minus infinity
        logits = np.log(weights) + np.zeros((len(x), 1))
    for k, cov in enumerate(np.asarray(covariances).astype(np.float64)):
        try:
            factor = np.linalg.cholesky(cov)
        except np.linalg.LinAlgError as error:
            raise ValueError(f"covariances[{k}] is not positive definite") from error
        whitened = solve_triangular(factor, (x - means[k]).T, lower=True)
        logits[:, k] -= 0.5 * np.sum(whitened**2, axis=0) + np.log(np.diag(factor)).sum()
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
