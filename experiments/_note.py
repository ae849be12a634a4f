"""What a stage's folder says of its run, in `run.json`: what was asked for, and what came of it."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from _errors import ConfigError

from optdiff import provenance, results
from optdiff.data.fingerprint import fingerprint
from optdiff.data.image_folder import folder_files
from optdiff.data.webdataset import shard_paths

WHAT = (
    "task", "data", "held_out", "seed", "steps", "batch", "accumulate", "optimizer", "clip",
    "ema_decay", "dtype",
)  # fmt: skip
"""Entries that decide what is learned. All others say how, or are in these already."""

OF_STAGES = {"tokenizer": ("task", "texts"), "unet": (*WHAT, "critics")}
"""Those of the stages for which it is others: a generator has its critics beside it."""

HOW = "threads"
"""What says how within those."""

NEVER = (("config", "seed"), ("config", "data", "_target_"), ("content", "data"))
"""What no run goes on with another of: its random numbers, and what its position counts."""


def begin(
    folder: Path, config: Mapping[str, Any], parts: Mapping[str, Path], device: str
) -> dict[str, Any] | None:
    """What to note of this run once it begins to learn.

    Args:
      folder: of the stage.
      config: what was asked for.
      parts: folders of the networks that it starts from.
      device: what it runs on, in words.

    Returns:
      The note, for `write`; None if the folder holds this very run, finished.

    Raises:
      ConfigError: if the folder holds another run and `resume` is not `any`, naming what differs;
        or if it differs in what a run cannot change.
    """
    note = {
        "config": {name: value for name, value in config.items() if name != "preset"},
        "parts": {part: provenance.content_digest(path) for part, path in parts.items()},
        "content": dict(_content(config)),
    }
    note, before = json.loads(json.dumps(note)), read(folder)
    saves = (path.name for path in (folder / "checkpoints").glob("*"))  # and halves of them
    learned = any(name.isdigit() for name in saves) or (folder / "model").exists()
    others = dict(_differences(before, note)) if before is not None and learned else {}
    never = [others[path] for path in NEVER if path in others]
    if never or (others and config["resume"] != "any"):
        either = "" if never else ", or go on with its weights all the same: resume=any"
        raise ConfigError(
            f"{folder} holds another run: {'; '.join(never or others.values())}. Train into "
            f"another folder=..., {'or ' * bool(never)}delete this one to start anew{either}"
        )
    if finished(folder) and not others:
        return None
    command = shlex.join(["python", *sys.argv])
    return {"command": command} | note | provenance.provenance(device)


def write(folder: Path, note: Mapping[str, Any]) -> None:
    """Put the note of a folder in its place, whole."""
    results.write(folder, {"run.json": (json.dumps(note, indent=1) + "\n").encode()})


def read(folder: Path) -> dict[str, Any] | None:
    """The note of a folder, None if there is none."""
    file = folder / "run.json"
    return json.loads(file.read_text()) if file.exists() else None


def finished(folder: Path) -> bool:
    """Whether a stage was learned to its end and has left its network."""
    return "scores" in (read(folder) or {}) and (folder / "model").exists()


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where another run was asked for something else than this one, and both in words."""
    names = OF_STAGES.get(now["config"]["stage"], WHAT)
    there, here = (dict(results.leaves(_chosen(run, names))) for run in (before, now))
    for path in sorted({*there, *here}):
        if there.get(path) == here.get(path) or path[-1] == HOW:
            continue
        if path[0] == "parts":
            yield path, f"its {path[1]} was another"
        elif path[0] == "content":  # which notes of before lack, and data that have gone
            if path in there and path in here:
                yield path, f"the files of {path[1]} are not those of before"
        else:
            old, new = (run.get(path, "nothing") for run in (there, here))
            yield path, f"{'.'.join(path[1:])} was {old} and is {new}"


def _chosen(run: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    config = run.get("config", {})
    chosen = {name: config[name] for name in names if name in config}
    content = {name: digest for name, digest in run.get("content", {}).items() if name in names}
    return {"config": chosen, "parts": run.get("parts", {}), "content": content}


def _content(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is in the files of the data, by entry: those of a folder or of shards."""
    for name in ("data", "held_out", "texts"):
        options = config.get(name) or {}
        columns = {column: options[column] for column in ("file", "text") if column in options}
        with suppress(OSError, ValueError):  # said when they are read, if they are
            if "shards" in options:
                yield name, fingerprint(shard_paths(options["shards"]))
            elif "path" in options:
                yield name, fingerprint(folder_files(options["path"], **columns))
