"""Maximum mean discrepancy under a mixture of Gaussian kernels, without bias."""

from collections.abc import Sequence

import numpy as np

from optdiff.metrics.points import Reference, Samples, pair, squared_distances, squared_gaps


def mmd(
    samples: Samples, reference: Reference, *, bandwidths: Sequence[float] = (0.5, 1.0, 2.0)
) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy; it can be negative.

    `MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)`
    (Gretton et al. 2012, JMLR 13, Lemma 6), with `k(x, y) = mean_s exp(-|x - y|^2 / (2 s^2 m))`
    over the bandwidths s and m the median of `|y_i - y_j|^2`. The median is of the reference
    alone, so that every sampler is measured by the same kernel, however bad its samples.

    Where samples are as good as the reference the mean over repeats is zero, and about half of
    the values are below it: they are not faults, and a log axis cannot show them. (Exactly
    unbiased for a given kernel; that the kernel's width is read off the reference costs a little
    at very small n.)

    Args:
      samples: (b, ...), b at least 2.
      reference: (n, ...), n at least 2, of the samples' shape after the first axis.
      bandwidths: widths of the kernels in units of the median distance in the reference.

    Returns:
      At most 2; 0 in the mean where both come from one distribution.

    Raises:
      ValueError: if shapes differ, some samples are not finite (it says how many), there are fewer
        than 2, a bandwidth is not positive, or most of the reference is one point.

    >>> grid = np.linspace(0.0, 1.0, 50).reshape(50, 1)
    >>> mmd(grid, grid) < 0 < mmd(grid + 1.0, grid)
    True
    """
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths {tuple(bandwidths)}: need one or more, all positive")
    x, y = pair(samples, reference, at_least=2)
    among_reference = squared_gaps(y)
    median = np.median(among_reference)
    if median == 0:
        raise ValueError(
            "reference: more than half of its pairs coincide, so it sets no scale for the kernel; "
            "use a reference without repeats"
        )
    rates = [0.5 / (s**2 * median) for s in bandwidths]

    def mean_kernel(squares: np.ndarray) -> float:
        return float(np.mean([np.exp(-rate * squares).mean() for rate in rates]))

    between = mean_kernel(squared_distances(x, y))
    return mean_kernel(squared_gaps(x)) + mean_kernel(among_reference) - 2 * between
