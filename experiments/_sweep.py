"""The Hydra side of a sweep: start it, name what is mistyped, show progress, end with the report.

`run(main)` wraps a `hydra.main` function. Jobs tell how they went by what they return (`ok`,
`skipped` or `failed`), from whatever process they run in.
"""

import functools
import inspect
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm

RUN = "OPTDIFF_RUN"  # names the output folder of this sweep, in this process and its workers


class ConfigError(SystemExit):
    """A configuration that cannot work. It ends the sweep: every job would fail the same way."""


def run(main: Callable[[], Any]) -> int:
    """Run a `hydra.main` function, report what a sweep found, and return the exit code: 0 only if
    every job is well, whatever else came between."""
    os.environ[RUN] = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{uuid.uuid4().hex[:6]}"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be explained
    try:
        return _run(main)
    finally:
        while _watchers:
            _watchers.pop().stop()


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
    ended = [line.split(" ", 1) for line in _read(_progress_file()).splitlines()]
    if _watchers:
        from optdiff.report import report

        _watchers.pop().stop()
        for study in dict.fromkeys(study for _, study in ended):
            print(report(Path("results") / study))
    return code or int(any(outcome not in ("ok", "skipped") for outcome, _ in ended))


def explain(error: Exception) -> str:
    """What Hydra says of a configuration it cannot compose, with the closest thing that exists."""
    if isinstance(error, MissingConfigException) and error.options:
        wanted = str(error.missing_cfg_file)
        group, _, choice = wanted.rpartition("/")
        return f"{group or 'config'} has no {choice!r}{_closest(choice, error.options)}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} must be given: {cause.full_key}=..."
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        return f"there is no {cause.full_key!r}{_closest(str(cause.key), known)}"
    return f"{type(error).__name__}: {error}"


def check_targets(config: Any, where: str) -> None:
    """Refuse parameters that a `_target_` does not take, before anything is built or compiled.

    Raises:
      ConfigError: naming the parameter, where it stands and the closest valid one.
    """
    if isinstance(config, dict):
        if "_target_" in config:
            _check_call(config, where)
        for key, value in config.items():
            check_targets(value, f"{where}.{key}")
    elif isinstance(config, list):
        for i, value in enumerate(config):
            check_targets(value, f"{where}[{i}]")


def text(config: Any) -> str:
    """Plain data as JSON, in its own order: the first metric is the primary one."""
    return json.dumps(config)


def single() -> bool:
    """Whether this job is a run of its own and no part of a sweep."""
    return HydraConfig.get().mode == RunMode.RUN


def build(config: Any) -> Any:
    """Instantiate plain data: the objects that its `_target_`s name."""
    return instantiate(config, _convert_="all")


@functools.lru_cache(maxsize=64)
def build_once(config: str) -> Any:
    """Instantiate JSON, and return the same object for the same text: jobs share their problem."""
    return build(json.loads(config))


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


class Progress(Callback):
    """A bar over the jobs of a sweep, in whatever processes they run.

    Hydra sends it to the workers with every job, so it holds nothing itself.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _watchers.append(_Watcher(_count_jobs(config)))

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


_watchers: list[_Watcher] = []


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


def _check_call(config: dict[str, Any], where: str) -> None:
    name = config["_target_"]
    try:
        parameters = _parameters(name)
    except Exception as error:
        module, _, attribute = name.rpartition(".")
        siblings = dir(sys.modules[module]) if module in sys.modules else []
        raise ConfigError(
            f"{where}: nothing is called {name!r}{_closest(attribute, siblings)}"
        ) from error
    if parameters is None:
        return
    for key in config:
        if key not in parameters and not (key.startswith("_") and key.endswith("_")):
            raise ConfigError(
                f"{where}: {name} takes no parameter {key!r}{_closest(key, parameters)}"
            )


@functools.cache
def _parameters(target: str) -> list[str] | None:
    """The names that a target takes, or None if it takes any."""
    parameters = inspect.signature(get_object(target)).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if any_name else list(parameters)


def _closest(word: str, known: list[str]) -> str:
    known = sorted(k for k in known if not k.startswith("_"))
    close = get_close_matches(word, known, n=3, cutoff=0.5)
    close.sort(key=lambda name: sorted(name) != sorted(word))  # letters swapped come first
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return meant if len(known) > 40 else f"{meant} There is {', '.join(known) or 'none'}."
