"""Trajectory error: how far samples end from where the exact flow would have taken them.

The only metric that pairs samples one by one; the fine reference solution is made elsewhere.
"""

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Samples, points


def trajectory_error(samples: Samples, exact: Float[Array | np.ndarray, "b ..."]) -> float:
    """Root mean square distance per coordinate between samples and the exact end points.

    `sqrt(mean_i |x_i - x_i*|^2 / d)`, where `x_i*` starts from the same noise as `x_i` and is
    carried by a solver fine enough to count as exact. It is in the units of one coordinate and
    divided by nothing but the dimension: figures compare across dimensions, and across data sets
    only where the data have the same scale. The mean is taken before the root, so one sample that
    ran away shows. It says nothing of stochastic samplers, whose paths are not meant to agree.

    Args:
      samples: (b, ...).
      exact: (b, ...), the exact end points, in the order of the samples.

    Returns:
      At least 0; 0 only if every coordinate agrees.

    Raises:
      ValueError: if shapes differ or some samples are not finite (it says how many).

    >>> trajectory_error(np.zeros((4, 28, 28)), np.full((4, 28, 28), 0.5))
    0.5
    """
    if samples.shape != exact.shape:
        raise ValueError(
            f"samples {samples.shape} and exact {exact.shape} must have one shape: sample i and "
            "exact end point i start from the same noise"
        )
    difference = points(samples) - points(exact, "exact")
    return float(np.sqrt(np.mean(difference**2)))
