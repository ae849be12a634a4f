"""Checkpoints of training: Orbax, asynchronous, atomic and checked, the last few kept.

This file is the only one that knows Orbax. A checkpoint is a folder named by its step that holds
the state, where the stream of each process stood, and the digests of the files of both.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from optdiff.learning.interruption import ResumeError
from optdiff.learning.step import State

DIGESTS = "SHA256SUMS"
"""The file of a checkpoint that says what the others hold: `sha256sum -c` reads it too."""


ROOM = 2**20
"""Bytes that a checkpoint takes beside its arrays, at most."""


class SaveError(OSError):
    """A checkpoint could not be written, as on a full disk; it says which, and why."""


class Checkpoints:
    """The checkpoints in a folder. Close it (or leave its `with`) to wait for the last to land.

    A save returns when the state is copied from the devices and is written behind the caller's
    back, to a name that is changed when all is written and digested: a process killed at any
    moment leaves the checkpoints before whole. What it left half written goes when the folder is
    opened next.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        self.folder, self._keep = Path(folder).absolute(), keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held: int | None = None  # what was read or written last
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._landing: Future | None = None
        if jax.process_index() == 0:
            for half in (*self.folder.glob("*.new"), *self.folder.glob("*.orbax-checkpoint-tmp*")):
                shutil.rmtree(half)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, increasing."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def save(self, state: State, position: Any) -> None:
        """Begin to save the state, which may be donated afterwards, and this process's position.

        Waits for the save before, if that is still being written. A step that was restored or saved
        last is not written again; one that could not be read is replaced.
        """
        step = int(state.step)
        if step == self._held:
            return
        self.wait()
        self._held = step
        fresh = self.folder / f"{step}.new"
        positions = {"positions": _of_every_process(position)}
        with _save_errors(fresh):
            _require_room(self.folder, state)
            written = ocp.save_async(fresh, state, overwrite=True, custom_metadata=positions)
        self._landing = self._thread.submit(self._land, written, fresh)

    def _land(self, written: Any, fresh: Path) -> None:
        """Wait for a checkpoint to be written, put it in its place and take old ones away."""
        place = fresh.with_suffix("")
        with _save_errors(fresh):
            written.result()
            if jax.process_index() > 0:
                return
            lines = (f"{digest}  {name}\n" for name, digest in _digests(fresh))
            (fresh / DIGESTS).write_text("".join(lines))
            if place.exists():
                shutil.rmtree(place)
            os.replace(fresh, place)
        until = [step for step in self.steps() if step <= int(place.name)]
        for old in until[: -self._keep]:
            shutil.rmtree(self.folder / str(old))

    def restore(self, like: State) -> tuple[State, Any] | None:
        """The newest checkpoint that is what was written, or None if there are none.

        Args:
          like: a state of the same structure, whose arrays (or `jax.ShapeDtypeStruct`s with a
            sharding) say where the restored ones go: on any number of devices.

        Returns:
          The state, and where this process's stream stood.

        Raises:
          ResumeError: if there are checkpoints and none can be read, or if they were made by
            another number of processes whose streams stood at different places.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        first_error = None
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            try:
                _check(path)
                state = ocp.load(path, like)
                positions = ocp.metadata(path).custom_metadata["positions"]
            except Exception as error:
                first_error = first_error or error
                warnings.warn(f"{path}: passed over ({_in_a_line(error)})", stacklevel=2)
            else:
                self._held = step
                return state, self._own(positions, step)
        if first_error is not None:
            raise ResumeError(
                f"{self.folder}: no checkpoint could be restored. Were they made with another "
                "network or optimizer? Train into another folder, or delete this one to start anew."
            ) from first_error
        return None

    def _own(self, positions: list[Any], step: int) -> Any:
        if len(positions) == jax.process_count():
            return positions[jax.process_index()]
        if all(position == positions[0] for position in positions):
            return positions[0]
        raise ResumeError(
            f"{self.folder / str(step)} was saved by {len(positions)} processes whose streams "
            f"stood at different places: resume with as many, not with {jax.process_count()}"
        )

    def wait(self) -> None:
        """Return when what was saved is on disk.

        Raises:
          SaveError: if it could not be written.
        """
        if self._landing is not None:
            landing, self._landing = self._landing, None
            landing.result()

    def __enter__(self) -> "Checkpoints":
        self._level = _log.level
        _log.setLevel(logging.CRITICAL)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            _log.setLevel(self._level)


_log = logging.getLogger("absl")  # to which Orbax writes pages about what it raises anyway


@contextmanager
def _save_errors(fresh: Path) -> Iterator[None]:
    """Any error, of the many kinds that Orbax has, as a `SaveError`."""
    try:
        yield
    except Exception as error:
        raise SaveError(
            f"{fresh.with_suffix('')} could not be written ({_in_a_line(error)}); the checkpoints "
            "before it are whole"
        ) from error


def _require_room(folder: Path, state: State) -> None:
    """Refuse a state that the disk has no room for before any of it is written: when a disk fills
    up under Orbax, its threads print pages.

    Raises:
      OSError: saying how much it takes.
    """
    takes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + ROOM
    free = shutil.disk_usage(folder).free
    if free < takes:
        raise OSError(
            f"{os.strerror(errno.ENOSPC)}: it takes up to {takes / 1e6:.1f} MB, and "
            f"{free / 1e6:.1f} are free"
        )


def _digests(checkpoint: Path) -> list[tuple[str, str]]:
    """The files of a checkpoint, in order, and the SHA-256 of each."""
    digests = []
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        digests.append((path.relative_to(checkpoint).as_posix(), digest))
    return digests


def _fault(checkpoint: Path) -> str:
    """What of a checkpoint's files is not what was written; nothing of one of an older optdiff,
    which has no digests."""
    if not (checkpoint / DIGESTS).exists():
        return ""
    try:
        lines, now = (checkpoint / DIGESTS).read_text().splitlines(), dict(_digests(checkpoint))
    except (OSError, ValueError) as error:
        return str(error)
    written = (line.partition("  ")[::2] for line in lines)
    others = (name for digest, name in written if now.get(name) != digest)
    return "".join(f"{name!r} is not what was written" for name in islice(others, 1))


def _check(checkpoint: Path) -> None:
    """Refuse a checkpoint that is not what was written, before anything of it is read. The first
    process looks at the files, and all take its word.

    Raises:
      OSError: saying which file.
    """
    fault = _fault(checkpoint) if jax.process_index() == 0 else "a file is not what was written"
    faulty = np.array(bool(fault))
    if jax.process_count() > 1:
        faulty = multihost_utils.broadcast_one_to_all(faulty)
    if faulty:
        raise OSError(fault)


def _in_a_line(error: Exception) -> str:
    """An error's message, of which those of Orbax can be pages."""
    text = "".join(c for c in " ".join(str(error).split()) if c.isprintable())
    return text if len(text) <= 400 else f"{text[:400]}..."


def _of_every_process(position: Any) -> list[Any]:
    """The positions of all processes, which only the first of them writes."""
    if jax.process_count() == 1:
        return [position]
    text = np.frombuffer(json.dumps(position).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(text.size)).ravel()
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: text.size] = text
    every = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [json.loads(row[:length].tobytes()) for row, length in zip(every, lengths, strict=True)]
