"""What a stage's folder says of its run, in `run.json`: what was asked for, and what came of it."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _sweep import ConfigError

from optdiff import provenance, results

HOW_NOT_WHAT = (
    "folder", "preset", "resume", "distributed", "layout", "steps_per_call",
    "log_every", "save_every", "watch_every",
)  # fmt: skip
"""Entries that may change when a run goes on: they do not change what it learns."""


def begin(folder: Path, config: Mapping[str, Any], parts: Mapping[str, Path], device: str) -> bool:
    """Note which run this is, before it learns anything.

    Args:
      folder: of the stage.
      config: what was asked for.
      parts: folders of the networks that it starts from.
      device: what it runs on, in words.

    Returns:
      Whether there is anything left to do: False if the folder holds this very run, finished.

    Raises:
      ConfigError: if the folder holds another run and `resume` is not `any`, naming what differs.
    """
    asked = {
        "config": {name: value for name, value in config.items() if name not in HOW_NOT_WHAT},
        "parts": {part: provenance.content_digest(path) for part, path in parts.items()},
    }
    asked, before = json.loads(json.dumps(asked)), read(folder)
    learned = any((folder / "checkpoints").glob("[0-9]*")) or (folder / "model").exists()
    others = list(_differences(before, asked)) if before is not None and learned else []
    if others and config["resume"] != "any":
        raise ConfigError(
            f"{folder} holds another run: {'; '.join(others)}. Train into another folder=..., "
            "delete this one to start anew, or go on with its weights all the same: resume=any"
        )
    if learned and not others and "scores" in (before or {}):
        return False
    told = {"command": " ".join(["python", *sys.argv])}
    _write(folder, told | asked | provenance.provenance(device))
    return True


def finish(folder: Path, **found: Any) -> None:
    """Add what came of the run."""
    _write(folder, {**(read(folder) or {}), **found})


def read(folder: Path) -> dict[str, Any] | None:
    """The note of a folder, None if there is none."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.exists() else None


def _differences(before: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """What another run was asked for, and what it is now, in words."""
    there, here = (
        dict(results.leaves({name: run.get(name, {}) for name in ("config", "parts")}))
        for run in (before, asked)
    )
    for path in sorted({*there, *here}):
        if path[1] in HOW_NOT_WHAT or there.get(path) == here.get(path):
            continue
        if path[0] == "parts":
            yield f"its {path[1]} was another"
        else:
            old, new = (run.get(path, "nothing") for run in (there, here))
            yield f"{'.'.join(path[1:])} was {old} and is {new}"


def _write(folder: Path, note: Mapping[str, Any]) -> None:
    results.write(folder, {"run.json": (json.dumps(note, indent=1) + "\n").encode()})
