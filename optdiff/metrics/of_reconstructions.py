"""What the autoencoder costs: metrics of real images that went through it, in the samples' place.

A sampler in latents can do no better than real images encoded and decoded. What these score is the
scale on which to read what samples score.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Reference, Samples


def of_reconstructions(metric: Callable[..., Any]) -> Callable[..., Any]:
    """The same metric of reconstructions, which no sampler has a part in.

    Args:
      metric: of `(samples, reference, features)`, such as `on_features` makes.

    Returns:
      A metric of `(cond, reference, features, reconstructions)`, `reconstructions` from conditions
      to real images of them that were encoded and decoded; it raises what the metric raises.

    >>> shift = of_reconstructions(lambda samples, reference, features: samples[0] - reference[0])
    >>> shift(None, np.zeros(2), lambda images: images, lambda cond: np.ones(2)).item()
    1.0
    """

    def reconstructed(
        cond: Any,
        reference: Reference,
        features: Callable[[Samples], Any],
        reconstructions: Callable[[Any], Float[Array | np.ndarray, "m ..."]],
    ) -> Any:
        return metric(reconstructions(cond), reference, features)

    return reconstructed
