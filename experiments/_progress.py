"""How far a sweep is: a bar over its jobs, in whatever processes they run."""

import os
import threading
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from tqdm import tqdm

RUN = "OPTDIFF_RUN"  # names the output folder of this sweep, in this process and its workers


class Progress(Callback):
    """A bar over the jobs of a sweep, in whatever processes they run.

    Hydra sends it to the workers with every job, so it holds nothing itself.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        watchers.append(_Watcher(_count_jobs(config)))

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        returned = job_return._return_value
        outcome = returned if isinstance(returned, str) else "broken"
        # One short line, appended: safe from any number of processes, and lost with none of them.
        with open(_progress_file(), "a") as jobs:
            jobs.write(f"{outcome} {config.study}\n")


class _Watcher(threading.Thread):
    """Shows how many jobs have ended, and the time left."""

    def __init__(self, jobs: int):
        super().__init__(daemon=True)
        self.ended = threading.Event()
        # Without a terminal there is nobody to watch, and the bar would fill a log.
        self.bar = tqdm(total=jobs, unit="job", disable=None)
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
        self.bar.update(_read(_progress_file()).count("\n") - self.bar.n)


watchers: list[_Watcher] = []


def ended_jobs() -> list[list[str]]:
    """Of each job that has ended, in whatever process: how it went, and its study."""
    return [line.split(" ", 1) for line in _read(_progress_file()).splitlines()]


def _progress_file() -> Path:
    """Holds a line for each job that ended: how it went, and its study."""
    folder = Path("outputs") / os.environ[RUN]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "jobs"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _count_jobs(config: DictConfig) -> int:
    swept = [f"{k}={v}" for k, v in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # who knows of globs
    parsed = parser.parse_overrides([*swept, *config.hydra.overrides.task])
    choices = {
        o.key_or_group: len(list(o.sweep_iterator())) if o.is_sweep_override() else 1
        for o in parsed
    }
    total = 1
    for count in choices.values():
        total *= count
    return total
