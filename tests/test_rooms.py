"""The rooms of the tree: who may import whom, what no file may be called, how long one may grow.

The rules are the design's. Sources are parsed, not run, so that an import inside a function, behind
`TYPE_CHECKING` or by `importlib` counts like any other.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("optdiff/**/*.py"), *ROOT.glob("experiments/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
LONGEST = 350

MAY_IMPORT = {  # of optdiff, beside the room itself
    "types": set(),
    "keys": {"types"},
    "noise": {"types"},
    "grids": {"types"},
    "samplers": {"types", "keys"},
    "nn": {"types"},
    "metrics": {"types", "keys"},
    "data": {"types", "keys", "images"},  # one reader of images
    "denoisers": {"types", "noise"},
    "scheduler_config": {"types", "noise", "grids", "denoisers"},
    "problems": {"types", "keys", "denoisers", "noise", "scheduler_config", "nn", "data"},
    "sample": {"types", "keys"},
    "cost": {"types", "keys", "sample"},
    "clocks": {"types"},
    "analysis": {"types", "keys", "sample", "cost", "samplers", "grids"},
    "learning": {
        *("types", "keys", "sample", "samplers", "grids", "nn", "data", "denoisers"),
        "scheduler_config",
    },
    "images": set(),  # image files in and out
    "allocator": set(),  # the memory of a process, for `experiments`
    "provenance": set(),  # where a row comes from: the part of `results` that asks git
    "results": {"types", "provenance"},
    "report": {"types", "results", "provenance"},
}
ONLY_IN_EXPERIMENTS = {"hydra", "omegaconf"}
DRIVER_MAY_USE = {"jax", "jaxtyping", "numpy", "optax", "collections", "functools", "typing"}


def imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports; `package` is where it lives."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def violations(path: Path, source: str) -> list[str]:
    """What a file (its path from the root) imports against the rules: file, line and rule."""
    parts = path.with_suffix("").parts
    house, room = parts[0], parts[1]
    found = []
    for line, name in imports(ast.parse(source), ".".join(parts[:-1])):
        top, *below = name.split(".")
        rule = None
        if top == "experiments" and house != "experiments":
            rule = "nothing outside experiments imports experiments"
        elif house != "optdiff":
            pass
        elif top in ONLY_IN_EXPERIMENTS:
            rule = f"nothing in optdiff imports {top}; configuration belongs to experiments"
        elif room == "sample" and top not in DRIVER_MAY_USE | {"optdiff"}:
            rule = f"sample imports types, keys, optax and arrays only, not {top}"
        elif top == "optdiff" and room not in MAY_IMPORT:
            rule = f"{room} is no room of the design, so it may import nothing of optdiff"
        elif top == "optdiff":
            other = below[0] if below else "all of optdiff"
            if other != room and other not in MAY_IMPORT[room]:
                allowed = ", ".join(sorted(MAY_IMPORT[room])) or "nothing"
                rule = f"{room} may not import {other} (of optdiff it may import {allowed})"
        if rule:
            found.append(f"{path}:{line}: {rule}")
    return found


def test_every_file_keeps_to_its_room():
    found = []
    for path in SOURCES + TESTS:
        found += violations(path.relative_to(ROOT), path.read_text())
    assert not found, "imports against the design:\n" + "\n".join(found)


def test_every_room_of_the_tree_is_in_the_design():
    rooms = {path.relative_to(ROOT / "optdiff").parts[0] for path in ROOT.glob("optdiff/**/*.py")}
    unknown = {room.removesuffix(".py") for room in rooms} - {"__init__"} - set(MAY_IMPORT)
    assert not unknown, f"rooms that the design does not know: {sorted(unknown)}"


@pytest.mark.parametrize(
    "path, source, rule",
    [
        ("optdiff/samplers/new.py", "from optdiff.grids import karras", "not import grids"),
        ("optdiff/samplers/new.py", "import optdiff.sample", "samplers may not import sample"),
        ("optdiff/samplers/new.py", "from ..noise import flow", "samplers may not import noise"),
        ("optdiff/samplers/new.py", "from optdiff import problems", "not import problems"),
        ("optdiff/samplers/__init__.py", "from .. import grids", "samplers may not import grids"),
        ("optdiff/metrics/new.py", "def f():\n    import optdiff.data.digits", "not import data"),
        ("optdiff/noise.py", "import optdiff", "not import all of optdiff"),
        ("optdiff/noise.py", "from .grids import karras", "noise may not import grids"),
        ("optdiff/types.py", "from optdiff.noise import flow", "may import nothing"),
        ("optdiff/problems/new.py", "from optdiff.sample import sample", "not import sample"),
        ("optdiff/analysis/new.py", "from optdiff.metrics import mmd", "not import metrics"),
        ("optdiff/report/new.py", "from optdiff.samplers import ddim", "not import samplers"),
        ("optdiff/results.py", "from importlib import import_module as f\n"
         "import importlib\nimportlib.import_module('optdiff.nn')", "not import nn"),
        ("optdiff/sample.py", "import flax.nnx", "types, keys, optax and arrays only, not flax"),
        ("optdiff/__init__.py", "from optdiff.types import Sampler", "__init__ is no room"),
        ("optdiff/tricks.py", "from optdiff.types import Sampler", "tricks is no room"),
        ("optdiff/learning/new.py", "from omegaconf import OmegaConf", "imports omegaconf"),
        ("optdiff/learning/new.py", "import hydra.utils as h", "imports hydra"),
        ("optdiff/report/new.py", "from experiments import evaluate", "outside experiments"),
        ("tests/new.py", "import experiments.evaluate", "outside experiments"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named_with_file_and_line(path, source, rule):
    lines = source.splitlines()
    (message,) = violations(Path(path), "# first line\n" + source)
    assert message.startswith(f"{path}:{len(lines) + 1}: ") and rule in message


@pytest.mark.parametrize(
    "path, source",
    [
        ("optdiff/samplers/new.py", "from optdiff.samplers.ddim import ddim"),
        ("optdiff/samplers/new.py", "from .ddim import ddim\nfrom ..types import Sampler"),
        ("optdiff/samplers/new.py", '"""\n>>> from optdiff.problems import gaussian\n"""'),
        ("optdiff/learning/new.py", "from optdiff import nn, data\nimport hydration"),
        ("experiments/new.py", "import hydra\nfrom optdiff import sample, report\nimport _sweep"),
        ("tests/new.py", "from optdiff.metrics import mmd\nfrom optdiff.samplers import ddim"),
    ],
)
def test_what_the_design_allows_passes(path, source):
    assert violations(Path(path), source) == []


def test_no_file_is_a_drawer_for_everything():
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    found = [path for path in SOURCES + TESTS if {path.stem, *path.parts} & drawers]
    assert not found, f"a shared helper lives with the concept it serves: {found}"


def test_annotations_are_not_postponed():
    """As strings, annotations of nested functions escape the shape checks that run with tests."""
    found = []
    for path in SOURCES:
        names = {name for _, name in imports(ast.parse(path.read_text()), "")}
        if "__future__.annotations" in names and any(n.startswith("jaxtyping") for n in names):
            found.append(str(path.relative_to(ROOT)))
    assert not found, f"no `from __future__ import annotations` beside jaxtyping: {found}"


def test_no_file_outgrows_its_reader():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
    long = {path: n for path, n in lengths.items() if n > LONGEST}
    assert not long, f"files of more than {LONGEST} lines hold more than one thing: {long}"
