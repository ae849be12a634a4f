"""Grids: where to step. Each is a function of a noise schedule and the number of levels.

A grid returns n levels, decreasing, the first of them the highest; the driver's `finish` owns what
happens after the last. "Schedule" is what the model was trained on, "grid" where we step.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from optdiff.types import Grid, Levels, NoiseSchedule

SIGMA_CAP = 80.0
"""Where a grid starts if the schedule has no highest level (zero terminal SNR, flow)."""


def karras(
    schedule: NoiseSchedule,
    n: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """`sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho`.

    EDM, arXiv 2206.00364, eq. 5.

    Args:
      schedule: gives the range unless `sigma_min` or `sigma_max` narrow it.
      n: number of levels, at least 1; a single level is `sigma_max`.
      rho: 1 is linear in sigma; larger puts more levels near zero; towards infinity, exponential.

    Returns:
      (n,) levels from `sigma_max` to `sigma_min`.

    >>> from optdiff.noise import variance_exploding
    >>> [round(s, 3) for s in karras(variance_exploding(), 3).tolist()]
    [80.0, 2.515, 0.002]
    """
    low, high = _range(schedule, n, sigma_min, sigma_max)
    return _levels(np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho)


def uniform_logsnr(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Levels in geometric progression, hence uniform in log SNR (arXiv 2206.00927, section 3.4).

    >>> from optdiff.noise import variance_exploding
    >>> uniform_logsnr(variance_exploding(0.01, 100.0), 3).tolist()
    [100.0, 1.0, 0.01]
    """
    low, high = _range(schedule, n, sigma_min, sigma_max)
    return _levels(np.geomspace(high, low, n))


def linear_sigma(
    schedule: NoiseSchedule,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Levels uniform in sigma: every step removes the same noise (Karras with `rho = 1`)."""
    return karras(schedule, n, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max)


def linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """n levels at evenly spaced trained times, both ends included (diffusers' "linspace")."""
    low, high = _range(schedule, n, None, None)
    start, stop = (np.asarray(schedule.t(jnp.asarray(s)), np.float64) for s in (high, low))
    return _levels(np.asarray(schedule.sigma(jnp.asarray(np.linspace(start, stop, n)))))


def leading(schedule: NoiseSchedule, n: int, *, steps_offset: int = 0) -> Levels:
    """Every floor(T/n)-th of T trained timesteps, from `steps_offset` up (arXiv 2305.08891, table
    2): what diffusers calls "leading", the spacing of SD 1.x, 2.x and SDXL with an offset of 1.

    Args:
      schedule: trained at T integer timesteps.
      n: number of levels, at most T.
      steps_offset: the last and lowest timestep.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(leading(schedule, 4, steps_offset=1)).round().tolist()
    [751.0, 501.0, 251.0, 1.0]
    """
    stride = _timesteps(schedule, n) // n
    return _at(schedule, np.arange(n)[::-1] * stride + steps_offset)


def trailing(schedule: NoiseSchedule, n: int) -> Levels:
    """n of T trained timesteps counted from the last one down, `round(T - i T/n) - 1`
    (arXiv 2305.08891, table 2): begins in pure noise, as few-step and zero-SNR models need.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(trailing(schedule, 4)).round().tolist()
    [999.0, 749.0, 499.0, 249.0]
    """
    count = _timesteps(schedule, n)
    return _at(schedule, np.round(count - np.arange(n) * (count / n)) - 1)


def rounded_linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """`linspace` at the nearest trained timesteps, as diffusers' DDIM and DPM-Solver have it (its
    Euler does not round). A single level is the highest, not the lowest as theirs."""
    return _at(schedule, np.round(np.linspace(_timesteps(schedule, n) - 1, 0, n)))


def shifted_flow(schedule: NoiseSchedule, n: int, *, shift: float = 1.0) -> Levels:
    """Flow times evenly spaced, then moved towards the noise: sigma is multiplied by `shift`.

    `t' = shift t / (1 + (shift - 1) t)` (arXiv 2403.03206, eq. 23), which for `sigma = t / (1 - t)`
    is `sigma' = shift sigma`.

    Args:
      schedule: of a flow model.
      n: number of levels.
      shift: 1 is even spacing.
    """
    low, high = _range(schedule, n, None, None)
    low *= shift  # as in diffusers, where the lowest time is shifted before times are spaced
    t = np.linspace(high / (1 + high), low / (1 + low), n)
    return _levels(np.minimum(shift * t / (1 - t), high))


def from_scheduler_config(config: Mapping[str, Any]) -> Grid:
    """The grid that a checkpoint's `scheduler_config.json` asks for, as DDIM reads it.

    `timestep_spacing` ("leading" if absent) with `steps_offset`, or `shift` for flow models.

    Args:
      config: the parsed file.

    Returns:
      A grid of the schedule that `noise.from_scheduler_config` makes of the same file.

    Raises:
      ValueError: if the file asks for levels of another kind, naming field and value.

    >>> grid = from_scheduler_config({"timestep_spacing": "trailing"})
    """
    asked = [f"{name} = {config[name]!r}" for name in _OTHER_LEVELS if config.get(name)]
    if config.get("interpolation_type", "linear") != "linear":
        asked.append(f"interpolation_type = {config['interpolation_type']!r}")
    if asked:
        raise ValueError(
            f"the checkpoint asks for levels that are not derived from its file: "
            f"{', '.join(asked)}; name a grid, such as karras"
        )
    if "shift" in config or config.get("use_flow_sigmas"):
        return partial(shifted_flow, shift=config.get("shift", config.get("flow_shift", 1.0)))
    spacings = {
        "leading": partial(leading, steps_offset=config.get("steps_offset", 0)),
        "trailing": trailing,
        "linspace": rounded_linspace,
    }
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in spacings:
        known = ", ".join(spacings)
        raise ValueError(f"timestep_spacing = {spacing!r} is not known; there is {known}")
    return spacings[spacing]


_OTHER_LEVELS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
)


def explicit(schedule: NoiseSchedule, n: int, *, levels: Sequence[float]) -> Levels:
    """Exactly these levels, for studies that bring their own grid.

    Raises:
      ValueError: if there are not n of them or they do not decrease.
    """
    if len(levels) != n:
        raise ValueError(f"the explicit grid has {len(levels)} levels, but {n} were asked for")
    return _levels(np.asarray(levels, np.float64))


def _timesteps(schedule: NoiseSchedule, n: int) -> int:
    """How many integer timesteps a schedule was trained at; enough of them for n levels."""
    if n < 1:
        raise ValueError(f"a grid needs at least one level, not {n}")
    if not np.isfinite(schedule.sigma_max):
        raise ValueError("a schedule without a highest level has no last timestep; cap its table")
    count = round(float(schedule.t(jnp.asarray(schedule.sigma_max)))) + 1
    if n > count:
        raise ValueError(f"{n} levels asked for, but the schedule has {count} trained timesteps")
    return count


def _at(schedule: NoiseSchedule, timesteps: np.ndarray) -> Levels:
    last = _timesteps(schedule, len(timesteps)) - 1
    if timesteps[0] > last or timesteps[-1] < 0:
        raise ValueError(
            f"timesteps {timesteps[0]:g} to {timesteps[-1]:g} are not all trained: those are "
            f"{last} to 0; ask for fewer levels or another steps_offset"
        )
    return _levels(np.asarray(schedule.sigma(jnp.asarray(timesteps, float))))


def _range(schedule, n, sigma_min, sigma_max) -> tuple[float, float]:
    if n < 1:
        raise ValueError(f"a grid needs at least one level, not {n}")
    low = schedule.sigma_min if sigma_min is None else sigma_min
    top = schedule.sigma_max if np.isfinite(schedule.sigma_max) else SIGMA_CAP
    high = top if sigma_max is None else sigma_max
    if not 0.0 < low < high < np.inf:
        raise ValueError(f"need 0 < sigma_min < sigma_max, finite, got {low} and {high}")
    return low, high


def _levels(levels: np.ndarray) -> Levels:
    if not (np.isfinite(levels).all() and np.all(levels > 0) and np.all(np.diff(levels) < 0)):
        raise ValueError(
            f"noise levels must be finite, positive and decrease, got {levels.tolist()}"
        )
    return jnp.asarray(levels, float)
