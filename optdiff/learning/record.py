"""What a run leaves on the host: metrics that were looked at, curves, checkpoints, a progress bar.

It owns what was dispatched and not looked at yet. Of several processes the first writes curves and
shows progress; all of them save.
"""

import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
from jaxtyping import Array
from tqdm import tqdm

from optdiff.learning.checkpoints import Checkpoints
from optdiff.learning.curves import Curves, mean_of
from optdiff.learning.step import State


class Record:
    """One session of a run, from a step on. Leave its `with` to close its files.

    Args:
      folder: of the run, or None to write nothing.
      checkpoints: where to save, or None.
      step: where the session starts.
      position: where its stream does.
      steps: where the run ends.
      label: names the progress bar.
      begun: called once, after the first look has written its row and before anything is saved.
    """

    def __init__(
        self,
        folder: str | Path | None,
        checkpoints: Checkpoints | None,
        step: int,
        position: Any,
        steps: int,
        label: str,
        begun: Callable[[], None] | None = None,
    ):
        first = jax.process_index() == 0
        self._folder, self._checkpoints = folder, checkpoints
        self._curves = Curves(folder, step) if folder is not None and first else None
        self._bar = tqdm(
            desc=label, initial=step, total=steps, unit="step", disable=None if first else True
        )
        self._step, self._position = step, position
        self._metrics: list[dict[str, Array]] = []
        self._positions: list[Any] = []
        self._begun, self._began = begun, perf_counter()

    def note(self, metrics: dict[str, Array], positions: list[Any]) -> None:
        """A call was dispatched: its metrics (n,), still on devices, and the stream after each."""
        self._metrics.append(metrics)
        self._positions += positions

    def look(self, state: State, good: Array) -> None:
        """Fetch the metrics of the steps since the last look, and write their mean.

        Raises:
          FloatingPointError: if one of them was not finite, after saving the state before it.
        """
        fetched = jax.device_get(self._metrics)
        each = [{name: call[name][i] for name in call} for call in fetched
                for i in range(len(call["loss"]))]  # fmt: skip
        done = len(each) if good else int(state.step) - self._step
        if done:
            self._step += done
            self._position = self._positions[done - 1]
            self._write(mean_of(each[:done]))
        self._metrics, self._positions = [], []
        if self._begun is not None:
            self._begun()
            self._begun = None
        if done < len(each):
            self.save(state)
            raise FloatingPointError(self._postmortem(each[done]))

    def save(self, state: State) -> None:
        """Save the state that was looked at."""
        if self._checkpoints is not None:
            self._checkpoints.save(state, self._position)

    def wait(self) -> None:
        """Return when what was saved is on disk."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def watched(self, values: Mapping[str, Any]) -> None:
        """Write what `watch` returned about the step that was looked at."""
        if self._curves is not None:
            self._curves.watched(self._step, values)

    def farewell(self, signum: int) -> str:
        """Tell the user where the run stopped, once that is on disk, and how to go on."""
        name = signal.Signals(signum).name
        message = f"{name}: stopped after step {self._step}; no folder was given, so all is lost"
        if self._checkpoints is not None:
            self.wait()
            message = (
                f"{name}: stopped after step {self._step}, saved in {self._checkpoints.folder}; "
                "run the same command again to go on"
            )
        tqdm.write(message, file=sys.stderr)
        return message

    def _write(self, means: Mapping[str, float]) -> None:
        self._bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
        self._bar.update(self._step - self._bar.n)
        if self._curves is not None:
            self._curves.add(self._step, perf_counter() - self._began, means)

    def _postmortem(self, metrics: Mapping[str, Any]) -> str:
        where = "" if self._checkpoints is None else f", saved in {self._checkpoints.folder},"
        return (
            f"step {self._step + 1} is not finite: loss {metrics['loss']}, gradient norm "
            f"{metrics['grad_norm']}. The state before it{where} is untouched. Going on from there "
            "repeats the step: lower the learning rate, clip the gradient, or look at the batch"
        )

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        if self._curves is not None:
            self._curves.close()
