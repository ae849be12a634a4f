"""A process that prepares a piece of work and runs it when asked, with its time and its memory."""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

STATUS, FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Work(NamedTuple):
    """What a side prepares: a call to time, and what is to be said of it.

    Attributes:
      call: does the work and waits for it.
      rate: FLOP/s of a large matrix product; by default 0, for who does not ask.
      facts: whatever else there is to tell, asked for after the first call.
      peak: bytes held at most on an accelerator; by default what the process held.
    """

    call: Callable[[], Any]
    rate: Callable[[], float] = float
    facts: Callable[[], dict[str, Any]] = dict
    peak: Callable[[], float] | None = None


class Ended(Exception):
    """A side stopped before it answered."""


class Side:
    """The asking end: a script that calls `serve`, once it has prepared the job."""

    def __init__(self, script: str, job: dict[str, Any]):
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # an accelerator is shared by both sides
            "PYTHONWARNINGS": "ignore",
            "TRANSFORMERS_VERBOSITY": "error",
            "DIFFUSERS_VERBOSITY": "error",
        }
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name(script), json.dumps(job)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.facts, self.seconds = self._hear(), []

    def run(self) -> float:
        """Seconds of one call."""
        print("run", file=self.process.stdin, flush=True)
        self.facts |= self._hear()
        self.seconds.append(self.facts["seconds"])
        return self.facts["seconds"]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise Ended(f"{self.process.args[1].name} ended with code {self.process.wait()}")
        return json.loads(line)


def serve(prepare: Callable[[dict[str, Any]], Work]) -> None:
    """The answering end: prepare the job of the command line, then run it for every line heard.

    Memory is told twice: `ever`, the most that was held, with building and compiling, and `peak`,
    the most during later calls, once what compiling left has been given back.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    work = prepare(json.loads(sys.argv[1]))
    peak = work.peak or resident_peak
    first, ever = timed(work.call), peak()
    answer(first=first, ever=ever, rate=work.rate(), **work.facts())
    gc.collect()
    if FORGET_PEAK.exists():
        with contextlib.suppress(AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)
        FORGET_PEAK.write_text("5")
    for _ in sys.stdin:
        answer(seconds=timed(work.call), peak=peak())


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def medians(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, all of them in turns; their first, which compile, left out."""
    rounds = [{name: timed(call) for name, call in calls.items()} for _ in range(repeats + 1)]
    return {name: median(each[name] for each in rounds[1:]) for name in calls}


def resident_peak() -> float:
    """Bytes that this process held at most, or since the kernel was last told to forget; NaN
    where it does not tell."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((1024.0 * int(s.split()[1]) for s in lines if s.startswith("VmHWM")), float("nan"))
