"""Frechet distance between Gaussians fitted to a few features of samples and reference.

Not FID: FID means Inception features, 2048 of them, and 50,000 images. The closed form is
`gaussian_w2`'s; this file owns the features and how many samples they need.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import eigh

from optdiff.metrics.gaussian_w2 import gaussian_w2, moments
from optdiff.metrics.points import Points, Reference, Samples, pair, points

MOST_FEATURES = 64
SAMPLES_PER_FEATURE = 2

FeatureMap = Callable[[Samples], Float[Array | np.ndarray, "b k"]]


def principal_features(reference: Reference, *, count: int = 31) -> FeatureMap:
    """Coordinates on the reference's principal axes, and the distance from their span.

    `z(x) = (V^T (x - m), |x - m - V V^T (x - m)|)`, m the mean of the reference and V its first
    `count` principal axes. The last feature is what the projection misses: without it noise off
    the span would be invisible. Where the axes span everything (d at most `count`) there is no last
    feature, and the others are the coordinates themselves up to a rotation.

    The reference lies closer to axes fitted to it than fresh samples do, which raises the floor of
    a perfect sampler a little: compare with held-out data against the same reference.

    Args:
      reference: (n, ...).
      count: how many principal axes; fewer are used if the reference spans fewer.

    Returns:
      A function from samples (b, ...) to features, (b, count + 1) or (b, d).

    Raises:
      ValueError: if some of the reference is not finite (it says how many).

    >>> axes = principal_features(np.random.default_rng(0).normal(size=(100, 28, 28)))
    >>> axes(np.zeros((5, 28, 28))).shape
    (5, 32)
    """
    y = points(reference, "reference")
    mean = y.mean(axis=0)
    axes = _principal_axes(y - mean, count)

    def features(samples: Samples) -> Float[np.ndarray, "b k"]:
        x = points(samples) - mean
        along = x @ axes
        if along.shape == x.shape:
            return along
        missed = np.sum(x**2, axis=1) - np.sum(along**2, axis=1)
        return np.column_stack([along, np.sqrt(np.maximum(missed, 0))])

    return features


def frechet(
    samples: Samples,
    reference: Reference,
    *,
    features: Callable[[Reference], FeatureMap] = principal_features,
) -> float:
    """Frechet distance on at most 64 features; never to be called FID.

    `W2(N(m_x, C_x), N(m_y, C_y))`, m and C the means and covariances of the features of samples
    and reference (Dowson & Landau 1982): the distance itself, where FID reports its square. Sees
    no more than two moments of the features. Estimating these from b and n samples biases it
    upwards, as `gelbrich` says, so the floor is held-out data at the same sizes, not 0.

    Args:
      samples: (b, ...), b at least twice the number of features.
      reference: (n, ...), n likewise, of the samples' shape after the first axis.
      features: given the reference, returns a map from samples to features (b, k), k at most 64;
        for fewer axes `functools.partial(principal_features, count=...)`, for a network of one's
        own `lambda reference: network`.

    Returns:
      At least 0.

    Raises:
      ValueError: if there are too many features, too few samples for them, shapes differ, or some
        samples are not finite (it says how many).

    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> round(frechet(x + np.array([3.0, 4.0]), x), 6)
    5.0
    """
    pair(samples, reference)  # refuses broken samples before any features are made of them
    describe = features(reference)
    x, y = pair(describe(samples), describe(reference))
    count, fewest = x.shape[1], min(len(x), len(y))
    if count > MOST_FEATURES:
        raise ValueError(
            f"{count} features: at most {MOST_FEATURES} are taken, since their covariance needs "
            "samples by the square of their number; project them first, or use "
            f"functools.partial(principal_features, count={MOST_FEATURES - 1})"
        )
    if fewest < SAMPLES_PER_FEATURE * count:
        raise ValueError(
            f"{len(x)} samples and {len(y)} reference samples are too few for {count} features: "
            f"draw at least {SAMPLES_PER_FEATURE * count} of each, or take fewer features, say "
            "functools.partial(principal_features, "
            f"count={max(fewest // SAMPLES_PER_FEATURE - 1, 1)})"
        )
    return gaussian_w2(*moments(x), *moments(y))


def _principal_axes(centred: Points, count: int) -> Float[np.ndarray, "d k"]:
    """The leading right singular vectors, from the smaller of the two products with itself."""
    few = len(centred) < centred.shape[1]
    product = centred @ centred.T if few else centred.T @ centred
    size = len(product)
    values, vectors = eigh(product, subset_by_index=(max(size - count, 0), size - 1))
    # The product of an n-point set has at least one eigenvalue that is zero but for rounding.
    spanned = values > 1e-10 * values[-1]
    values, vectors = values[spanned], vectors[:, spanned]
    return centred.T @ vectors / np.sqrt(values) if few else vectors
