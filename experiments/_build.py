"""From configurations to objects: what each `_target_` takes is checked, then it is built."""

import functools
import inspect
import json
import sys
from typing import Any

from _errors import ConfigError, closest
from hydra.utils import get_object, instantiate


def check_targets(config: Any, where: str) -> None:
    """Refuse parameters that a `_target_` does not take, before anything is built or compiled.

    Raises:
      ConfigError: naming the parameter, where it stands and the closest valid one.
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


def _check_call(config: dict[str, Any], where: str) -> None:
    name = config["_target_"]
    try:
        parameters = _parameters(name)
    except Exception as error:
        module, _, attribute = name.rpartition(".")
        siblings = dir(sys.modules[module]) if module in sys.modules else []
        raise ConfigError(
            f"{where}: nothing is called {name!r}{closest(attribute, siblings)}"
        ) from error
    if parameters is None:
        return
    for key in config:
        if key not in parameters and not (key.startswith("_") and key.endswith("_")):
            raise ConfigError(
                f"{where}: {name} takes no parameter {key!r}{closest(key, parameters)}"
            )


@functools.cache
def _parameters(target: str) -> list[str] | None:
    """The names that a target takes, or None if it takes any."""
    parameters = inspect.signature(get_object(target)).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if any_name else list(parameters)
