"""What is wrong with a configuration, in words: the closest thing that exists."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)


class ConfigError(SystemExit):
    """A configuration that cannot work. It ends the sweep: every job would fail the same way."""


class WriteError(SystemExit):
    """A row cannot be written. It ends the sweep: nor could the next one's be."""


def explain(error: Exception) -> str:
    """What Hydra says of a configuration it cannot compose, with the closest thing that exists."""
    if isinstance(error, MissingConfigException) and error.options:
        wanted = str(error.missing_cfg_file)
        group, _, choice = wanted.rpartition("/")
        return f"{group or 'config'} has no {choice!r}{closest(choice, error.options)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given: {cause.full_key}=..."
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not understood: {str(error).splitlines()[0]}"
    if isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key} cannot be looked up: {cause.msg.splitlines()[0]}"
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        return f"there is no {cause.full_key!r}{closest(str(cause.key), known)}"
    return f"{type(error).__name__}: {error}"


def as_overrides(words: str, group: str, config: Mapping[str, Any]) -> str:
    """What the library says of its parameters, in the words of the command line.

    >>> as_overrides("pass like=FOLDER", "problem", {"like": None})
    'pass problem.like=FOLDER'
    """
    names = "|".join(map(re.escape, config))
    return re.sub(rf"(?<![\w.])({names})(?= ?=)", rf"{group}.\1", words)


def closest(word: str, known: list[str]) -> str:
    """What a name may have meant, and the names that there are."""
    known = sorted(k for k in known if not k.startswith("_"))
    close = get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    close.sort(key=lambda name: sorted(name) != sorted(word.lower()))  # swapped letters come first
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return meant if len(known) > 40 else f"{meant} There is {', '.join(known) or 'none'}."
