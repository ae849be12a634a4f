"""Reads ahead: a thread that reads the stream and puts batches on the devices while they compute.

It owns the order of reading and who waits for whom. Streams say what is read, `layouts` where it
goes.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optdiff.types import Stream


class Call(NamedTuple):
    """What one call of the step function takes: batches (steps, parts, rows, ...) on the devices,
    and where the stream stands after each of its steps.
    """

    batches: dict[str, Any]
    positions: list[Any]


class Prefetch:
    """Iterates over calls, read some ahead. Leave its `with` to end the thread.

    Args:
      stream: what to read.
      position: where to read on.
      sizes: the number of steps of each call.
      parts: batches read for a step.
      put: puts stacked batches on the devices.
      ahead: calls that wait, read, at a time.
    """

    def __init__(
        self,
        stream: Stream,
        position: Any,
        sizes: Iterable[int],
        parts: int,
        put: Callable[[dict[str, Any]], dict[str, Any]],
        ahead: int = 2,
    ):
        self._calls: queue.Queue = queue.Queue(ahead)
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(stream, position, sizes, parts, put), daemon=True
        )

    def _run(self, stream, position, sizes, parts, put) -> None:
        try:
            for steps in sizes:
                call, position = _read(stream, position, steps, parts)
                if not self._hand_over(call._replace(batches=put(call.batches))):
                    return
            self._hand_over(None)
        except BaseException as error:  # raised where the calls are taken
            self._hand_over(error)

    def _hand_over(self, item: Any) -> bool:
        """Queue an item; False if nobody will take it."""
        while not self._ended.is_set():
            try:
                self._calls.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Call]:
        while True:
            item = self._calls.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def __enter__(self) -> "Prefetch":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()


def _read(stream: Stream, position: Any, steps: int, parts: int) -> tuple[Call, Any]:
    batches, positions = [], []
    for _ in range(steps):
        for _ in range(parts):
            batch, position = stream.read(position)
            batches.append(dict(batch))
        positions.append(position)
    return Call(_stacked(batches, steps, parts), positions), position


def _stacked(batches: list[dict[str, Any]], steps: int, parts: int) -> dict[str, Any]:
    """Batches as one of leaves (steps, parts, rows, ...); a single one is not copied.

    What a stream makes on a device is stacked there: to fetch it would be to wait for the steps
    under way.
    """
    if len(batches) == 1:
        return jax.tree.map(lambda x: x[None, None], batches[0])

    def stacked(*leaves):
        stack = jnp.stack if isinstance(leaves[0], jax.Array) else np.stack
        return stack(leaves).reshape(steps, parts, *leaves[0].shape)

    return jax.tree.map(stacked, *batches)
