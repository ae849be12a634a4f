"""Grids that are lists: your own, and schedules published for a model."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from optdiff.grids.levels import decreasing, span
from optdiff.types import Levels, NoiseSchedule


def explicit(schedule: NoiseSchedule, n: int, *, levels: Sequence[float]) -> Levels:
    """Exactly these levels, for studies that bring their own grid.

    A level may stand twice in a row: PNDM evaluates anew at its second one, and on such a grid
    `plms` is its authors' sampler. All samplers stay finite there; to others than `plms` it is a
    step of zero length, which costs an evaluation and counts among those they remember.

    Raises:
      ValueError: if there are not n of them, one rises, or stands more than twice.
    """
    if len(levels) != n:
        raise ValueError(f"the explicit grid has {len(levels)} levels, but {n} were asked for")
    once = [level for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]]
    decreasing(np.asarray(once, np.float64))
    if any(levels[i] == levels[i + 2] for i in range(n - 2)):
        raise ValueError(f"a level stands at most twice in a row, got {list(levels)}")
    return jnp.asarray(levels, float)


def interpolated(schedule: NoiseSchedule, n: int, *, levels: Sequence[float]) -> Levels:
    """n levels along a list of any length, log sigma linear between its entries.

    The ends are kept, and at its own length the list is returned as it is.

    Args:
      schedule: must have been trained at all of the list's levels, but for 2% at the ends.
      n: number of levels; a single one is the highest.
      levels: at least two, decreasing.

    Raises:
      ValueError: for a list that does not decrease, or one made for another range of levels.

    >>> from optdiff.noise import variance_exploding
    >>> levels = interpolated(variance_exploding(), 5, levels=[64.0, 1.0, 0.25])
    >>> [round(s, 3) for s in levels.tolist()]
    [64.0, 8.0, 1.0, 0.5, 0.25]
    """
    span(schedule, n)
    table = np.asarray(decreasing(np.asarray(levels, np.float64)), np.float64)
    if len(table) < 2:
        raise ValueError("nothing to interpolate: the list has a single level")
    if table[0] > 1.02 * schedule.sigma_max or table[-1] < 0.98 * schedule.sigma_min:
        raise ValueError(
            f"a list of levels from {table[0]:g} to {table[-1]:g} is not for a model trained at "
            f"{schedule.sigma_max:g} to {schedule.sigma_min:g}; choose the list of this model"
        )
    at = np.linspace(0, len(table) - 1, n)
    return decreasing(np.exp(np.interp(at, np.arange(len(table)), np.log(table))))


def ays_sd15(schedule: NoiseSchedule, n: int) -> Levels:
    """Align Your Steps for Stable Diffusion 1.5 (arXiv 2404.14507, table 3), interpolated.

    The table holds 11 levels for 10 steps; with the last denoising they cost 11 evaluations.
    diffusers and ComfyUI leave out the last and go to zero from the one before: for theirs of n
    steps take `ays_sd15(schedule, n + 1)[:-1]`.

    >>> from optdiff.noise import scaled_linear
    >>> [round(s, 3) for s in ays_sd15(scaled_linear(), 6).tolist()]
    [14.615, 3.861, 1.886, 0.963, 0.399, 0.029]
    """
    return interpolated(schedule, n, levels=_SD15)


def ays_sdxl(schedule: NoiseSchedule, n: int) -> Levels:
    """Align Your Steps for SDXL (arXiv 2404.14507, table 3), interpolated as `ays_sd15`."""
    return interpolated(schedule, n, levels=_SDXL)


def ays_svd(schedule: NoiseSchedule, n: int) -> Levels:
    """Align Your Steps for Stable Video Diffusion (arXiv 2404.14507, table 3), interpolated as
    `ays_sd15`."""
    return interpolated(schedule, n, levels=_SVD)


_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
