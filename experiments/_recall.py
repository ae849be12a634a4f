"""What made an image, recalled from the text in its file: choices and plain data, never code.

A note keeps a whole configuration, with the `_target_`s that were run. Here they are compared, and
not run: a group is rebuilt from the choice of `conf` that has the same ones at the same places, and
takes nothing but plain parameters from the note. What these name outside the image is opened, and
more than `MOST` of anything made, only if that is trusted.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from _errors import ConfigError
from omegaconf import OmegaConf

from optdiff.images import read_note
from optdiff.nn.checkpoint import checkpoint_files
from optdiff.nn.hub import locate
from optdiff.problems.captioned_digits import SHIPPED
from optdiff.provenance import content_digest, stamp
from optdiff.results import leaves, remember

CONF = Path(__file__).parents[1] / "conf"
CACHE = Path("outputs/.cache")  # deleting it costs time and nothing else
GROUPS = ("problem", "sampler", "grid")

OF_THE_CALL = ("from", "out", "preview", "trust", "changed", "digests", "prompt_file")
"""Entries that no note decides. Of these `prompt_file` is a local file, which would be read into
the next note; its prompts are noted instead."""

OURS = "optdiff.problems.captioned_digits.text_to_image"
"""The problem that needs no path: its model comes with optdiff."""

OUTSIDE = {
    ("init_image",), ("latents",), ("problem", "path"), ("problem", "like"), ("problem", "variant"),
    ("problem", "revision"),
}  # fmt: skip
"""Entries that say which files are read, or fetched from the hub."""

MOST = 4096
"""The largest whole number, seeds aside, and the longest list that a note decides."""

SAYING = ("_target_", "_args_")
"""Of what Hydra's `instantiate` is told, what is run and on what; the rest says how."""

Place = tuple[str | int, ...]


def note_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `read` is to find in the images of a settled configuration, but for their index."""
    return {"config": _lasting(config), "digests": digests(config)}


def read(image: str) -> dict[str, Any]:
    """The note of an image, as far as it is one of ours.

    Returns:
      `config`: plain data, and names of code beside it; `index` of the image among those of its
      call, None for all of them.

    Raises:
      ConfigError: if there is none, or one that says something else.
    """
    try:
        note = read_note(image)
        fault = next(_faults(note), None)
    except (OSError, ValueError) as error:
        raise ConfigError(f"from: {error}") from error
    except RecursionError:
        fault = "it is nested too deeply"
    if fault:
        raise ConfigError(f"from: {image}: its note is none of generate.py's: {fault}")
    config = {"grid": None} | _lasting(note["config"])
    return {"index": None, "digests": {}} | note | {"config": config}


def choices(
    image: str, *, chosen: Sequence[str] = (), folder: str | None = None, trust: bool = False
) -> list[str]:
    """The choices of the config groups that an image was made with, as overrides for Hydra.

    Args:
      image: a PNG with a note.
      chosen: groups that are chosen anew, whatever the note says.
      folder: configs of one's own, whose choices are looked at too.
      trust: leave out, and name, what is no choice of any; `laid_over` takes it from the note.

    Raises:
      ConfigError: as for `read`; and for code that is no choice's, unless that is trusted.
    """
    config, overrides = read(image)["config"], []
    for group in (group for group in GROUPS if group not in chosen and config[group] is not None):
        if name := _choice(group, config, folder):
            overrides.append(f"{group}={name}")
            continue
        said = f"from: no choice of {group} runs what made {image}: {_runs(config[group])}"
        if not trust:
            raise ConfigError(
                f"{said}. Give {group}=... anew, or have this run, if you know who made the image "
                "and what it does: trust=true"
            )
        print(f"{said}; trusted, so it is run", file=sys.stderr)
    return overrides


def laid_over(now: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration composed with the `choices` of a note, with the note's parameters in it.

    What `changed` names stays as it is; so does all that names code, unless `trust` says otherwise.

    Raises:
      ConfigError: if the note has another entry than the configuration, or runs something else, or
        would take what lies outside it or more than `MOST`, and that is not trusted.
    """
    changed = [tuple(name.split(".")) for name in now["changed"]]
    then, taken = dict(note["config"]), {}
    if unknown := [name for name in then if name not in {*now, *GROUPS}]:
        raise ConfigError(f"from: the note has {', '.join(map(repr, unknown))}, which is no entry")
    if ("prompt_file",) in changed:
        then["prompt"] = now["prompt"]
    for group in (group for group in GROUPS if (group,) not in changed):
        ours, theirs = _code(now.get(group)), _code(then[group])
        places = [p for p in {*ours, *theirs} if (group, *p) not in changed]
        if then[group] is not None and any(
            ours.get(place) != theirs.get(place) for place in places
        ):
            if not now["trust"]:
                raise ConfigError(
                    f"from: {group} would run {_runs(then[group])}; trust=true lets it"
                )
            taken[group] = then.pop(group)
    anew = {".".join(place) for place in changed} | {
        place[0] for place in changed if len(place) == 1
    }
    if "problem" in anew or {"problem.variant", "problem.revision"} & anew:
        anew.add("problem.path")
    before = {name: digest for name, digest in note["digests"].items() if name not in anew}
    config = {**_overlaid(now, then, changed), **taken}
    if wide := ", ".join(_wide(config, now)):
        said = f"from: {now['from']} asks for {wide}"
        if not now["trust"]:
            raise ConfigError(
                f"{said}. Give what you mean of it anew, or have it all, if you know who made the "
                "image: trust=true"
            )
        print(f"{said}; trusted, so it is taken", file=sys.stderr)
    return config | {"digests": before}


def digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what lies in the files that an image is made from, by entry. Where its note knew
    of others, that is said.
    """
    problem, files = config["problem"], {name: config[name] for name in ("init_image", "latents")}
    now = {name: content_digest(file) for name, file in files.items() if file is not None}
    path = problem.get("path") or (SHIPPED if problem["_target_"] == OURS else None)
    if path is not None:
        patterns = checkpoint_files(problem.get("variant"))
        root = locate(path, patterns, problem.get("revision"))
        # Parts of which there is no such variant are plain.
        now["problem.path"] = _digest_once(root, {*patterns, *checkpoint_files()})
    for name, digest in config.get("digests", {}).items():
        if now.get(name, digest) != digest:
            named = files.get(name, path)
            print(f"from: {name} = {named} holds something else than then, so this is another "
                  "picture", file=sys.stderr)  # fmt: skip
    return now


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in OF_THE_CALL}


def _digest_once(root: Path, patterns: Collection[str]) -> str:
    """`content_digest` of a checkpoint, whose gigabytes are read once while its stamp is the same;
    or each time, where nothing can be kept."""
    depends = {"path": str(root.resolve()), "patterns": sorted(patterns), "stamp": stamp(root)}
    with suppress(OSError):
        return str(remember(CACHE, depends, lambda: np.array(content_digest(root, patterns))))
    return content_digest(root, patterns)


def _wide(config: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What a note has put into a configuration that names files, or more than `MOST`, in words."""
    ours, counts = dict(leaves(now)), {}
    for place, value in leaves(config):
        if value is None or ours.get(place) == value:
            continue
        count = len(value) if isinstance(value, list) else value
        counts[place] = count if type(count) is int and place[-1] not in ("seed", "seed_to") else 1
        if place in OUTSIDE or counts[place] > MOST:
            yield f"{'.'.join(place)} = {_letters(value)}"
    number = prod(counts.get((name,), 1) for name in ("prompt", "guidance", "images"))
    if number > MOST >= max(counts.values(), default=0):
        yield f"{number} images"


def _letters(value: Any) -> str:
    """A value as 200 letters of a line, none of which a terminal obeys."""
    return repr(str(value))[1:-1][:200]


def _overlaid(now: Any, then: Any, changed: Sequence[Place]) -> Any:
    """The plain data of `then` over that of `now`, but for what has changed."""
    if () in changed or not isinstance(then, Mapping):
        return now if () in changed else then
    merged = dict(now) if isinstance(now, Mapping) else {}
    for name, value in then.items():
        below = [place[1:] for place in changed if place[0] == name]
        if not (name.startswith("_") or (() in below and name not in merged)):
            merged[name] = _overlaid(merged.get(name), value, below)
    return merged


def _choice(group: str, config: Mapping[str, Any], folder: str | None) -> str | None:
    """The choice of a group that runs what a configuration says, at the same places."""
    wanted = _code(config[group])
    named = {value for value in wanted.values() if isinstance(value, str)}
    roots = [CONF] + ([] if folder is None else [Path(folder).absolute()])
    files = [file for root in roots for file in sorted((root / group).glob("*.yaml"))]
    # To compose all would take seconds; those that name most of it are likeliest.
    likely = {file.stem: len(named & {*file.read_text("utf-8").split()}) for file in files}
    for name in sorted(filter(likely.get, likely), key=likely.get, reverse=True):
        template = _template(group, name, tuple(roots[1:]))
        shared = {
            key: config["problem"] for key, value in template.items() if value == "${problem}"
        }
        if _code(template | shared) == wanted:
            return name
    return None


@cache
def _template(group: str, name: str, roots: tuple[Path, ...]) -> dict[str, Any]:
    """A choice of a group, composed, with its interpolations as they stand."""
    search = f"hydra.searchpath=[{','.join(f'file://{root}' for root in roots)}]"
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("generate", [search, f"{group}={name}"])
    return OmegaConf.to_container(composed[group], resolve=False)


def _code(config: Any) -> dict[Place, Any]:
    """What a configuration has to say to Hydra's `instantiate`, by place: names such as `_target_`,
    and whatever else begins with an underscore."""
    code: dict[Place, Any] = {}
    entries = config if isinstance(config, Mapping) else {}
    if isinstance(config, list):
        entries = dict(enumerate(config))
    for name, value in entries.items():
        if isinstance(name, str) and name.startswith("_"):
            code[(name,)] = value
        else:
            code |= {(name, *place): value for place, value in _code(value).items()}
    return code


def _runs(config: Any) -> str:
    """The code that a configuration names, in words."""
    code = {place: value for place, value in _code(config).items() if place[-1] in SAYING}
    said = (f"{'.'.join(map(str, place))} = {_letters(value)}" for place, value in code.items())
    return ", ".join(said)


def _faults(note: Any) -> Iterator[str]:
    """What no note of ours has."""
    config = note.get("config") if isinstance(note, dict) else None
    if not isinstance(config, dict):
        yield "it has no configuration"
        return
    index = note.get("index")
    if index is not None and not (type(index) is int and index >= 0):
        yield f"index = {index!r} counts no image"
    if not isinstance(note.get("digests", {}), dict):
        yield "digests are not named"
    for group in GROUPS:
        entry = config.get(group)
        if not isinstance(entry, dict) and not (group == "grid" and entry is None):
            yield f"{group} = {entry!r} is no choice"
        elif any("${" in text or text == "???" for text in _texts(entry)):
            yield f"{group} is to be looked up elsewhere"
    if code := _code({name: value for name, value in config.items() if name not in GROUPS}):
        yield f"{next(iter(code))} is no entry"


def _texts(value: Any) -> Iterator[str]:
    """All strings of plain data, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from _texts(part)
