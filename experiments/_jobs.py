"""What a job is: what may be asked for, the names it goes by in tables, and whether it is done.

All of it is known before anything compiles, for every job of a sweep before the first one runs.
"""

import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

from _build import check_targets, constructed, folder_name, text, whole_numbers
from _errors import ConfigError, closest

from optdiff import provenance, results

RESULTS = Path("results")

HOW_NOT_WHAT = ("study", "batch", "refresh")
"""Entries that do not change what a job finds, but for `together`."""

SHARED = ("problem", "metrics", "exact", "seed", "samples", "batch")
"""Entries that decide what the jobs of a comparison share."""

LEAST = {"nfe": 1, "samples": 1, "batch": 1, "keep": 1, "seed": None, "exact.levels": 2}
"""Entries that are whole numbers, and the least that each may be."""

OPTIONAL = ("metrics", "size")
"""Groups of which Hydra takes a choice that does not exist for none."""


class Job(NamedTuple):
    """The configuration of a job, its key, and the names of its problem, sampler and grid."""

    config: dict[str, Any]
    key: str
    names: dict[str, str]

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return results.identity({"key": self.key, **self.names})


def job(
    config: dict[str, Any],
    choices: Mapping[str, str],
    overrides: Sequence[str],
    options: Callable[[str], list[str]],
) -> Job:
    """Know a job, or refuse it.

    Args:
      config: what it is asked for, without Hydra's own part.
      choices: of config groups.
      overrides: as they were typed, which name the parameters that it changes.
      options: all choices of a group.

    Raises:
      ConfigError: for what cannot work, in one line.
    """
    for group in OPTIONAL:
        choice = next((o[len(group) + 1 :] for o in overrides if o.startswith(f"{group}=")), "null")
        if choice != "null" and choice not in options(group):
            raise ConfigError(f"{group} has no {choice!r}{closest(choice, options(group))}")
    if "metrics" not in config:
        raise ConfigError("no metrics go by this problem's name; choose some: metrics=trajectory")
    config = whole_numbers(config, LEAST) | {"study": folder_name("study", config["study"])}
    _check(text({name: entry for name, entry in config.items() if isinstance(entry, dict)}))
    names = {group: _label(group, choices, overrides) for group in ("problem", "sampler", "grid")}
    if (clock := _label("clock", choices, overrides)) != "plain":
        names["sampler"] += f" {clock}"
    new = Job(config, _key(config), names)
    known = log(config["study"], config["refresh"]).names.get(_typed_anyhow(new.identity))
    return new if known is None else new._replace(**known)


def ask(job: Job) -> bool:
    """Note that a job is asked for; return whether it is to be done."""
    where = job.config["study"], job.config["refresh"]
    asked.setdefault(where, set()).add(job.identity)
    done = log(*where).has(job.identity)
    artifact = log(*where).damaged.pop(job.identity, None)
    if artifact and not done and multiprocessing.parent_process() is None:  # once, not by workers
        print(f"{artifact} is damaged, so its job runs again", file=sys.stderr)
    return not done


asked: dict[tuple[str, str], set[tuple[str, ...]]] = {}
"""By study and `refresh`, what this process was asked for."""


class Log:
    """The log of a study as a process sees it: `names` has the key and the names of each job there
    was when it began, by identity, and `damaged` the artifacts of those that are not whole.

    Raises:
      ConfigError: if it cannot be read.
    """

    def __init__(self, study: str, refresh: str):
        sources = {"failed": None, "stale": provenance.source_digest(), "all": ""}  # which none has
        if refresh not in sources:
            raise ConfigError(f"refresh is one of {', '.join(sources)}, not {refresh!r}")
        self.folder = RESULTS / study
        try:
            _, self.read = results.appended(self.folder, 0)
            rows = results.load(self.folder)
        except (OSError, ValueError) as error:
            raise ConfigError(f"study {study}: {error}") from error
        self.names, self.done, self.damaged = {}, set(), {}
        for row in rows:
            names = {group: row[group] for group in ("problem", "sampler", "grid")}
            # `1` and `1.0` once were two jobs; what is known by either stays known by it.
            identity = _typed_anyhow((_key(row["config"]), *names.values()))
            self.names[identity] = {"key": row["key"], "names": names}
            if row["status"] == "ok" and sources[refresh] in (None, row["source"]):
                self._left_alone(row)

    def has(self, job: tuple[str, ...]) -> bool:
        """Whether a job is left alone: it was done as `refresh` wants it, or has been tried since,
        by whatever process."""
        rows, self.read = results.appended(self.folder, self.read)
        self.done.update(map(results.identity, rows))
        return job in self.done

    def _left_alone(self, row: results.Row) -> None:
        artifact = self.folder / "artifacts" / f"{row['key']}.npz"
        if artifact.exists() and not is_zipfile(artifact):
            self.damaged[results.identity(row)] = artifact
        else:
            self.done.add(results.identity(row))


log = lru_cache(Log)


def _typed_anyhow(identity: tuple[str, ...]) -> tuple[str, ...]:
    """An identity whose names say 1 where 1.0 was typed."""
    return tuple(re.sub(r"(?<![\w.])(-?\d+)\.0*(?![\w.])", r"\1", part) for part in identity)


def shared(config: Mapping[str, Any]) -> str:
    """The part of a configuration that decides what jobs share, as JSON."""
    return text({name: config[name] for name in SHARED})


def construct(job: Job) -> None:
    """Build the samplers of a job, whose constructors look at their parameters.

    Raises:
      ConfigError: with what one of them says.
    """
    constructed("sampler", job.config["sampler"])
    constructed("exact.sampler", job.config["exact"]["sampler"])


@lru_cache(maxsize=64)
def _check(objects: str) -> None:
    """Look at the calls of a configuration, once for all the jobs that have the same."""
    check_targets(json.loads(objects), "config")


def together(config: Mapping[str, Any]) -> dict[str, int]:
    """How many samples are drawn at a time, where that changes them: networks in half precision
    round in another order for another number, by up to 2% of an evaluation (results/benchmarks)."""
    half = config["problem"].get("dtype") in ("bfloat16", "float16")
    return {"batch": min(config["batch"], config["samples"])} if half else {}


def _key(config: Mapping[str, Any]) -> str:
    what = {k: v for k, v in config.items() if k not in HOW_NOT_WHAT}
    return results.config_key(what | together(config))


def _label(group: str, choices: Mapping[str, str], overrides: Sequence[str]) -> str:
    """The choice of a config group with the parameters that a job changes, for tables."""
    settings = [
        value if key.endswith("_target_") else f"{key.rpartition('.')[2]}={value}"
        for key, _, value in (override.lstrip("+").partition("=") for override in overrides)
        if key.startswith(f"{group}.")
    ]
    return choices[group] + (f"({', '.join(settings)})" if settings else "")
