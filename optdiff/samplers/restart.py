"""Restart: return to a higher noise level with fresh noise, and come down again.

Noise from far above contracts the errors that have gathered; the deterministic way down adds few.
"""

import jax.numpy as jnp

from optdiff.samplers.renoise import renoise
from optdiff.types import SAME_LEVEL, Sampler, within


@within(t_min="(0, inf)", t_max="(0, inf)")
def restart(inner: Sampler, t_min: float = 0.06, t_max: float = 0.3) -> Sampler:
    """Restart sampling (arXiv 2306.14878, eq. 2 and algorithm 1) on levels that name the restarts:
    a step to the level `t_max` goes to `t_min` with `inner` and adds `sqrt(t_max^2 - t_min^2) z`.

    The grid `with_restarts` has them; on one without, this is `inner`. Between restarts levels
    fall, and there they rise. As the step below the restart is `inner`'s own, no evaluation is
    spent on going back. For several intervals wrap several times. Affine if `inner` is.

    Args:
      inner: takes the steps down; Heun in the paper. It should have no memory, which would reach
        across the restart.
      t_min, t_max: the interval, `0 < t_min < t_max`.

    Raises:
      ValueError: if it is no interval.

    >>> from optdiff.samplers import heun
    >>> sampler = restart(heun(), t_min=0.06, t_max=0.3)
    """
    if not 0.0 < t_min < t_max:
        raise ValueError(f"need 0 < t_min < t_max, got {t_min} and {t_max}")

    def down(sigma, sigma_next):
        again = jnp.abs(sigma_next - t_max) <= SAME_LEVEL * t_max
        return jnp.where(again, t_min, sigma_next)

    return renoise(inner, down)
