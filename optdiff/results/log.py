"""The log of a study on disk: rows, artifacts beside them, and files made of both.

What the log promises: rows are only ever appended, each is on disk when `append` returns, and a
process killed at any moment loses the job it was on and nothing else. What a row is, is `row`'s.
"""

import fcntl
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

from optdiff.results.row import Row, config_key, identity, plain, read_row, settled

if TYPE_CHECKING:
    import numpy as np

UNREADABLE = (
    BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    LookupError,
    RuntimeError,
    EOFError,
    OSError,
)
"""What a damaged file of arrays raises, by where the damage is."""


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
    row = settled(row)
    line = json.dumps(plain(row, "row"), allow_nan=False).encode() + b"\n"
    packed = None if artifact is None else _pack(artifact)
    folder = Path(study)
    with _locked(folder):
        if packed is not None:
            _replace(folder / "artifacts" / f"{row['key']}.npz", packed)
        _append_line(folder / "rows.jsonl", line)
    return row


def load(study: str | Path, damaged: Callable[[str], None] | None = None) -> list[Row]:
    """The rows of a study, one for each `identity`: a later row takes the place of an earlier one.

    Blank lines are nothing, a torn last line is no row, and a study without a log has no rows.

    Args:
      study: the folder of the study.
      damaged: called with a sentence on each line that is no row, which is then passed over.

    Raises:
      ValueError: if a line is not a row, naming file, line and field, unless `damaged` is given.
    """
    log = Path(study) / "rows.jsonl"
    if not log.exists():
        return []
    rows = {}
    *lines, tail = log.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip(b" \t\r\0"):
            continue
        try:
            row = read_row(line)
        except ValueError as error:
            message = f"{log}:{number}: not a row ({error})"
            if damaged is None:
                raise ValueError(
                    f"{message}; restore the line, or delete it and run the sweep again to redo "
                    "its job"
                ) from None
            damaged(message)
        else:
            rows[identity(row)] = row
    with suppress(ValueError):  # nothing, or torn
        row = read_row(tail)
        rows[identity(row)] = row
    return list(rows.values())


def load_artifact(study: str | Path, key: str) -> "dict[str, np.ndarray] | None":
    """The arrays stored with a row, by name, or None if there are none.

    Raises:
      ValueError: if the file is not whole, naming it.
    """
    path = Path(study) / "artifacts" / f"{key}.npz"
    if not path.exists():
        return None
    try:
        return _unpack(path)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read ({error}); delete it and run the job again with refresh=all"
        ) from None


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


def appended(study: str | Path, since: int) -> tuple[list[Row], int]:
    """The rows that were appended after so many bytes of the log, and how many bytes to pass over
    the next time. Lines that are no rows are not among them."""
    log = Path(study) / "rows.jsonl"
    if not log.exists() or log.stat().st_size <= since:
        return [], since
    with open(log, "rb") as file:
        file.seek(since)
        data = file.read()
    *lines, tail = data.split(b"\n")
    rows = []
    for line in lines:
        with suppress(ValueError):
            rows.append(read_row(line))
    return rows, since + len(data) - len(tail)


@contextmanager
def claim(
    study: str | Path, job: tuple[str, str, str, str], *, wait: bool = False
) -> Iterator[bool]:
    """Claim a job, by `identity`, among the processes that work on a study.

    Yields:
      Whether it is this process's; False while it is another's, unless `wait` outlasts that. A
      claim ends with its process, however that ends. A process holds one at a time.
    """
    Path(study).mkdir(parents=True, exist_ok=True)
    place = int(config_key({"job": list(job)}), 16) % 2**62  # a byte of its own, never written
    with open(Path(study) / ".claims", "a") as claims:
        try:
            fcntl.lockf(claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except BlockingIOError:
            yield False
        else:
            yield True


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

    Processes that ask for the same array at the same time wait for the first of them. What was kept
    and cannot be read is computed again, with a warning.

    Args:
      folder: the cache; deleting it costs time and nothing else.
      depends: plain values that determine the array, the source that computes it among them.
      compute: makes the array.
    """
    entry = Path(folder) / config_key(depends)
    path = entry / "array.npz"
    with _locked(entry):
        if path.exists():
            try:
                return _unpack(path)["array"]
            except UNREADABLE as error:
                warnings.warn(f"{path} cannot be read ({error}); computed again", stacklevel=4)
        _replace(path, _pack({"array": compute()}))
        return _unpack(path)["array"]


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


def _unpack(path: Path) -> "dict[str, np.ndarray]":
    """What `_pack` packed. Members are read whole, since only then is their checksum compared."""
    import numpy as np

    with ZipFile(path) as archive:
        return {
            name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
            for name in archive.namelist()
        }


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
        read_row(tail)
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
