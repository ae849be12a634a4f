"""Latent error: the trajectory error before decoding, where samplers walk.

Autoencoders bend space: what is small in latents may show in images, and the other way round.
"""

import numpy as np
from jaxtyping import Array, Float

from optdiff.metrics.points import Samples
from optdiff.metrics.trajectory_error import trajectory_error


def latent_error(x0: Samples, x0_exact: Float[Array | np.ndarray, "b ..."]) -> float:
    """`trajectory_error` of what the sampler returned, not of the images made of it.

    Args:
      x0: (b, ...), where the sampler ended.
      x0_exact: (b, ...), where each one's own noise should have led.

    Returns:
      At least 0, in the units of one latent: those of Stable Diffusion have about unit variance.

    Raises:
      ValueError: as `trajectory_error`.

    >>> latent_error(np.zeros((4, 8, 8, 4)), np.full((4, 8, 8, 4), 0.5))
    0.5
    """
    return trajectory_error(x0, x0_exact)
