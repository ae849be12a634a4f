"""From configurations to objects: what each `_target_` takes is checked, then it is built."""

import functools
import inspect
import json
import sys
import typing
from collections.abc import Mapping
from typing import Any

from _errors import ConfigError, closest
from hydra._internal.utils import _locate  # what `get_object` logs errors around
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from optdiff.types import check_range


def check_targets(config: Any, where: str) -> None:
    """Refuse parameters that a `_target_` does not take, and values that it cannot, before anything
    is built or compiled.

    Raises:
      ConfigError: naming the parameter, where it stands and the closest valid one, or its range.
    """
    if isinstance(config, dict):
        if "_target_" in config:
            _check_call(config, where)
        for key, value in config.items():
            check_targets(value, f"{where}.{key}")
    elif isinstance(config, list):
        for i, value in enumerate(config):
            check_targets(value, f"{where}[{i}]")


def text(config: Any) -> str:
    """Plain data as JSON, in its own order: the first metric is the primary one."""
    return json.dumps(config)


def build(config: Any) -> Any:
    """Instantiate plain data: the objects that its `_target_`s name."""
    return instantiate(config, _convert_="all")


@functools.lru_cache(maxsize=64)
def build_once(config: str) -> Any:
    """Instantiate JSON, and return the same object for the same text: jobs share their problem."""
    return build(json.loads(config))


def constructed(where: str, config: Any) -> Any:
    """Build once what a constructor accepts.

    Raises:
      ConfigError: with what it says of its arguments.
    """
    try:
        return build_once(text(config))
    except InstantiationException as error:
        cause = error.__cause__ or error
        said = str(cause) if isinstance(cause, ValueError | OSError) else repr(cause)
        raise ConfigError(f"{where}: {said}") from error


def whole_numbers(config: dict[str, Any], least: Mapping[str, int | None]) -> dict[str, Any]:
    """A configuration whose entries of these names, dots and all, are whole numbers.

    Raises:
      ConfigError: naming those that are none, or below their least.
    """
    config, wrong = json.loads(text(config)), []
    for name, low in least.items():
        *above, last = name.split(".")
        entry = functools.reduce(dict.__getitem__, above, config)
        if isinstance(entry[last], float) and entry[last].is_integer():
            entry[last] = int(entry[last])
        if type(entry[last]) is not int or (low is not None and entry[last] < low):
            bound = "" if low is None else f" of at least {low}"
            wrong.append(f"{name} = {entry[last]!r} must be a whole number{bound}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return config


def folder_path(name: str, value: Any) -> str:
    """A path that an entry of the configuration gives; 20241130 is one too.

    Raises:
      ConfigError: if it is none.
    """
    path = str(value) if type(value) is int else value
    if not isinstance(path, str) or not path.strip() or not path.isprintable():
        raise ConfigError(f"{name} = {value!r} is no path; quote what looks like a number")
    return path


def folder_name(name: str, value: Any) -> str:
    """The name of one folder, inside of another.

    Raises:
      ConfigError: for a path, a hidden one, or none at all.
    """
    folder = folder_path(name, value)
    if folder.startswith(".") or set("/\\") & set(folder) or len(folder.encode()) > 200:
        raise ConfigError(f"{name} = {folder!r} is no name of a folder: no /, no . in front")
    return folder


def _check_call(config: dict[str, Any], where: str) -> None:
    name = config["_target_"]
    try:
        parameters, ranges = _parameters(name)
    except Exception as error:
        module, _, attribute = name.rpartition(".")
        siblings = dir(sys.modules[module]) if module in sys.modules else []
        raise ConfigError(
            f"{where}: nothing is called {name!r}{closest(attribute, siblings)}"
        ) from error
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in config.items():
        if key.startswith("_") and key.endswith("_"):
            continue
        if key not in parameters and not any_name:
            raise ConfigError(
                f"{where}: {name} takes no parameter {key!r}{closest(key, list(parameters))}"
            )
        try:
            _check_value(key, value, parameters.get(key), ranges.get(key))
        except ValueError as error:
            raise ConfigError(f"{where.removeprefix('config.')}: {error}") from error


def _check_value(
    key: str, value: Any, parameter: inspect.Parameter | None, allowed: str | None
) -> None:
    """Raise ValueError for a value that its annotation or its range excludes, and for NaN."""
    if isinstance(value, dict):
        return  # an object, with a call of its own
    if allowed is not None:
        check_range(key, value, allowed)
    if isinstance(value, float) and value != value:
        raise ValueError(f"{key} = nan is no number")
    annotation = inspect.Parameter.empty if parameter is None else parameter.annotation
    kinds = set(typing.get_args(annotation) or [annotation])
    if isinstance(value, str) and kinds & {int, float} and not kinds & {str, Any}:
        raise ValueError(f"{key} = {value!r} is no number")
    if isinstance(value, float) and int in kinds and float not in kinds and not value.is_integer():
        raise ValueError(f"{key} = {value!r} is no whole number")


OPTAX_DECAYS = dict.fromkeys(("b1", "b2", "b3", "decay"), "[0, 1)")
"""What optax's own constructors do not check."""


@functools.cache
def _parameters(target: str) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, str]]:
    """The parameters of a target, and the ranges of those that have one."""
    function = _locate(target)
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (NameError, TypeError):  # annotations of what is imported for type checkers alone
        parameters = inspect.signature(function).parameters
    except ValueError:  # built into Python
        parameters = inspect.signature(lambda **anything: None).parameters
    decays = OPTAX_DECAYS if target.startswith("optax.") else {}
    return parameters, getattr(function, "ranges", decays)
