"""CLIPScore: how well images agree with their captions in the eyes of a CLIP.

Only as good as its CLIP, and of a scale of its own: figures of different CLIPs do not compare, and
neither do these with figures made by OpenAI's. Real images with their captions give the ceiling.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Samples, points


def clip_score(
    samples: Samples,
    cond: Any,
    agreement: Callable[[Samples, Any], Float[Array | np.ndarray, "b"]],
    *,
    weight: float = 2.5,
) -> float:
    """`mean_i w max(cos(image_i, text_i), 0)` (arXiv 2104.08718, section 3).

    With the paper's `w = 2.5`; `weight=1` is the mean cosine itself where none is negative.
    torchmetrics has w = 100. Without the paper's prefix "A photo depicts", which our captions do
    not need.

    Args:
      samples: (b, ...) images.
      cond: what each was told.
      agreement: from images and conditions to the cosine of each image with its own text, (b,).
      weight: w.

    Returns:
      In [0, w]; more is better.

    Raises:
      ValueError: if some samples are not finite (it says how many).

    >>> clip_score(np.zeros((2, 4)), None, lambda images, cond: np.array([0.5, -0.3]))
    0.625
    """
    points(samples)
    cosines = np.asarray(agreement(samples, cond)).astype(np.float64)
    return float(weight * np.mean(np.maximum(cosines, 0.0)))
