"""SIGTERM and Ctrl-C during training: a wish to stop, which the loop grants after the step.

And what keeps a run from going on afterwards. This file owns signal handlers while a run lasts;
what stopping means is the loop's business.
"""

import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Interrupted(SystemExit):
    """Training was asked to stop and has saved its state.

    Left alone it ends the process with the status that shells give to a process that the signal
    ended, so that nothing that follows the training takes it for finished.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(128 + signum)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ResumeError(ValueError):
    """A folder holds a run that cannot be gone on with as asked; it says what can be done."""


class Wish:
    """Notes SIGTERM and SIGINT while its `with` lasts. A second Ctrl-C interrupts at once. One that
    came and that nobody asked for is sent again when the `with` ends, to whoever handled it before.

    Outside the main thread, where Python handles no signals, it notes none.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.signum = 0
        self._before: dict[int, Any] = {}

    def agreed(self) -> int:
        """The signal that some process was sent, or 0: the same answer in every process."""
        if jax.process_count() == 1:
            return self.signum
        return int(np.max(multihost_utils.process_allgather(np.array(self.signum))))

    def _note(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def __enter__(self) -> "Wish":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            # None: it was not set from Python, and cannot be put back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.signum and self._before and error[0] is None:
            signal.raise_signal(self.signum)  # it came when there was nothing left to stop
