"""The Hydra side of a sweep: start it, end it with an exit code, and its workers with it."""

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from _errors import ConfigError, WriteError, explain
from _progress import RUN, watchers
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf.errors import OmegaConfBaseException


def run(
    main: Callable[[], Any],
    conclude: Callable[[bool, bool], int] = lambda sweep, whole: 0,
    advice: str = "",
) -> int:
    """Run a `hydra.main` function and return the exit code.

    Args:
      main: the function.
      conclude: called in the end, unless the configuration was refused, with whether it was a
        sweep and whether nothing cut it short: says what came of it, and returns the exit code.
      advice: what to do once it was cut short, such as `RESUMES`.
    """
    os.environ[RUN] = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{uuid.uuid4().hex[:6]}"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be explained
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # tables have signs that not every terminal has
            stream.reconfigure(errors="replace")
    try:
        code = _run(main, advice)
        sweep = bool(watchers)
        _stop_watching()
        code = code if code == REFUSED else max(code, conclude(sweep, code == 0))
        print(end="", flush=True)
        return code
    except BrokenPipeError:  # whoever read along has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        print(f"{error}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        _stop_watching()


REFUSED = 2
"""The exit code of what cannot work."""

RESUMES = "; the same command takes up where it stopped"
"""The advice of what loses no finished work."""


def _run(main: Callable[[], Any], advice: str) -> int:
    try:
        main()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return REFUSED
    except (HydraException, OmegaConfBaseException) as error:
        print(explain(error), file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends at once
        print(f"interrupted{advice}", file=sys.stderr)
        return 130
    except (TerminatedWorkerError, WriteError) as error:
        print(f"{error}{advice}", file=sys.stderr)
        return 1
    return 0


def _stop_watching() -> None:
    while watchers:
        watchers.pop().stop()


@functools.cache
def end_with_parent() -> None:
    """In a worker of joblib: end when the process does that started it, by whatever that ends."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def single() -> bool:
    """Whether this job is a run of its own and no part of a sweep."""
    return HydraConfig.get().mode == RunMode.RUN
