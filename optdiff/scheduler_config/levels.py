"""Where each kind of scheduler class in diffusers (0.42) steps, and where it ends.

Functions of all fields of a class, by name: what a file says, and the class's defaults for the
rest. Which class has which is in `classes.py`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from optdiff import grids
from optdiff.grids.levels import decreasing
from optdiff.types import Grid, Levels, NoiseSchedule

Fields = Mapping[str, Any]
"""All fields of a class by name."""


def noise_of(fields: Fields) -> str:
    """Which kind of noise these fields speak of: by betas, flow (in two ways) or EDM."""
    if "sigma_data" in fields:
        return "edm"
    if "shift" in fields:
        return "flow_match"
    return "flow" if fields.get("use_flow_sigmas") else "betas"


def chosen(field: str, value: Any, known: Mapping[str, Any]) -> Any:
    """What a field's value stands for.

    Raises:
      ValueError: for a value that stands for nothing, naming it.

    >>> chosen("sigma_schedule", "karras", {"karras": 1})
    1
    """
    if value not in list(known):
        raise ValueError(f"{field} = {value!r} is not known; there is {', '.join(known)}")
    return known[value]


# Where they step.

_KINDS = {
    "use_karras_sigmas": grids.karras,
    "use_exponential_sigmas": grids.uniform_logsnr,
    "use_beta_sigmas": grids.beta,
    "use_lu_lambdas": grids.uniform_logsnr,
}


def _kind(fields: Fields) -> Grid | None:
    """Levels that are not those of timesteps."""
    asked = [name for name in _KINDS if fields.get(name)]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} ask for different levels")
    return _KINDS[asked[0]] if asked else None


def _refuse(fields: Fields, **neutral: Any) -> None:
    asked = [f"{k} = {fields[k]!r}" for k, v in neutral.items() if k in fields and fields[k] != v]
    if asked:
        raise ValueError(
            f"the checkpoint asks for levels that are not derived from its file: "
            f"{', '.join(asked)}; name a grid, such as karras"
        )


def _spaced(fields: Fields, leading: Grid, linspace: Grid) -> Grid:
    """By `timestep_spacing`, whose names are those of all classes, though the levels are not."""
    spacings = {
        "leading": partial(leading, steps_offset=fields["steps_offset"]),
        "trailing": grids.trailing,
        "linspace": linspace,
    }
    return chosen("timestep_spacing", fields["timestep_spacing"], spacings)


def ddim(fields: Fields) -> Grid:
    return _spaced(fields, grids.leading, grids.rounded_linspace)


def euler(fields: Fields) -> Grid:
    """Levels of another kind span those that the timesteps would have."""
    _refuse(fields, interpolation_type="linear")
    spaced, kind = _spaced(fields, grids.leading, grids.euler_linspace), _kind(fields)

    def grid(schedule, n):
        levels = spaced(schedule, n)
        if kind is None or n == 1:
            return levels
        low, high = _range(fields, float(levels[-1]), float(levels[0]))
        return kind(schedule, n, sigma_min=low, sigma_max=high)

    return grid


def dpm(fields: Fields) -> Grid:
    """Levels of another kind span all that were trained."""
    _refuse(fields, lambda_min_clipped=-np.inf)
    kind = _kind(fields)
    if noise_of(fields) == "flow":
        _refuse(
            fields, use_dynamic_shifting=False, shift_terminal=None, **dict.fromkeys(_KINDS, False)
        )
        return partial(_dpm_flow, shift=fields["flow_shift"])
    if kind is None:
        return _spaced(fields, grids.dpm_leading, grids.dpm_linspace)
    low, high = _range(fields, None, None)
    return partial(kind, sigma_min=low, sigma_max=high)


def _dpm_flow(schedule: NoiseSchedule, n: int, *, shift: float) -> Levels:
    """n times evenly spaced from `1 - 1/T` to 0, which is left out, then shifted."""
    shortest = schedule.sigma_min / (1 + schedule.sigma_min)
    return _at_flow_times(schedule, np.linspace(1 - shortest, 0, n + 1)[:-1], shift)


def singlestep(fields: Fields) -> Grid:
    return dpm({**fields, "timestep_spacing": "linspace", "steps_offset": 0})


def unipc(fields: Fields) -> Grid:
    grid = dpm(fields)
    return partial(_unipc_flow, shift=fields["flow_shift"]) if noise_of(fields) == "flow" else grid


def _unipc_flow(schedule: NoiseSchedule, n: int, *, shift: float) -> Levels:
    """n times evenly spaced from 1 to `1/T`, which is left out, then shifted."""
    shortest = schedule.sigma_min / (1 + schedule.sigma_min)
    return _at_flow_times(schedule, np.linspace(1, shortest, n + 1)[:-1], shift)


def _at_flow_times(schedule: NoiseSchedule, t: np.ndarray, shift: float) -> Levels:
    with np.errstate(divide="ignore"):
        return decreasing(np.minimum(shift * t / (1 - t), schedule.sigma_max))


def flow_match(fields: Fields) -> Grid:
    neutral = {"use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None}
    _refuse(fields, **neutral, **dict.fromkeys(_KINDS, False))
    return partial(grids.shifted_flow, shift=fields["shift"])


def distilled(fields: Fields) -> Grid:
    return partial(grids.skipping, original_steps=fields["original_inference_steps"])


def edm(fields: Fields) -> Grid:
    spacings = {"karras": partial(grids.karras, rho=fields["rho"])}
    spacings["exponential"] = grids.uniform_logsnr
    return chosen("sigma_schedule", fields["sigma_schedule"], spacings)


def _range(fields: Fields, low: float | None, high: float | None) -> tuple[Any, Any]:
    ends = fields.get("sigma_min"), fields.get("sigma_max")
    return low if ends[0] is None else ends[0], high if ends[1] is None else ends[1]


# Where they end.


def zero(fields: Fields, schedule: NoiseSchedule, levels: Levels) -> float:
    return 0.0


def lowest_trained(fields: Fields, schedule: NoiseSchedule, levels: Levels) -> float:
    return schedule.sigma_min


def final_alpha(fields: Fields, schedule: NoiseSchedule, levels: Levels) -> float:
    return 0.0 if fields["set_alpha_to_one"] else schedule.sigma_min


def final_sigmas(fields: Fields, schedule: NoiseSchedule, levels: Levels) -> float:
    ends = {"zero": 0.0, "sigma_min": schedule.sigma_min}
    return chosen("final_sigmas_type", fields["final_sigmas_type"], ends)


def stop(fields: Fields, schedule: NoiseSchedule, levels: Levels) -> float:
    """The lowest trained level, or where levels are not timesteps, the last of them again."""
    timesteps = _kind(fields) is None and noise_of(fields) != "flow"
    return schedule.sigma_min if timesteps else float(levels[-1])


def final_sigmas_or_stop(fields: Fields, schedule: NoiseSchedule, levels: Levels) -> float:
    return final_sigmas(fields, schedule, levels) and stop(fields, schedule, levels)


def always(fields: Fields, n: int) -> bool:
    return True


def unless_zero(fields: Fields, n: int) -> bool:
    """Its rule has logarithms of levels."""
    return fields.get("final_sigmas_type") != "zero"


def unless_short(fields: Fields, n: int) -> bool:
    """As `unless_zero`, and runs of fewer than 15 steps lower the order of the last to Euler's."""
    short = fields["lower_order_final"] and n < 15
    return unless_zero(fields, n) and not (short or fields.get("euler_at_final"))
