"""Restart: return to a higher noise level with fresh noise, and come down again.

Noise from far above contracts the errors that have gathered; the deterministic way down adds few.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.samplers.renoise import renoise
from optdiff.types import Levels, Sampler

SAME = 1e-5
"""How close a level is to `t_max`, relatively, to be it; float32 keeps 1e-7."""


def restart(inner: Sampler, t_min: float = 0.06, t_max: float = 0.3) -> Sampler:
    """Restart sampling (arXiv 2306.14878, eq. 2 and algorithm 1) on levels that name the restarts:
    a step to the level `t_max` goes to `t_min` with `inner` and adds `sqrt(t_max^2 - t_min^2) z`.

    `restart_levels` puts them into a grid; on one without, this is `inner`. Between restarts levels
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
    _require_interval(t_min, t_max)

    def down(sigma, sigma_next):
        again = jnp.abs(sigma_next - t_max) <= SAME * t_max
        return jnp.where(again, t_min, sigma_next)

    return renoise(inner, down)


def restart_levels(
    levels: Levels, t_min: float = 0.06, t_max: float = 0.3, *, count: int = 1, steps: int = 4
) -> Float[Array, "m"]:
    """Levels that return from `t_min` to `t_max` for so many times, with so many steps (spaced as
    EDM's, rho = 7) each time down again; then on to the lower levels.

    Args:
      levels: (n,) decreasing, the first above and the last not above `t_min`. One at `t_max` would
        be a restart, and is left out.
      t_min, t_max: the interval, as for `restart`.
      count: restarts, K in the paper.
      steps: in each.

    Returns:
      the levels above t_min, `count * steps` levels, t_min, and the levels below it.

    Raises:
      ValueError: if the interval is not within the levels.

    >>> restart_levels(jnp.array([4.0, 0.5]), 1.0, 2.0, count=2, steps=1).tolist()
    [4.0, 2.0, 2.0, 1.0, 0.5]
    """
    _require_interval(t_min, t_max)
    values = np.asarray(levels)
    if not values[0] > t_min >= values[-1]:
        raise ValueError(
            f"levels from {values[0]:.4g} to {values[-1]:.4g} do not pass t_min = {t_min}: choose "
            "an interval within them"
        )
    again = np.linspace(t_max ** (1 / 7), t_min ** (1 / 7), steps + 1)[:-1] ** 7
    again[0] = t_max
    others = values[np.abs(values - t_max) > SAME * t_max]
    above, below = others[others > t_min], others[others < t_min]
    return jnp.asarray(np.concatenate([above, np.tile(again, count), [t_min], below]), levels.dtype)


def _require_interval(t_min: float, t_max: float) -> None:
    if not 0.0 < t_min < t_max:
        raise ValueError(f"need 0 < t_min < t_max, got {t_min} and {t_max}")
