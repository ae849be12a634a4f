"""Grids in the time that a model was trained in: its timesteps, evenly spaced or not.

What checkpoints ask for is among them (`scheduler_config` chooses). `t` of a schedule may be any
rising function of the level; those that count timesteps need a schedule trained at integer ones. A
single level is the highest.
"""

import jax.numpy as jnp
import numpy as np
from scipy import special

from optdiff.grids.levels import decreasing, span
from optdiff.types import Levels, NoiseSchedule, within


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
      n: number of levels, at most T; a single one is the highest, where diffusers has the lowest,
        at which there is no noise to start from.
      steps_offset: the last and lowest timestep.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(leading(schedule, 4, steps_offset=1)).round().tolist()
    [751.0, 501.0, 251.0, 1.0]
    """
    count = _timesteps(schedule, n)
    timesteps = np.arange(n)[::-1] * (count // n) + steps_offset
    return _at_timesteps(schedule, timesteps if n > 1 else np.array([count - 1]))


@within(steps_offset="[0, inf)")
def dpm_leading(schedule: NoiseSchedule, n: int, *, steps_offset: int = 0) -> Levels:
    """What diffusers' multistep solvers (DPM-Solver, UniPC, DEIS, SA-Solver) call "leading": every
    floor(T/(n+1))-th of T trained timesteps from `steps_offset` up, but for the lowest.

    Args:
      schedule: trained at T integer timesteps.
      n: number of levels, less than T; a single one is the highest.
      steps_offset: what all timesteps are raised by.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(dpm_leading(schedule, 4, steps_offset=1)).round().tolist()
    [801.0, 601.0, 401.0, 201.0]
    """
    count = _timesteps(schedule, n)
    if 1 < n == count:
        raise ValueError(f"{n} levels asked for, of {count} trained timesteps without the lowest")
    timesteps = np.arange(1, n + 1)[::-1] * (count // (n + 1)) + steps_offset
    return _at_timesteps(schedule, timesteps if n > 1 else np.array([count - 1]))


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
    """`linspace` at the nearest trained timesteps, as diffusers' DDIM has it. A single level is the
    highest, not the lowest as theirs."""
    return _at_timesteps(schedule, np.round(np.linspace(_timesteps(schedule, n) - 1, 0, n)))


def dpm_linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """What diffusers' multistep solvers call "linspace": n + 1 timesteps evenly spaced and rounded,
    of which the lowest is left out.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(dpm_linspace(schedule, 4)).round().tolist()
    [999.0, 749.0, 500.0, 250.0]
    """
    timesteps = np.round(np.linspace(0, _timesteps(schedule, n) - 1, n + 1))
    return _at_timesteps(schedule, timesteps[:0:-1])


def euler_linspace(schedule: NoiseSchedule, n: int) -> Levels:
    """`linspace` as k-diffusion's samplers have it in diffusers (Euler, Heun, LMS): timesteps are
    not rounded, and between two of them sigma itself is linear, not its logarithm."""
    t = np.linspace(_timesteps(schedule, n) - 1, 0, n)
    below, above = (np.asarray(schedule.sigma(jnp.asarray(f(t)))) for f in (np.floor, np.ceil))
    return decreasing(below + (t - np.floor(t)) * (above - below))


@within(original_steps="[1, inf)")
def skipping(schedule: NoiseSchedule, n: int, *, original_steps: int = 50) -> Levels:
    """n of the levels that a latent consistency model was distilled at (arXiv 2310.04378, section
    4.3), which are `original_steps` evenly spaced timesteps up to the last: as diffusers' LCM and
    TCD, those at `floor(i original_steps / n)` from the top.

    Args:
      schedule: trained at T integer timesteps.
      n: number of levels, at most `original_steps`.
      original_steps: of the distillation.

    >>> from optdiff.noise import scaled_linear
    >>> schedule = scaled_linear()
    >>> schedule.t(skipping(schedule, 4)).round().tolist()
    [999.0, 759.0, 499.0, 259.0]
    """
    count = _timesteps(schedule, n)
    if not n <= original_steps <= count:
        raise ValueError(
            f"{n} levels of the {original_steps} that the model was distilled at ({count} trained)"
        )
    distilled = np.arange(original_steps, 0, -1) * (count // original_steps) - 1
    return _at_timesteps(schedule, distilled[np.arange(n) * original_steps // n])


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
