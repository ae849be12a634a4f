"""How far a sweep is: a bar over its jobs, in whatever processes they run."""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm import tqdm

RUN = "OPTDIFF_RUN"  # names the output folder of this sweep, in this process and its workers


class Progress(Callback):
    """Counts the jobs that have ended; Hydra sends it to the workers, so it holds nothing."""

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None  # which the launcher would keep of every job
        # A byte, appended: safe from any number of processes. It is for the eye alone.
        with suppress(OSError), open(_progress_file(), "a") as jobs:
            jobs.write(".")


def bar(total: int, unit: str) -> tqdm:
    """A bar; without a terminal, where it would fill a log, a line every half minute."""
    if sys.stderr and sys.stderr.isatty():
        return tqdm(total=total, unit=unit)
    line = "{n_fmt} of {total_fmt} {unit}s, {elapsed} gone, {remaining} left\n"
    every = {"delay": 30, "mininterval": 30, "maxinterval": 30}
    return tqdm(total=total, unit=unit, bar_format=line, disable=not sys.stderr, **every)


def watch(jobs: int) -> None:
    """Begin to show how many of so many jobs have ended."""
    watchers.append(_Watcher(jobs))


class _Watcher(threading.Thread):
    """Shows how many jobs have ended, and the time left."""

    def __init__(self, jobs: int):
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.bar = bar(jobs, "job")
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.5):
            self._show()

    def stop(self) -> None:
        self.ended.set()
        self.join()
        self._show()
        self.bar.close()

    def _show(self) -> None:
        with suppress(OSError):
            self.bar.update(_progress_file().stat().st_size - self.bar.n)


watchers: list[_Watcher] = []


def _progress_file() -> Path:
    """Holds a byte for each job that has ended."""
    return Path("outputs") / os.environ[RUN] / "jobs"
