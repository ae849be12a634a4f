"""Grids in the time that a model was trained in: its timesteps, evenly spaced or not.

What a checkpoint asks for is among them. `t` of a schedule may be any rising function of the level;
those that count timesteps need a schedule trained at integer ones.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from optdiff.grids.levels import decreasing, karras, span, uniform_logsnr
from optdiff.types import Grid, Levels, NoiseSchedule, within


def linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """n levels at evenly spaced trained times, both ends included (diffusers' "linspace")."""
    return _at_times(schedule, np.linspace(*_times(schedule, n), n))


@within(power="(0, inf)")
def polynomial(schedule: NoiseSchedule, n: int, *, power: float = 2.0) -> Levels:
    """`t_i = (t_max^(1/power) + i/(n-1) (t_min^(1/power) - t_max^(1/power)))^power`, trained times.

    With a power of 2, DDIM's "quadratic" times `t_i = c i^2` (arXiv 2010.02502, appendix D.2), here
    not rounded to trained timesteps, of which the lowest would coincide. Where time is the noise
    level it is `karras`.

    Args:
      schedule: its times must not be negative; both ends are kept.
      n: number of levels; a single one is the highest.
      power: 1 is `linspace`; larger puts more levels near zero.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(polynomial(schedule, 4)).round().tolist()
    [999.0, 444.0, 111.0, 0.0]
    """
    first, last = _times(schedule, n)
    return _at_times(schedule, np.linspace(first ** (1 / power), last ** (1 / power), n) ** power)


@within(alpha="(0, inf)", beta="(0, inf)")
def beta_time(schedule: NoiseSchedule, n: int, *, alpha: float = 0.6, beta: float = 0.6) -> Levels:
    """`t_i = t_min + F^-1(1 - i/(n-1)) (t_max - t_min)` in trained time, F the beta distribution's.

    Beta sampling (arXiv 2407.12173, section 3): most steps early and late, where an image's low
    and high frequencies form. Times are not rounded to trained timesteps. `beta` is what diffusers
    makes of it.

    Args:
      schedule: both ends of its range are kept.
      n: number of levels; a single one is the highest.
      alpha, beta: less than 1 gathers levels at the lowest (alpha) and the highest (beta) time; 1
        and 1 are `linspace`.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(beta_time(schedule, 5)).round().tolist()
    [999.0, 823.0, 500.0, 176.0, 0.0]
    """
    first, last = _times(schedule, n)
    share = special.betaincinv(alpha, beta, np.linspace(1, 0, n))
    return _at_times(schedule, last + share * (first - last))


@within(steps_offset="[0, inf)")
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
    return _at_timesteps(schedule, np.arange(n)[::-1] * stride + steps_offset)


def trailing(schedule: NoiseSchedule, n: int) -> Levels:
    """n of T trained timesteps counted from the last one down, `round(T - i T/n) - 1`
    (arXiv 2305.08891, table 2): begins in pure noise, as few-step and zero-SNR models need.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(trailing(schedule, 4)).round().tolist()
    [999.0, 749.0, 499.0, 249.0]
    """
    count = _timesteps(schedule, n)
    return _at_timesteps(schedule, np.round(count - np.arange(n) * (count / n)) - 1)


def rounded_linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """`linspace` at the nearest trained timesteps, as diffusers' DDIM and DPM-Solver have it (its
    Euler does not round). A single level is the highest, not the lowest as theirs."""
    return _at_timesteps(schedule, np.round(np.linspace(_timesteps(schedule, n) - 1, 0, n)))


@within(shift="(0, inf)")
def shifted_flow(schedule: NoiseSchedule, n: int, *, shift: float = 1.0) -> Levels:
    """Flow times evenly spaced, then moved towards the noise: sigma is multiplied by `shift`.

    `t' = shift t / (1 + (shift - 1) t)` (arXiv 2403.03206, eq. 23), which for `sigma = t / (1 - t)`
    is `sigma' = shift sigma`.

    Args:
      schedule: of a flow model.
      n: number of levels.
      shift: 1 is even spacing.
    """
    low, high = span(schedule, n)
    low *= shift  # as in diffusers, where the lowest time is shifted before times are spaced
    t = np.linspace(high / (1 + high), low / (1 + low), n)
    return decreasing(np.minimum(shift * t / (1 - t), high))


def from_scheduler_config(config: Mapping[str, Any]) -> Grid:
    """The grid that a checkpoint's `scheduler_config.json` asks for, as DDIM reads it.

    `timestep_spacing` ("leading" if absent) with `steps_offset`, or `shift` for flow models, or
    `sigma_schedule` with `rho` for EDM's.

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
    if str(config.get("_class_name")).startswith("EDM"):
        rho = config.get("rho", 7.0)
        spacings = {"karras": partial(karras, rho=rho), "exponential": uniform_logsnr}
        return _chosen("sigma_schedule", config.get("sigma_schedule", "karras"), spacings)
    spacings = {
        "leading": partial(leading, steps_offset=config.get("steps_offset", 0)),
        "trailing": trailing,
        "linspace": rounded_linspace,
    }
    return _chosen("timestep_spacing", config.get("timestep_spacing", "leading"), spacings)


def _chosen(field: str, value: Any, known: Mapping[str, Grid]) -> Grid:
    if value not in known:
        raise ValueError(f"{field} = {value!r} is not known; there is {', '.join(known)}")
    return known[value]


_OTHER_LEVELS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
)


def _times(schedule: NoiseSchedule, n: int) -> tuple[float, float]:
    """The trained times of the highest and of the lowest level."""
    low, high = span(schedule, n)
    return float(schedule.t(jnp.asarray(high))), float(schedule.t(jnp.asarray(low)))


def _at_times(schedule: NoiseSchedule, times: np.ndarray) -> Levels:
    return decreasing(np.asarray(schedule.sigma(jnp.asarray(times))))


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


def _at_timesteps(schedule: NoiseSchedule, timesteps: np.ndarray) -> Levels:
    last = _timesteps(schedule, len(timesteps)) - 1
    if timesteps[0] > last or timesteps[-1] < 0:
        raise ValueError(
            f"timesteps {timesteps[0]:g} to {timesteps[-1]:g} are not all trained: those are "
            f"{last} to 0; ask for fewer levels or another steps_offset"
        )
    return _at_times(schedule, timesteps)
