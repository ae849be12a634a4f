"""How well samples keep the weights of a mixture's modes, and how many modes they miss."""

import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax

from optdiff.metrics.points import Samples, points, squared_distances


def mode_weights(
    samples: Samples,
    means: Float[Array | np.ndarray, "k ..."],
    weights: Float[Array | np.ndarray, "k"],
    stds: Float[Array | np.ndarray, "k"],
    *,
    missed_below: float = 0.25,
) -> dict[str, float]:
    """Total variation between the samples' and the true mode weights, and modes missed.

    `1/2 sum_k |w^_k - w_k|`, where `w^_k` is the mean over samples of the responsibility
    `w_k N(x; m_k, s_k^2 I) / sum_j w_j N(x; m_j, s_j^2 I)`. For a perfect sampler its expectation
    is `w_k`, even where modes overlap, which counting nearest means does not give; as equal widths
    shrink it turns into that count. A mode is missed where `w^_k < missed_below * w_k`.

    Counting is noisy: b perfect samples have a TV of about `sum_k sqrt(w_k / (2 pi b))`, and a
    mode due 16 samples is called missed by chance less than once in 10,000 times (of 4 due, about
    one time in 50). Samples between modes go to one or the other: this sees weights, not shape.

    Args:
      samples: (b, ...).
      means: (k, ...), of the samples' shape after the first axis.
      weights: (k,), not negative, summing to 1.
      stds: (k,), the widths of the isotropic modes, positive.
      missed_below: the share of its due below which a mode counts as missed.

    Returns:
      "mode_error" in [0, 1] and "missed_modes" in [0, k]. Less is better in both.

    Raises:
      ValueError: if shapes disagree, weights do not sum to 1, a width is not positive, or
        some samples are not finite (it says how many).

    >>> means, stds = np.array([[0.0, 0.0], [9.0, 9.0]]), np.array([0.1, 0.1])
    >>> mode_weights(np.zeros((8, 2)), means, np.array([0.75, 0.25]), stds)
    {'mode_error': 0.25, 'missed_modes': 1.0}
    """
    due = np.asarray(weights).astype(np.float64)
    if not (np.all(due >= 0) and abs(due.sum() - 1) < 1e-4):
        raise ValueError(f"weights must not be negative and must sum to 1, not {due.sum():.6g}")
    if samples.shape[1:] != means.shape[1:] or due.shape != means.shape[:1]:
        raise ValueError(
            f"samples {samples.shape}, means {means.shape} and weights {due.shape} must be "
            "(b, ...), (k, ...) and (k,)"
        )
    widths = np.asarray(stds).astype(np.float64)
    if widths.shape != due.shape or not np.all(widths > 0):
        raise ValueError(f"stds {widths} must be positive, one for each of {len(due)} modes")
    x, centres = points(samples), points(means, "means")
    squares = squared_distances(x - centres.mean(axis=0), centres - centres.mean(axis=0))
    with np.errstate(divide="ignore"):  # a mode of weight zero has log weight minus infinity
        logits = np.log(due) - x.shape[1] * np.log(widths) - 0.5 * squares / widths**2
    weight = softmax(logits, axis=1).mean(axis=0)
    return {
        "mode_error": float(np.abs(weight - due).sum() / 2),
        "missed_modes": float(np.sum(weight < missed_below * due)),
    }
