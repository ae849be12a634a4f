"""Memorization: are samples copies of what the generator learnt from?

Distances to the nearest training example mean nothing alone: real examples that nobody learnt from
say how near an honest one comes by chance.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Points, Reference, Samples, points, squared_distances

PAIRS_AT_ONCE = 2**24
"""Distances held in memory at a time: 128 MiB of them."""


def memorization(
    samples: Samples,
    training: Reference,
    held_out: Float[Array | np.ndarray, "m ..."],
    *,
    percentile: float = 1.0,
) -> float:
    """Share of samples nearer to a training example than all but the nearest held-out ones.

    `mean_i [d(x_i) < q]`, `d(x) = min_j |x - t_j|` over the training examples and q the given
    percentile of `d` over the held-out ones (linear between them). Samples as new as the held-out
    examples get `percentile / 100` in the mean, copies 1. A generator of blurred or odd samples
    gets less than that: this sees copying and nothing else. It is done on features, and sees what
    these see.

    Args:
      samples: (b, ...), features as a rule.
      training: (n, ...), what the generator learnt from.
      held_out: (m, ...), real and learnt by none, made and described as the samples are.
      percentile: in (0, 100].

    Returns:
      In [0, 1]; less is better, and about `percentile / 100` is no sign of memory.

    Raises:
      ValueError: if shapes differ, the percentile is none, or some samples are not finite (it says
        how many).

    >>> grid = np.linspace(0.0, 1.0, 11).reshape(11, 1)
    >>> memorization(grid, grid, grid + 0.03), memorization(grid + 0.04, grid, grid + 0.03)
    (1.0, 0.0)
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile}: must lie in (0, 100]")
    given = {"samples": samples, "training": training, "held_out": held_out}
    if len({values.shape[1:] for values in given.values()}) > 1:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in given.items())
        raise ValueError(f"{shapes} must agree after the first axis")
    x, learnt, others = (points(values, name) for name, values in given.items())
    mean = learnt.mean(axis=0)
    near, honest = (_nearest(values - mean, learnt - mean) for values in (x, others))
    return float(np.mean(near < np.percentile(honest, percentile)))


def stroke_memorization(
    samples: Samples,
    reference: Reference,
    cond: Any,
    stroke_features: Callable[[Samples, Any], Float[Array | np.ndarray, "_ f"]],
    learnt_strokes: Float[Array | np.ndarray, "_ f"],
    *,
    percentile: float = 1.0,
) -> float:
    """`memorization` of what images show, cleared of what their conditions ask for.

    A copied stroke in another colour or place is a copy still; so the conditions' part is taken out
    of samples and of the real, held-out reference alike.

    Args:
      samples: (b, ...) images.
      reference: (b, ...) real images that nobody learnt from, of the same conditions.
      cond: what each was asked to be.
      stroke_features: from images and conditions to features (b, f) of the strokes alone.
      learnt_strokes: (n, f), those of what the generator learnt from.
      percentile: as for `memorization`.

    Returns:
      As `memorization`, and raises what it raises.

    >>> learnt = np.linspace(0.0, 1.0, 11).reshape(11, 1)
    >>> images = np.concatenate([learnt, np.full((11, 1), 7.0)], axis=1)
    >>> stroke_memorization(images, images + 0.03, None, lambda x, cond: x[:, :1], learnt)
    1.0
    """
    points(samples)
    strokes, honest = (np.asarray(stroke_features(x, cond)) for x in (samples, reference))
    return memorization(strokes, np.asarray(learnt_strokes), honest, percentile=percentile)


def copied_memorization(
    reference: Reference,
    cond: Any,
    stroke_features: Callable[[Samples, Any], Float[Array | np.ndarray, "_ f"]],
    learnt_strokes: Float[Array | np.ndarray, "_ f"],
    copies: Callable[[Any], Samples],
    *,
    percentile: float = 1.0,
) -> float:
    """`stroke_memorization` of a generator that does nothing but copy: what memory looks like.

    Without it a low share says nothing, for features might be blind to copies.

    Args:
      copies: from conditions to images of them by strokes that the generator learnt from.
      reference, cond, stroke_features, learnt_strokes, percentile: as for `stroke_memorization`.

    Returns:
      In [0, 1]; the nearer to 1, the better copies are recognized. Raises what that raises.

    >>> learnt = np.linspace(0.0, 1.0, 11).reshape(11, 1)
    >>> copied_memorization(learnt + 0.03, None, lambda x, cond: x, learnt, lambda cond: learnt)
    1.0
    """
    made = copies(cond)
    return stroke_memorization(
        made, reference, cond, stroke_features, learnt_strokes, percentile=percentile
    )


def _nearest(x: Points, y: Points) -> np.ndarray:
    """Distance from each x to the nearest y, a few of x at a time: y may be many."""
    at_once = max(1, PAIRS_AT_ONCE // len(y))
    squares = [
        squared_distances(x[first : first + at_once], y).min(axis=1)
        for first in range(0, len(x), at_once)
    ]
    return np.sqrt(np.concatenate(squares))
