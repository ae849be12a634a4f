"""Metrics of two sets on features in place of pixels.

In pixels two images of one thing may lie farther apart than images of two things. The features of
a network that tells things apart put that right, and bring what they cannot see.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Reference, Samples, points

Features = Float[Array | np.ndarray, "b k"]


def on_features(
    metrics: Mapping[str, Callable[..., Any]], *, prefix: str = ""
) -> Callable[..., dict[str, float]]:
    """The same metrics on the features of samples and reference, which are made once for all.

    Args:
      metrics: by name, functions of `(samples, reference)` that return a number or a dict of them.
      prefix: before the name of each number, to say what it was measured on.

    Returns:
      A metric of `(samples, reference, features)`, `features` from images (b, ...) to (b, k); it
      raises what they raise.

    >>> from optdiff.metrics.energy_distance import energy_distance
    >>> described = on_features({"energy": energy_distance}, prefix="mean_")
    >>> described(np.zeros((4, 8)), np.ones((4, 8)), lambda images: images.mean(1, keepdims=True))
    {'mean_energy': 2.0}
    """

    def described(
        samples: Samples, reference: Reference, features: Callable[[Samples], Features]
    ) -> dict[str, float]:
        for name, images in (("samples", samples), ("reference", reference)):
            points(images, name)  # broken images may have whole features
        x, y = np.asarray(features(samples)), np.asarray(features(reference))
        values: dict[str, float] = {}
        for name, metric in metrics.items():
            value = metric(x, y)
            several = value if isinstance(value, Mapping) else {name: value}
            values |= {prefix + key: number for key, number in several.items()}
        return values

    return described


def unchanged(reference: Reference) -> Callable[[Samples], Samples]:
    """For `frechet(features=...)`: what is compared are features already.

    >>> unchanged(np.zeros((3, 2)))(np.ones((1, 2))).tolist()
    [[1.0, 1.0]]
    """
    return lambda samples: samples
