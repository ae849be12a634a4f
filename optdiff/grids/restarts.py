"""Grids that return to a higher level, for the sampler `restart`: the only ones that ever rise."""

from itertools import takewhile

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from optdiff.grids.levels import karras, span
from optdiff.types import SAME_LEVEL, Grid, Levels, NoiseSchedule, within


def restart_levels(
    levels: Levels, t_min: float = 0.06, t_max: float = 0.3, *, count: int = 1, steps: int = 4
) -> Float[Array, "m"]:
    """Levels that return from `t_min` to `t_max` for so many times, with so many steps (spaced as
    EDM's, rho = 7) each time down again; then on to the lower levels (arXiv 2306.14878,
    algorithm 1).

    Args:
      levels: (n,) decreasing, the first above and the last not above `t_min`. A later one at
        `t_max` would be a restart, and is left out.
      t_min, t_max: the interval, `0 < t_min < t_max`; that of the sampler.
      count: restarts, K in the paper.
      steps: in each.

    Returns:
      the levels above t_min, `count * steps` levels, t_min, and the levels below it.

    Raises:
      ValueError: if the interval is none, or is not within the levels.

    >>> restart_levels(jnp.array([4.0, 0.5]), 1.0, 2.0, count=2, steps=1).tolist()
    [4.0, 2.0, 2.0, 1.0, 0.5]
    """
    if not 0.0 < t_min < t_max:
        raise ValueError(f"need 0 < t_min < t_max, got {t_min} and {t_max}")
    values = np.asarray(levels)
    if not values[0] > t_min * (1 + SAME_LEVEL) >= values[-1]:
        raise ValueError(
            f"levels from {values[0]:.4g} to {values[-1]:.4g} do not pass t_min = {t_min}: choose "
            "an interval within them"
        )
    once = np.linspace(t_max ** (1 / 7), t_min ** (1 / 7), steps + 1)[:-1] ** 7
    once[0] = t_max
    at_an_end = np.isclose(values[:, None], [t_min, t_max], rtol=SAME_LEVEL, atol=0).any(axis=1)
    at_an_end[0] = False  # where sampling starts
    others = values[~at_an_end]
    above, below = others[others > t_min], others[others < t_min]
    return jnp.asarray(np.concatenate([above, np.tile(once, count), [t_min], below]), levels.dtype)


@within(t_min="(0, inf)", t_max="(0, inf)", count="[0, inf)", steps="[1, inf)")
def with_restarts(
    schedule: NoiseSchedule,
    n: int,
    *,
    grid: Grid = karras,
    t_min: float = 0.06,
    t_max: float = 0.3,
    count: int = 2,
    steps: int = 3,
) -> Levels:
    """`restart_levels` of a grid, n of them in all: for `restart(inner, t_min, t_max)`, which adds
    the noise that a rising level means. No other sampler does.

    Half of the levels at least are the grid's own, so that few levels have fewer restarts than
    `count`, and very few none: they are the grid as it is.

    Args:
      schedule: as for the grid.
      n: number of levels, at least 1.
      grid: the levels between which the restarts are.
      t_min, t_max: the sampler's interval.
      count, steps: how many restarts, and how many steps down in each.

    Raises:
      ValueError: if the interval is none, or is not within the grid.

    >>> from optdiff.noise import variance_exploding
    >>> levels = with_restarts(variance_exploding(0.01, 10.0), 8)
    >>> [round(s, 2) for s in levels.tolist()]
    [10.0, 1.94, 0.23, 0.3, 0.18, 0.11, 0.06, 0.01]
    """
    span(schedule, n)
    count = min(count, (n // 2 - 1) // steps)
    if count < 1:
        return grid(schedule, n)
    # What the restarts and t_min leave is the grid's. Its levels at t_min and t_max are left out,
    # and up to two more take their places.
    own = n - count * steps - 1
    candidates = (
        restart_levels(grid(schedule, own + more), t_min, t_max, count=count, steps=steps)
        for more in range(3)
    )
    return list(takewhile(lambda levels: len(levels) <= n, candidates))[-1]
