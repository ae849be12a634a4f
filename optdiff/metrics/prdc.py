"""Precision, recall, density and coverage: which balls around one set hold points of the other."""

import numpy as np
from jaxtyping import Float

from optdiff.metrics.points import Points, Reference, Samples, pair, squared_distances


def prdc(samples: Samples, reference: Reference, *, neighbors: int = 5) -> dict[str, float]:
    """Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    With `B(p)` the closed ball around p that reaches to p's k-th nearest neighbour in its own set:

    - precision: share of samples that lie in some `B(y)` (1904.06991, eq. 1 and 2);
    - recall: share of the reference that lies in some `B(x)` (likewise);
    - density: mean over samples of the number of `B(y)` around each, over k (2002.09797);
    - coverage: share of the `B(y)` that hold a sample (2002.09797).

    The authors' code for density and coverage takes open balls; the two differ only where a sample
    lies exactly on a sphere, as copies of the reference do. Recall is generous to wild samples
    (their balls are huge), precision to outliers in the reference: read density and coverage
    beside them. None of the four is 1 for a perfect sampler: compare with held-out data.

    Args:
      samples: (b, ...), b more than `neighbors`.
      reference: (n, ...), n more than `neighbors`, of the samples' shape after the first axis.
      neighbors: k, the size of the neighbourhood.

    Returns:
      "precision", "recall" and "coverage" in [0, 1], and "density", at least 0 and not bounded
      by 1. More is better in all four.

    Raises:
      ValueError: if there are no more than `neighbors` of either, shapes differ, or some samples
        are not finite (it says how many).

    >>> grid = np.linspace(0.0, 1.0, 50).reshape(50, 1)
    >>> prdc(grid[:10], grid)["precision"], prdc(grid[:10], grid)["coverage"] < 0.5
    (1.0, True)
    """
    if neighbors < 1:
        raise ValueError(f"neighbors={neighbors}: must be 1 or more")
    x, y = pair(samples, reference, at_least=neighbors + 1)
    squares = squared_distances(y, x)  # (n, b)
    in_reference_ball = squares <= _squared_radii(y, neighbors)[:, None]
    in_sample_ball = squares <= _squared_radii(x, neighbors)
    return {
        "precision": float(in_reference_ball.any(axis=0).mean()),
        "recall": float(in_sample_ball.any(axis=1).mean()),
        "density": float(in_reference_ball.sum(axis=0).mean() / neighbors),
        "coverage": float(in_reference_ball.any(axis=1).mean()),
    }


def _squared_radii(centres: Points, neighbors: int) -> Float[np.ndarray, "_"]:
    """Squared distance from each centre to its k-th nearest neighbour, a rounding error wider.

    The same distance comes out of two matrix products with different last digits; without the
    margin they would decide whether a copy of the k-th neighbour lies in the ball.
    """
    squares = squared_distances(centres, centres)
    np.fill_diagonal(squares, 0)  # a centre is its own nearest, which puts the k-th at index k
    radii = np.partition(squares, neighbors, axis=1)[:, neighbors]
    return radii + 1e-12 * (radii + np.sum(centres**2, axis=1))
