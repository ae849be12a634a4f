"""The log of a study: one row a job in `results/<study>/rows.jsonl`, and its artifact beside it.

This file owns what a row is, the key that names a job, and what the log promises: rows are only
ever appended, each is on disk when `append` returns, and a process killed at any moment loses the
job it was on and nothing else. Running jobs belongs to `experiments`, where rows come from to
`provenance`, tables and figures to `report`; no model, sampler or jax is imported here.
"""

import fcntl
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np


class Row(TypedDict):
    """One job of a study: what was asked, what it cost, how good the samples were.

    Every row has every field; a job that failed early has None, or an empty list or mapping, for
    what it never came to know. Non-finite numbers are "NaN", "Infinity" and "-Infinity" in the
    file, which stays strict JSON, and floats again once loaded.
    """

    key: str  # `config_key` of the configuration
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
    seed: int
    samples: int
    metrics: dict[str, float]
    floor: dict[str, float]  # the same metrics, real samples against real ones
    seconds_compile: float | None
    seconds_run: float | None
    seconds_metrics: float | None
    versions: dict[str, str]
    device: str
    commit: str | None  # None outside a checkout, and so is the next
    dirty: bool | None  # the tree outside results/ had uncommitted changes
    time: str  # UTC, ISO 8601


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
    plain = json.loads(json.dumps(_plain(config, "config")), parse_float=number)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(row: Row) -> tuple[str, str, str, str]:
    """What no two rows of a study share: the key of a job, and the names it goes by.

    A configuration that has two names (`sampler=ddim` and `sampler=euler`) has a row under each, or
    tables would lack one. They share an artifact, which is the same.

    >>> identity({"key": "0", "problem": "digits", "sampler": "euler", "grid": "karras"})
    ('0', 'digits', 'euler', 'karras')
    """
    return row["key"], row["problem"], row["sampler"], row["grid"]


def append(study: str | Path, row: Row, artifact: "Mapping[str, np.ndarray] | None" = None) -> Row:
    """Add a row to the log of a study; it is on disk, after its artifact, when this returns.

    The artifact comes first, by rename, so that no row ever lacks one. Both happen under a lock
    that excludes other processes, and the line is one write. If the last writer was killed inside
    that write, its torn line is first moved to `rows.torn`.

    Args:
      study: the folder, `results/<study>`; made if need be.
      row: the row, with every field of `Row`.
      artifact: arrays by name for `artifacts/<key>.npz`: a few samples and the trace.

    Returns:
      The row as it was written: one with a metric that is not finite has failed, whatever it said.

    Raises:
      ValueError: if fields are missing or unknown, naming them.
      TypeError: if a value has no JSON form or an array holds objects, naming it.

    >>> append("results/mine", row, {"samples": samples})["status"]  # doctest: +SKIP
    'ok'
    """
    row = _settled(row)
    line = json.dumps(_plain(row, "row"), allow_nan=False).encode() + b"\n"
    packed = None if artifact is None else _pack(artifact)
    folder = Path(study)
    with _locked(folder):
        if packed is not None:
            _replace(folder / "artifacts" / f"{row['key']}.npz", packed)
        _append_line(folder / "rows.jsonl", line)
    return row


def load(study: str | Path) -> list[Row]:
    """The rows of a study, one for each `identity`: a later row takes the place of an earlier one.

    A torn last line is no row and is passed over; a study without a log has no rows.

    Raises:
      ValueError: if any other line is not a row, naming file and line.
    """
    log = Path(study) / "rows.jsonl"
    if not log.exists():
        return []
    rows = {}
    *lines, tail = log.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = _row(line)
        except ValueError as error:
            raise ValueError(
                f"{log}:{number}: not a row ({error}); restore the line, or delete it and run the "
                "sweep again to redo its job"
            ) from None
        rows[identity(row)] = row
    with suppress(ValueError):  # nothing, or torn
        row = _row(tail)
        rows[identity(row)] = row
    return list(rows.values())


def load_artifact(study: str | Path, key: str) -> "dict[str, np.ndarray] | None":
    """The arrays stored with a row, by name, or None if there are none."""
    import numpy as np

    path = Path(study) / "artifacts" / f"{key}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def finished(study: str | Path, source: str | None = None) -> set[tuple[str, str, str, str]]:
    """The jobs that need not run again, by `identity`: those whose row is ok.

    Args:
      study: the folder of the study.
      source: if given, only rows that this source made count, so that
        `finished(study, source_digest())` leaves stale rows to be run again.

    Returns:
      A set without the failed jobs, so that a sweep tries them again.
    """
    return {
        identity(row)
        for row in load(study)
        if row["status"] == "ok" and source in (None, row["source"])
    }


def write(study: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files derived from a log into its folder, each whole or not at all (by rename)."""
    folder = Path(study)
    with _locked(folder):
        for name, data in files.items():
            _replace(folder / name, data)


def remember(
    folder: str | Path, depends: Mapping[str, Any], compute: "Callable[[], np.ndarray]"
) -> "np.ndarray":
    """An expensive array, computed once for everything that it depends on and kept on disk.

    Processes that ask for the same array at the same time wait for the first of them.

    Args:
      folder: the cache; deleting it costs time and nothing else.
      depends: plain values that determine the array, the source that computes it among them.
      compute: makes the array.
    """
    import numpy as np

    entry = Path(folder) / config_key(depends)
    path = entry / "array.npy"
    with _locked(entry):
        if not path.exists():
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(compute()), allow_pickle=False)
            _replace(path, buffer.getvalue())
        return np.load(path, allow_pickle=False)


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


def _plain(value: Any, where: str) -> Any:
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
        return {str(name): _plain(entry, f"{where}.{name}") for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold: {value!r}")


def _settled(row: Row) -> Row:
    """A copy of a row with all its fields, failed if a metric is not finite."""
    missing = sorted(Row.__required_keys__ - set(row))
    unknown = sorted(set(row) - set(Row.__annotations__))
    if missing or unknown:
        raise ValueError(f"row {row.get('key')}: missing fields {missing}, unknown {unknown}")
    metrics = {name: float(value) for name, value in row["metrics"].items()}
    row = Row(**{**row, "metrics": metrics})
    bad = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if bad and row["status"] == "ok":
        row["status"] = "failed"
        row["error"] = f"FloatingPointError: {', '.join(bad)}"
    return row


def _row(line: bytes) -> Row:
    """A line of the log as a row; ValueError if it is none."""
    row = json.loads(line)
    fields = tuple(Row.__annotations__)
    missing = fields if not isinstance(row, dict) else [f for f in fields if f not in row]
    if missing:
        raise ValueError(f"without {', '.join(missing)}")
    for field in ("metrics", "floor"):
        row[field] = {name: float(value) for name, value in row[field].items()}
    row["levels"] = [float(level) for level in row["levels"]]
    return row


def _pack(artifact: "Mapping[str, np.ndarray]") -> bytes:
    """Arrays as the bytes of an .npz file."""
    import numpy as np

    arrays = {name: np.asarray(value) for name, value in artifact.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"artifact {name!r} holds objects; store numbers")
        if array.dtype.kind == "V":  # bfloat16 and its like, which .npz does not know
            arrays[name] = array.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a study; it goes with the process, so a killed one leaves none behind."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, data: bytes) -> None:
    """Put a file in place whole, under the lock, which is why one temporary name is enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / ".partial"
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def _append_line(log: Path, line: bytes) -> None:
    """Add a line to the log in one write, under the lock, after mending the end of the log."""
    new = not log.exists()
    descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _mend(log, descriptor)
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(f"{log}: only {written} of {len(line)} bytes written; is the disk full?")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        _sync_folder(log.parent)


def _mend(log: Path, descriptor: int) -> None:
    """End the log with a whole line: complete a row that lacks its newline, move a torn one away.

    What a torn line still says goes to `rows.torn`: nothing that was written is thrown away.
    """
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    tail = log.read_bytes().rpartition(b"\n")[2]
    try:
        _row(tail)
    except ValueError:
        with open(log.with_suffix(".torn"), "ab") as torn:
            torn.write(tail + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        os.ftruncate(descriptor, size - len(tail))
    else:
        os.write(descriptor, b"\n")


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
