"""Sets of samples as points in float64: what every metric does before it measures anything.

This file owns the shape of the inputs (flattened to rows), the refusal of samples that are not
finite, and pairwise squared distances. What is made of the distances is each metric's own.
Everything runs in numpy on the host: float64 is there without a global switch, a new sample count
compiles nothing, and float32 samples that ran away (1e30) still square to finite numbers.
"""

import math

import numpy as np
from jaxtyping import Array, Float
from scipy.spatial.distance import squareform

Samples = Float[Array | np.ndarray, "b ..."]
"""What is judged: b samples of any shape and floating type, jax or numpy."""

Reference = Float[Array | np.ndarray, "n ..."]
"""What good samples look like: n of them, of the samples' shape; n need not be b."""

Points = Float[np.ndarray, "_ d"]
"""Flattened samples in float64."""


def points(samples: Samples, name: str = "samples", *, at_least: int = 1) -> Points:
    """A copy of the samples as rows of a float64 matrix, all of them finite.

    Args:
      samples: (b, ...), any floating type.
      name: what to call them in an error.
      at_least: the fewest samples that the caller can work with.

    Returns:
      (b, d), d the size of one sample.

    Raises:
      ValueError: if some samples are not finite (it says how many), or there are too few.

    >>> points(np.ones((2, 28, 28), np.float32)).shape
    (2, 784)
    """
    values = np.array(samples, np.float64)
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if len(rows) < at_least:
        raise ValueError(f"{name}: {len(rows)} given, at least {at_least} needed; draw more")
    finite = np.isfinite(rows)
    if not finite.all():
        broken = ~finite.all(axis=1)
        raise ValueError(
            f"{name}: {broken.sum()} of {len(rows)} are not finite (the first at index "
            f"{broken.argmax()}); a metric of the others would flatter the sampler, so mend the "
            "run or record it as failed"
        )
    return rows


def pair(samples: Samples, reference: Reference, *, at_least: int = 1) -> tuple[Points, Points]:
    """Samples and reference as points, moved together so that the reference has mean zero.

    The metrics do not change under translation, and it spares the matrix form of the distances
    from cancellation against a mean far from zero.

    Args:
      samples: (b, ...).
      reference: (n, ...), of the same shape after the first axis.
      at_least: the fewest samples of either kind that the caller can work with.

    Returns:
      (b, d) and (n, d).

    Raises:
      ValueError: as `points` does, or if one sample is not shaped like one reference sample.

    >>> x, y = pair(np.full((2, 3), 5.0), np.full((4, 3), 4.0))
    >>> float(x.max()), float(y.max())
    (1.0, 0.0)
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"samples {samples.shape} and reference {reference.shape} must agree after the first "
            "axis; decode both, or neither"
        )
    x = points(samples, "samples", at_least=at_least)
    y = points(reference, "reference", at_least=at_least)
    mean = y.mean(axis=0)
    x -= mean
    y -= mean
    return x, y


def squared_distances(x: Points, y: Points) -> Float[np.ndarray, "_ _"]:
    """`|x_i - y_j|^2` from one matrix product, `|x|^2 + |y|^2 - 2 x y^T`, never negative.

    The error is about 1e-15 of `|x_i|^2 + |y_j|^2`, so points should lie around zero (see `pair`).

    Args:
      x: (b, d).
      y: (n, d).

    Returns:
      (b, n).

    >>> squared_distances(np.zeros((1, 2)), np.array([[3.0, 4.0]])).item()
    25.0
    """
    squares = x @ y.T
    squares *= -2
    squares += np.einsum("id,id->i", x, x)[:, None]
    squares += np.einsum("jd,jd->j", y, y)
    return np.maximum(squares, 0, out=squares)


def squared_gaps(x: Points) -> Float[np.ndarray, "_"]:
    """`|x_i - x_j|^2` over the pairs i < j: each once, none with itself, as U-statistics want.

    Args:
      x: (b, d).

    Returns:
      (b (b - 1) / 2,).

    >>> squared_gaps(np.array([[0.0], [1.0], [3.0]])).tolist()
    [1.0, 9.0, 4.0]
    """
    return squareform(squared_distances(x, x), checks=False)
