"""A learning-rate schedule that fits whatever number of steps it is given; for others, optax."""

import optax


def warm_cosine(
    peak: float, steps: int, *, warmup: float = 0.05, end: float = 0.01
) -> optax.Schedule:
    """Linear from 0 to `peak`, then half a cosine down to `end * peak` (arXiv 1608.03983, eq. 5).

    Args:
      peak: the highest rate.
      steps: updates in all.
      warmup: share of them until the peak.
      end: what is left of the peak after the last, as a share.

    >>> rate = warm_cosine(1e-3, 100)
    >>> [round(float(rate(step)), 6) for step in (0, 5, 100)]
    [0.0, 0.001, 1e-05]
    """
    rising = min(max(1, round(warmup * steps)), max(steps - 1, 1))
    return optax.warmup_cosine_decay_schedule(0.0, peak, rising, max(steps, 2), end * peak)
