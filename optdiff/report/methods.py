"""Which rows are repetitions of one method, and what to call the methods of a problem.

Two rows belong to one method only if their configurations agree in all that makes one, and their
labels too: a configuration that goes by two names is shown under each. This file owns that identity
and the names that tell methods apart.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from optdiff import results
from optdiff.results import Row

NO_METHOD = ("nfe", "seed", "keep", "batch", "refresh", "study", "metrics", "exact")
"""Entries of a configuration that make no method: columns, repetitions, what is stored or measured.
The number of samples is none of them, for metrics depend on it."""

Leaves = dict[str, str]
Method = tuple[str, str, frozenset]
"""The labels of sampler and grid, and the leaves of the configuration."""


def jobs(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The rows of a problem with the names of their methods, one for each method, budget and seed.

    Rows that differ only in what was measured or stored are one job, of which the newest counts.
    """
    newest = {}
    for row in rows:
        method = row["sampler"], row["grid"], frozenset(_leaves_of(row).items())
        place = method, row["nfe_asked"], row["seed"]
        if place not in newest or row["time"] >= newest[place]["time"]:
            newest[place] = row
    names = _names(list(dict.fromkeys(method for method, _, _ in newest)))
    return [(names[method], row) for (method, _, _), row in newest.items()]


def _leaves_of(row: Row) -> Leaves:
    """What makes the method of a row: path and value of each entry of its configuration."""
    config = {name: entry for name, entry in row["config"].items() if name not in NO_METHOD}
    entries = results.leaves(config | {"samples": row["samples"]})
    return {".".join(path): _text(value) for path, value in entries}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _names(methods: Sequence[Method]) -> dict[Method, str]:
    """A name for each method: the sampler, what sets its configuration apart from others of that
    name, and the grid if there are several.
    """
    groups = defaultdict(list)
    for *labels, leaves in methods:
        groups[tuple(labels)].append(leaves)
    several_grids = len({grid for _, grid in groups}) > 1
    names = {}
    for (sampler, grid), group in groups.items():
        for leaves, apart in zip(group, _apart([dict(one) for one in group]), strict=True):
            name = " ".join([sampler, *apart])
            names[sampler, grid, leaves] = f"{name}, {grid}" if several_grids else name
    return names


def _apart(methods: list[Leaves]) -> list[list[str]]:
    """For each of several methods, the few entries like `learning_rate=0.1` that set it apart.

    At each step the entry that tells most of them apart; of equals the one with the shortest path.
    """
    paths = sorted({path for leaves in methods for path in leaves}, key=lambda p: (len(p), p))
    seen, entries = [()] * len(methods), [[] for _ in methods]
    while len(set(seen)) < len(methods):
        finer = {
            path: [(*place, m.get(path)) for place, m in zip(seen, methods, strict=True)]
            for path in paths
        }
        path = max(paths, key=lambda path: len(set(finer[path])))
        seen, values = finer[path], [leaves.get(path) for leaves in methods]
        for entry, text in zip(entries, _texts(path, values, paths), strict=True):
            entry.append(text)
    return entries


def _texts(path: str, values: list[str | None], paths: list[str]) -> list[str]:
    """An entry as text for each of its values: `optimizer=lion` for what is called there.

    The path is its shortest end that no other path has; of a `_target_` the last name, if that
    tells the values apart.
    """
    values = ["unset" if value is None else value for value in values]
    if path.endswith("._target_"):
        short = [value.rpartition(".")[2] for value in values]
        values = short if len(set(short)) == len(set(values)) else values
    others = [_parts(other) for other in paths if other != path]
    parts = _parts(path)
    lengths = range(1, len(parts) + 1)
    free = (n for n in lengths if all(other[-n:] != parts[-n:] for other in others))
    name = ".".join(parts[-next(free, len(parts)) :])
    return [f"{name}={value}" for value in values]


def _parts(path: str) -> list[str]:
    """The parts of a path, which of a `_target_` is the path of what it calls."""
    return path.removesuffix("._target_").split(".")
