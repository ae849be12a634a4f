"""2-Wasserstein distance between Gaussians, and the bound on W2 that it gives from moments."""

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Points, Samples, points

Mean = Float[Array | np.ndarray, "d"]
Covariance = Float[Array | np.ndarray, "d d"]


def gaussian_w2(mean1: Mean, cov1: Covariance, mean2: Mean, cov2: Covariance) -> float:
    """Exact 2-Wasserstein distance between N(mean1, cov1) and N(mean2, cov2).

    `W2^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)` (Dowson & Landau 1982), computed
    in its equal form `|m1 - m2|^2 + min_Q |C1^1/2 - C2^1/2 Q|_F^2` over orthogonal Q (arXiv
    1712.01504, Theorem 1), with the roots from eigenvalues and Q from one singular value
    decomposition. That form is a sum of squares, so nearly equal Gaussians keep their digits
    where the traces cancel. Singular covariances are welcome.

    Args:
      mean1: (d,).
      cov1: (d, d), symmetric, no negative eigenvalue.
      mean2: (d,).
      cov2: (d, d), likewise.

    Returns:
      The distance, not its square; at least 0.

    Raises:
      ValueError: if shapes disagree or a covariance is not symmetric, finite and positive
        semidefinite.

    >>> gaussian_w2(np.zeros(2), np.eye(2), np.array([3.0, 4.0]), np.eye(2))
    5.0
    """
    d = np.size(mean1)
    if np.shape(mean2) != (d,) or not np.shape(cov1) == np.shape(cov2) == (d, d):
        raise ValueError(
            f"means {np.shape(mean1)}, {np.shape(mean2)} and covariances {np.shape(cov1)}, "
            f"{np.shape(cov2)} must be (d,), (d,), (d, d), (d, d) for one d"
        )
    shift = points(mean1, "mean1") - points(mean2, "mean2")
    root1, root2 = _root(cov1, "cov1"), _root(cov2, "cov2")
    u, _, vt = np.linalg.svd(root2.T @ root1)
    return float(np.sqrt(np.sum(shift**2) + np.sum((root1 - root2 @ (u @ vt)) ** 2)))


def gelbrich(samples: Samples, mean: Mean, cov: Covariance) -> float:
    """Gelbrich bound: `gaussian_w2` of the samples' mean and covariance and the given ones.

    `W2(P, Q) >= W2(N(m_P, C_P), N(m_Q, C_Q))` for any P and Q with these moments, with equality
    where one is an affine image of the other by a positive semidefinite matrix, as Gaussians are
    (Gelbrich 1990). **A lower bound, not W2**: it is blind to everything beyond second moments.

    The moments of P are estimated from b samples, which biases the result upwards: a perfect
    sampler of N(m, C) gets, for d much smaller than b,
    `W2^2 ~ (tr C + sum_ij l_i l_j (1 + [i = j]) / (2 (l_i + l_j))) / b`, l the eigenvalues of C;
    that is `l (d + d (d + 1) / 4) / b` for `C = l I`. Near this floor it bounds nothing.

    Args:
      samples: (b, ...), b at least 2, flattened to (b, d).
      mean: (d,), of the target.
      cov: (d, d), of the target.

    Returns:
      The bound on the distance, not on its square; at least 0.

    Raises:
      ValueError: as `gaussian_w2`, or if some samples are not finite (it says how many).

    >>> gelbrich(np.array([[-1.0], [1.0]]), np.array([2.0]), np.array([[2.0]]))
    2.0
    """
    x = points(samples, at_least=2)
    return gaussian_w2(*moments(x), mean, cov)


def moments(x: Points) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean and unbiased covariance of points.

    Args:
      x: (b, d), b at least 2.

    Returns:
      (d,) and (d, d).

    >>> [m.tolist() for m in moments(np.array([[-1.0], [1.0]]))]
    [[0.0], [[2.0]]]
    """
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _root(cov: Covariance, name: str) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a covariance, from its eigenvalues."""
    cov = np.asarray(cov).astype(np.float64)
    scale = np.abs(cov).max()
    # Tolerances let through what float32 arithmetic does to a covariance, and no more.
    if not (np.isfinite(scale) and np.allclose(cov, cov.T, rtol=0, atol=1e-5 * scale)):
        raise ValueError(f"{name}: not a finite symmetric matrix, so not a covariance")
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    if values[0] < -1e-5 * scale:
        raise ValueError(
            f"{name}: eigenvalue {values[0]:.3g} is negative, so it is not a covariance; was a "
            "root or a precision matrix passed?"
        )
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
