"""Energy distance between two sets of samples in any dimension, without bias."""

import numpy as np

from optdiff.metrics.points import Reference, Samples, pair, squared_distances, squared_gaps


def energy_distance(samples: Samples, reference: Reference) -> float:
    """Unbiased (U-statistic) estimate of the energy distance; it can be negative.

    `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, Euclidean norms, the last two means over pairs of
    different samples (Székely & Rizzo 2013, "Energy statistics: a class of statistics based on
    distances"). The V-statistic, which is never negative, adds
    `E|X - X'| / b + E|Y - Y'| / n`: a floor that depends on the sample counts and in high
    dimension exceeds what is to be measured. Not the square root that scipy takes, and no
    parameter to choose: it is in units of distance, and 0 only for equal distributions.

    Args:
      samples: (b, ...), b at least 2.
      reference: (n, ...), n at least 2, of the samples' shape after the first axis.

    Returns:
      0 in the mean where both come from one distribution; values just below 0 are noise about it.

    Raises:
      ValueError: if shapes differ, some samples are not finite (it says how many), or there are
        fewer than 2.

    >>> energy_distance(np.zeros((4, 2)), np.tile([3.0, 4.0], (6, 1)))
    10.0
    """
    x, y = pair(samples, reference, at_least=2)
    between = np.sqrt(squared_distances(x, y)).mean()
    within = np.sqrt(squared_gaps(x)).mean() + np.sqrt(squared_gaps(y)).mean()
    return float(2 * between - within)
