"""The Hydra side of a sweep: start it, end it with the report and an exit code.

`run(main)` wraps a `hydra.main` function. Jobs tell how they went by what they return (`ok`,
`skipped` or `failed`), from whatever process they run in.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _errors import ConfigError, explain
from _progress import RUN, ended_jobs, watchers
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf.errors import OmegaConfBaseException


def run(main: Callable[[], Any]) -> int:
    """Run a `hydra.main` function, report what a sweep found, and return the exit code: 0 only if
    every job is well, whatever else came between."""
    os.environ[RUN] = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{uuid.uuid4().hex[:6]}"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be explained
    try:
        return _run(main)
    finally:
        while watchers:
            watchers.pop().stop()


def _run(main: Callable[[], Any]) -> int:
    code = 0
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(explain(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command takes up where it stopped", file=sys.stderr)
        code = 130
    except TerminatedWorkerError as error:
        print(f"{error}\nthe same command takes up the jobs that were lost", file=sys.stderr)
        code = 1
    ended = ended_jobs()
    if watchers:
        from optdiff.report import report

        watchers.pop().stop()
        for study in dict.fromkeys(study for _, study in ended):
            print(report(Path("results") / study))
    return code or int(any(outcome not in ("ok", "skipped") for outcome, _ in ended))


def single() -> bool:
    """Whether this job is a run of its own and no part of a sweep."""
    return HydraConfig.get().mode == RunMode.RUN


def label(group: str) -> str:
    """The choice of a config group with the parameters that this job overrides, for tables."""
    hydra = HydraConfig.get()
    given = [override.lstrip("+").partition("=") for override in hydra.overrides.task]
    settings = [
        value if key.endswith("_target_") else f"{key.rpartition('.')[2]}={value}"
        for key, _, value in given
        if key.startswith(f"{group}.")
    ]
    return hydra.runtime.choices[group] + (f"({', '.join(settings)})" if settings else "")
