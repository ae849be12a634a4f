"""Checkpoints of training: Orbax, asynchronous and atomic, the last few kept.

This file is the only one that knows Orbax. A checkpoint is a folder named by its step that holds
the state and, in the same atomic rename, where the stream of each process stood.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from optdiff.learning.interruption import ResumeError
from optdiff.learning.step import State


class Checkpoints:
    """The checkpoints in a folder. Close it (or leave its `with`) to wait for the last to land.

    A save returns when the state is copied from the devices and is written behind the caller's
    back, to a temporary name that is renamed when complete: a process killed at any moment leaves
    the checkpoints before whole. What it left half written goes when the folder is opened next.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        self.folder = Path(folder).absolute()
        self._orbax = ocp.training.Checkpointer(
            self.folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._held: int | None = None  # what was read or written last
        self._landing = None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, increasing."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, state: State, position: Any) -> None:
        """Begin to save the state, which may be donated afterwards, and this process's position.

        Waits for the save before, if that is still being written. A step that was restored or saved
        last is not written again; one that could not be read is replaced.
        """
        step = int(state.step)
        if step == self._held:
            return
        self._held = step
        self._landing = self._orbax.save_async(
            step,
            state,
            force=True,
            overwrite=True,
            custom_metadata={"positions": _of_every_process(position)},
        )

    def restore(self, like: State) -> tuple[State, Any] | None:
        """The newest checkpoint that can be read, or None if there are none.

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
            try:
                state = self._orbax.load(step, like)
                positions = self._orbax.metadata(step).custom_metadata["positions"]
            except Exception as error:
                first_error = first_error or error
                warnings.warn(f"{self.folder / str(step)}: passed over ({error})", stacklevel=2)
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
        """Return when what was saved is on disk."""
        if self._landing is not None:
            self._landing.result()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self._orbax.close()


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
