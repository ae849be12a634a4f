"""The one training loop: any loss, any stream, any optax optimizer, on whatever devices there are.

The host stays out of the way. Batches are read ahead in a thread, steps are dispatched without
waiting for their results, and metrics stay on the devices until the loop takes a *look*: every
`log_every` steps, and wherever it saves, shows or ends. What a step computes is in `step.py`.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from optdiff.learning.checkpoints import Checkpoints
from optdiff.learning.claim import claimed
from optdiff.learning.interruption import Interrupted, ResumeError, Wish
from optdiff.learning.layouts import (
    Layout,
    all_devices,
    everywhere,
    over_devices,
    replicated,
    shardings,
    whole,
)
from optdiff.learning.prefetch import Prefetch
from optdiff.learning.record import Record
from optdiff.learning.step import Advance, State, initial_state, step_function
from optdiff.learning.task import Loss
from optdiff.types import Stream

Watch = Callable[[PyTree, int], Mapping[str, Any]]
"""`watch(ema, step)`: numbers by name, and pictures (h, w, 3) of bytes or in [0, 1]."""

IN_FLIGHT = 4
"""Calls of the step function under way at a time: enough that the devices never wait for the next,
few enough that batches do not pile up on them."""


def train(
    loss: Loss,
    params: PyTree,
    stream: Stream,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    seed: int = 0,
    folder: str | Path | None = None,
    frozen: PyTree = None,
    ema_decay: float = 0.999,
    accumulate: int = 1,
    steps_per_call: int = 1,
    mesh: Mesh | None = None,
    layout: Layout = replicated,
    log_every: int = 50,
    save_every: int = 1000,
    keep: int = 3,
    begun: Callable[[], None] | None = None,
    watch: Watch | None = None,
    watch_every: int = 1000,
    label: str = "training",
) -> State:
    """Learn parameters; called again with the same folder, go on from its newest checkpoint.

    A step is one update, `params <- params + optimizer(mean gradient of accumulate batches)`.
    Clipping and schedules belong to the optimizer, `optax.chain(optax.clip_by_global_norm(1.0),
    optax.adamw(schedule))`, and count updates; that is why batches are accumulated here and not by
    `optax.MultiSteps` (which works too, and then counts batches). On CPU n steps are bit for bit
    k steps, a kill at any moment, and the rest.

    Args:
      loss: `loss(params, frozen, batch, key) -> (loss, other metrics)`, means over the batch, which
        holds the rows of all processes; `key` is `fold_in(key(seed), step)`. It chooses its own
        arithmetic, see `precision`.
      params: where to start: float arrays, on the host or one device, the same in every process.
      stream: what to learn from; `optdiff.types.Stream`.
      optimizer: any optax optimizer, those that ask for `value`, `grad` or `value_fn` included.
      steps: updates in all, those before a resumption counted in.
      seed: of the base key.
      folder: where checkpoints and curves go; None writes nothing and resumes nothing.
      frozen: a pytree that the loss needs and nothing changes, such as other networks' weights.
      ema_decay: of the average of the parameters, see `step.ema_decay`; 0 keeps none.
      accumulate: batches for one update, their gradients averaged.
      steps_per_call: steps in one program, for devices that finish one in less than the
        millisecond that dispatching takes.
      mesh: the devices; all of them by default. Each axis shares out the batch.
      layout: how weights, averages and moments lie on them: `replicated` or `sharded`.
      log_every: steps between looks. Curves are means over the steps since the last.
      save_every: steps between checkpoints.
      keep: how many of the last checkpoints stay.
      begun: called when the first curves have been written, before anything is saved: from here on
        the folder is this run's.
      watch: called with the averaged parameters, whole on one device, and the step, in every
        process.
      watch_every: steps between calls of `watch`.
      label: names the progress bar.

    Returns:
      The state after the last step, which is the newest checkpoint too.

    Raises:
      Interrupted: on SIGTERM or Ctrl-C, the state saved; a SystemExit.
      FloatingPointError: at the first step whose loss, gradient or update is not finite; the state
        before it is saved.
      ResumeError: if the folder holds a run of another seed, network or optimizer, or one that
        watches other metrics; if another process trains in it.
      SaveError: if a checkpoint cannot be written; those before are whole.

    >>> import numpy as np
    >>> stream = Stream(0, lambda i: ({"x": np.full((2, 1), i % 2, np.float32)}, i + 1))
    >>> distance = lambda w, frozen, batch, key: (jnp.mean((batch["x"] - w) ** 2), {})
    >>> state = train(distance, jnp.zeros(()), stream, optax.sgd(0.1), steps=100)
    >>> round(float(state.ema), 1)
    0.5
    """
    mesh = all_devices() if mesh is None else mesh
    state = initial_state(params, optimizer, seed, mesh, layout)
    advance = step_function(loss, optimizer, ema_decay, mesh, shardings(layout, mesh, state))
    position, intervals = stream.start, Intervals(log_every, save_every, watch_every)
    with ExitStack() as stack:
        wish = stack.enter_context(Wish())
        checkpoints = None
        if folder is not None:
            stack.enter_context(claimed(Path(folder) / ".checkpoints.lock"))
            checkpoints = stack.enter_context(Checkpoints(Path(folder) / "checkpoints", keep))
            state, position = _resumed(checkpoints, state, position)
        first = int(state.step)
        record = Record(folder, checkpoints, first, position, steps, label, begun)
        sizes = _sizes(first, steps, steps_per_call, intervals)
        calls = Prefetch(stream, position, sizes, accumulate, partial(over_devices, mesh))
        record, calls = stack.enter_context(record), stack.enter_context(calls)
        good, frozen = everywhere(mesh, (jnp.array(True), frozen))
        dispatched = _dispatched(advance, state, good, frozen, calls, record)
        for state, good, step in dispatched:
            end = step == steps
            look = end or intervals.due(step)
            # Several processes agree at looks; one alone need not wait for the next.
            stop = wish.agreed() if look or jax.process_count() == 1 else 0
            if look or stop:
                record.look(state, good)
            if end or stop or step % save_every == 0:
                record.save(state)
            if stop:
                raise Interrupted(stop, record.farewell(stop))
            if watch is not None and (end or step % watch_every == 0):
                record.watched(watch(whole(state.ema), step))
        record.wait()
        if stop := wish.agreed():  # during the last save or `watch`
            raise Interrupted(stop, record.farewell(stop))
    return state


def _dispatched(
    advance: Advance, state: State, good: Array, frozen: PyTree, calls: Prefetch, record: Record
) -> Iterator[tuple[State, Array, int]]:
    """The state, whether all was well, and the step, as they will be after each call of the step
    function: none of these is waited for, but one of `IN_FLIGHT` calls ago.
    """
    step, flight = int(state.step), deque()
    for call in calls:
        state, good, metrics = advance(state, good, frozen, call.batches)
        step += len(call.positions)
        record.note(metrics, call.positions)
        flight.append(metrics)
        if len(flight) > IN_FLIGHT:
            jax.block_until_ready(flight.popleft())
        yield state, good, step


class Intervals(NamedTuple):
    """Steps between looks, checkpoints and calls of `watch`. At each of them the loop looks."""

    log: int
    save: int
    watch: int

    def due(self, step: int) -> bool:
        return any(step % every == 0 for every in self)

    def next(self, step: int) -> int:
        """The first step after this one at which the loop looks."""
        return min((step // every + 1) * every for every in self)


def _sizes(step: int, steps: int, most: int, intervals: Intervals) -> Iterator[int]:
    """Steps of each call: as many as allowed, and no look passed over."""
    while step < steps:
        size = min(most, steps - step, intervals.next(step) - step)
        yield size
        step += size


def _resumed(checkpoints: Checkpoints, state: State, position: Any) -> tuple[State, Any]:
    """The state and position of the newest checkpoint, or these if there is none."""
    restored = checkpoints.restore(state)
    if restored is None:
        return state, position
    if not (jax.random.key_data(restored[0].key) == jax.random.key_data(state.key)).all():
        raise ResumeError(
            f"{checkpoints.folder} holds a run of another seed: give that seed to go on with it, "
            "or train into another folder"
        )
    return restored
