"""What a row is: its fields, the key that names its job, and how it is written and read back."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypedDict


class Row(TypedDict):
    """One job of a study: what was asked, what it cost, how good the samples were.

    Every row has every field; a job that failed early has None, or an empty list or mapping, for
    what it never came to know. Non-finite numbers are "NaN", "Infinity" and "-Infinity" in the
    file, which stays strict JSON, and floats again once loaded.
    """

    key: str  # `config_key` of what decides the result; a row of earlier versions keeps its own
    source: str  # `source_digest` of the package that ran
    status: Literal["ok", "failed"]
    error: str | None  # "Type: message" if failed
    problem: str  # name in tables, as are the next two; see `identity`
    sampler: str
    grid: str
    config: dict[str, Any]  # the resolved configuration of the job
    levels: list[float]  # sigma, decreasing
    nfe_asked: int  # the budget
    nfe: float | None  # evaluations per sample, as counted
    passes: float | None  # network passes per sample: evaluations times the passes of each
    batch_nfe: float | None  # evaluations of the batch: more than nfe where samples wait for others
    unfinished: int | None  # samples that ran out of evaluations before the last level
    seed: int
    samples: int
    metrics: dict[str, float]
    spread: dict[str, list[float]]  # by metric, how groups of samples pull it: `analysis.measuring`
    refused: dict[str, str]  # by metric, why it has no value
    floor: dict[str, float]  # the same metrics, real samples against real ones
    seconds_compile: float | None
    seconds_run: float | None
    seconds_metrics: float | None
    versions: dict[str, str]
    device: str
    commit: str | None  # None outside a checkout, and so is the next
    dirty: bool | None  # the tree outside results/ had uncommitted changes
    time: str  # UTC, ISO 8601


NEWER = {"spread": {}, "refused": {}, "batch_nfe": None, "unfinished": None}
"""Fields that rows of earlier versions lack, as they are read."""


def config_key(config: Mapping[str, Any]) -> str:
    """Name a job: 16 hex digits of the SHA-256 of its configuration as canonical JSON.

    Args:
      config: the resolved configuration, of plain values (numbers, strings, lists, mappings).

    Returns:
      A key that does not depend on the order of the entries, nor on whether 8 is typed `8.0`.

    Raises:
      TypeError: if a value has no JSON form, naming it.

    >>> config_key({"nfe": 8, "seed": 0}) == config_key({"seed": 0, "nfe": 8})
    True
    """
    number = lambda text: int(x) if (x := float(text)).is_integer() else x  # noqa: E731
    entries = json.loads(json.dumps(plain(config, "config")), parse_float=number)
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(row: Row) -> tuple[str, str, str, str]:
    """What no two rows of a study share: the key of a job, and the names it goes by.

    A configuration that has two names (`sampler=ddim` and `sampler=euler`) has a row under each, or
    tables would lack one. They share an artifact, which is the same.

    >>> identity({"key": "0", "problem": "digits", "sampler": "euler", "grid": "karras"})
    ('0', 'digits', 'euler', 'karras')
    """
    return row["key"], row["problem"], row["sampler"], row["grid"]


def leaves(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of each leaf of a configuration; a list counts as one leaf.

    >>> dict(leaves({"nfe": 8, "sampler": {"eta": 0.5, "orders": [1, 2]}}))
    {('nfe',): 8, ('sampler', 'eta'): 0.5, ('sampler', 'orders'): [1, 2]}
    """
    if isinstance(config, Mapping):
        for name, entry in config.items():
            yield from leaves(entry, (*path, name))
    else:
        yield path, config


def plain(value: Any, where: str) -> Any:
    """A value as strict JSON has it; numpy and jax scalars and arrays become numbers and lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): plain(entry, f"{where}.{name}") for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


def settled(row: Row) -> Row:
    """A copy of a row with all its fields, failed if a metric is not finite.

    Raises:
      ValueError: if fields are missing or unknown, naming them.
    """
    row = copy.deepcopy(NEWER) | row
    fields = Row.__annotations__.keys()
    missing, unknown = sorted(fields - row.keys()), sorted(row.keys() - fields)
    if missing or unknown:
        raise ValueError(f"row {row.get('key')}: missing fields {missing}, unknown {unknown}")
    metrics = {name: float(value) for name, value in row["metrics"].items()}
    return _failed_if_not_finite(Row(**{**row, "metrics": metrics}))


def read_row(line: bytes) -> Row:
    """A line of the log as a row, by the rules of every reader.

    Fields that older rows lack are empty, null among the metrics is no value, and an ok row with a
    metric that is not finite has failed. Fields that no row has are kept.

    Raises:
      ValueError: if the line is no row, naming the field that is wrong and how.
    """
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object with fields")
    row = copy.deepcopy(NEWER) | row
    if missing := [field for field in Row.__annotations__ if field not in row]:
        raise ValueError(f"without {', '.join(missing)}")
    for field, (words, fits) in _KINDS.items():
        if not fits(row[field]):
            raise ValueError(f"{field} is {_short(row[field])}, not {words}")
    for field in ("metrics", "floor"):
        numbers = {name: v for name, v in row[field].items() if v is not None}
        row[field] = {name: float(value) for name, value in numbers.items()}
    if row["status"] == "ok" and None in (row["nfe"], row["passes"]):
        raise ValueError("nfe or passes is null, which an ok row knows")
    for field in ("nfe_asked", "seed", "samples"):
        row[field] = int(row[field])
    row["levels"] = [float(level) for level in row["levels"]]
    return _failed_if_not_finite(row)


def _failed_if_not_finite(row: Row) -> Row:
    """Set status and error of an ok row that has a metric which is not finite."""
    bad = [f"{name} is {v}" for name, v in row["metrics"].items() if not math.isfinite(v)]
    if bad and row["status"] == "ok":
        row["status"] = "failed"
        row["error"] = f"FloatingPointError: {', '.join(bad)}"
    return row


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("NaN", "Infinity", "-Infinity")
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 1e300  # what a float can hold
    return isinstance(value, float)


def _is_whole(value: Any) -> bool:
    return _is_finite(value) and float(value).is_integer()


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(float(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _all(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _by_name(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_KINDS = {
    **dict.fromkeys(
        ("key", "source", "problem", "sampler", "grid", "device", "time"), ("a text", _is_text)
    ),
    **dict.fromkeys(("error", "commit"), ("a text or null", _or_null(_is_text))),
    **dict.fromkeys(("nfe_asked", "seed", "samples"), ("a whole number", _is_whole)),
    **dict.fromkeys(
        ("nfe", "passes", "batch_nfe", "seconds_compile", "seconds_run", "seconds_metrics"),
        ("a finite number or null", _or_null(_is_finite)),
    ),
    "unfinished": ("a whole number or null", _or_null(_is_whole)),
    "status": ("ok or failed", lambda value: value in ("ok", "failed")),
    "config": ("an object", lambda value: isinstance(value, dict)),
    "versions": ("texts by name", _by_name(_is_text)),
    "levels": ("a list of numbers", _all(_is_number)),
    **dict.fromkeys(("metrics", "floor"), ("numbers by name", _by_name(_or_null(_is_number)))),
    "spread": ("lists of numbers by name", _by_name(_all(_is_finite))),
    "refused": ("texts by name", _by_name(_is_text)),
    "dirty": ("true, false or null", lambda value: value in (None, True, False)),
}
"""What each field holds: in words, and the test of it."""
