"""The fields of a network's `config.json`: what each may hold, and what becomes of all others.

The one reader and validator of every network's config, which is a frozen dataclass with a kind for
each field that a file may state. What fields mean, and what they must be together (a method
`misfits`), is in each network's `config.py`.
"""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

# What diffusers' `EMAModel.save_pretrained` writes beside the geometry.
_AVERAGING = (
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
)
# Acts while a network learns, and nowhere here: our training has a dropout of its own.
_DROPOUT = ("dropout", "attention_dropout")
_LETTERS = 200  # of a value in a message


class Kind(NamedTuple):
    """What a field may hold, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.words} or {other.words}", lambda v: self.holds(v) or other.holds(v))


def one_of(*choices: Any) -> Kind:
    """One of a few values."""
    return Kind("one of " + ", ".join(map(repr, choices)), lambda v: v in choices)


def several(kind: Kind) -> Kind:
    """A list that is not empty, each entry of one kind."""
    return Kind(
        f"a list, each {kind.words}",
        lambda v: isinstance(v, tuple) and len(v) > 0 and all(map(kind.holds, v)),
    )


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
COUNT = Kind("a positive integer below 2^31", lambda v: type(v) is int and 0 < v < 2**31)
NATURAL = Kind("a natural number below 2^31", lambda v: type(v) is int and 0 <= v < 2**31)
ODD = Kind("an odd positive integer", lambda v: COUNT.holds(v) and v % 2 == 1)
NUMBER = Kind("a number", lambda v: type(v) in (int, float) and -1e30 < v < 1e30)
POSITIVE = Kind("a positive number", lambda v: NUMBER.holds(v) and v > 0)
NOT_NEGATIVE = Kind("a number, not negative", lambda v: NUMBER.holds(v) and v >= 0)
NULL = Kind("null", lambda v: v is None)


def field(default: Any, kind: Kind) -> Any:
    """A dataclass field that a file may state."""
    return dataclasses.field(default=default, metadata={"kind": kind})


def split(
    cls: type,
    raw: Mapping[str, Any],
    fixed: Mapping[str, Collection[Any]],
    unread: Collection[str] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The fields of `cls` that a file states, and a complaint about each that is refused.

    What changes nothing that the network computes is left out, with one warning: the bookkeeping of
    averaged weights, dropout, and fields of a later version that are null, which is how one says
    that a feature is not used. Keys that begin with "_" are the libraries' own notes.

    Args:
      cls: a config whose fields have kinds.
      raw: the parsed file.
      fixed: fields that have one behaviour here: what they must say.
      unread: fields that are passed over, whatever they say.

    >>> from optdiff.nn.vae.config import VAEConfig
    >>> split(VAEConfig, {"latent_channels": 16, "windows": True}, {})
    ({'latent_channels': 16}, ['windows = True: not a known field'])
    """
    names = _kinds(cls)
    stated, faults, left_out = {}, [], []
    for name, value in raw.items():
        if name in names:
            stated[name] = _tupled(value)
        elif name in unread or value in fixed.get(name, ()):
            pass
        elif name in _AVERAGING or _dropout(name, value) or value is None:
            left_out += [f"{name} = {_shown(value)}"] if value != 0 else []
        elif name in fixed:
            faults.append(
                f"{name} = {_shown(value)}: must be {' or '.join(map(repr, fixed[name]))}"
            )
        elif name[:1] != "_":
            faults.append(f"{name} = {_shown(value)}: not a known field")
    if left_out:
        warnings.warn(
            f"{cls.__name__}: left out, as nothing here depends on it: {', '.join(left_out)}",
            stacklevel=3,
        )
    return stated, faults


def faults_of(cls: Any, values: Mapping[str, Any]) -> list[str]:
    """Everything wrong with a config's fields: each by itself, then how they fit together.

    Args:
      cls: the config's class; `cls.misfits(values)`, where there is one, gives names and words.
      values: of the fields by name; the others have their defaults.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    values = {**defaults, **values}
    wrong: Iterable[tuple[str, str]] = [
        (name, f"must be {kind.words}")
        for name, kind in _kinds(cls).items()
        if not kind.holds(values[name])
    ]
    # What fits together is only asked of fields that hold the right types.
    wrong = wrong or list(cls.misfits(values) if hasattr(cls, "misfits") else ())
    return [f"{name} = {_shown(values[name])}: {words}" for name, words in wrong]


def refuse(cls: type, faults: Collection[str]) -> None:
    """Raise all faults in one error, if there are any.

    Raises:
      ValueError: naming the config's class and every fault.
    """
    if faults:
        raise ValueError(f"{cls.__name__}:\n  " + "\n  ".join(faults))


def check(config: Any) -> None:
    """Refuse a config that holds what it may not."""
    refuse(type(config), faults_of(type(config), vars(config)))


def read(
    cls: Any,
    raw: Mapping[str, Any],
    fixed: Mapping[str, Collection[Any]],
    unread: Collection[str] = (),
    **settled: Any,
) -> Any:
    """A config from a parsed `config.json`.

    Args:
      cls, raw, fixed, unread: as for `split`.
      **settled: fields that the file does not state in this form.

    Raises:
      ValueError: all that is wrong, in one message.
    """
    stated, faults = split(cls, raw, fixed, unread)
    stated |= settled
    refuse(cls, faults + faults_of(cls, stated))
    return cls(**stated)


def written(config: Any) -> dict[str, Any]:
    """The fields as JSON has them, tuples as lists."""
    return {name: _listed(value) for name, value in vars(config).items()}


def _kinds(cls: type) -> dict[str, Kind]:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return {f.name: f.metadata["kind"] for f in fields if f.metadata}


def _dropout(name: str, value: Any) -> bool:
    return name in _DROPOUT and NUMBER.holds(value) and 0 <= value < 1


def _shown(value: Any) -> str:
    text = repr(_tupled(value))
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple) else value
