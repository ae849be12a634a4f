"""`benchmark.py training`: a step of `train.py` and the same step in PyTorch, by turns.

Each side is a process of its own. Ours assembles the step as `train.py` does, and leaves its
networks and a batch in a folder, from which PyTorch's side takes them. This file owns the page;
what is run is in `_training_optdiff.py` and `_training_torch.py`.
"""

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _errors import ConfigError
from _network import Result, best_of, compare, not_installed, row
from _side import Side
from hydra import compose
from omegaconf import OmegaConf

from optdiff.provenance import checkout

SHARES = ("teachers", "forward", "backward", "optimizer, EMA")
COLUMNS = ("part", "by", "seconds", "optdiff / it", "first call", *SHARES, "peak GB")

NOTES = """\
- seconds: median of a step on a batch that is on the device already. A step is all that a user
  waits for: random numbers, the frozen networks, forward, backward, clipping the gradient's norm,
  AdamW, and EMA. Ours refuses what is not finite, too, and keeps the memory that it frees, as
  `train.py` does (`optdiff/allocator.py`); PyTorch allocates as it does by default.
- optdiff / it: median ratio of steps taken in turns; below 1, optdiff is faster. Asked for: at most
  1.5 on a CPU, aiming at 1.0; at most 1.0 on a GPU.
- first call: seconds of the first step, tracing and compiling included, which seconds leaves out.
- teachers (the frozen networks: for the UNet, the autoencoder's encoder and the text encoder) and
  the columns after it: shares of the step. Forward is the loss less the teachers, backward is the
  gradient less the loss. Each was timed as a program of its own, so they need not sum to 100%.
- peak GB: the most memory held after the first step, with libraries and the programs of the
  pieces, of which optdiff keeps a second state; on a GPU, since the process began.
- AdamW is what both sides have. `train.py` learns with Muon by default, which is not in
  these numbers: `train.optimizer=muon torch=[]` times ours alone.
"""

CPUINFO = Path("/proc/cpuinfo")


def training(config: dict[str, Any]) -> None:
    """Print what a step takes here and in PyTorch, and where it goes; write it to the page."""
    lines, conclusions, missing = [], [], not_installed()
    variants = [] if missing else config["torch"]
    if variants and config["train"]["optimizer"] != "adamw":
        raise ConfigError("PyTorch has AdamW alone: train.optimizer=adamw, or give torch=[]")

    def say(*new: str) -> None:
        print(*new, sep="\n", flush=True)
        lines.extend(new)

    for part in config["parts"]:
        results = measure(part, config, variants)
        if not lines:
            say(*heading(results))
        for result in results:
            say(row(cells(part, result)))
        conclusions.append(conclusion(part, results, variants))
    if missing:
        conclusions.append(f"- optdiff alone: not installed: {', '.join(missing)}")
    say("", *conclusions)
    page = Path(config["page"])
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n")


def measure(part: str, config: dict[str, Any], variants: list[str]) -> list[Result]:
    """Our result, and those of PyTorch's variants."""
    repeats = config["repeats"]
    with TemporaryDirectory() as folder:
        job = {
            "config": training_config(part, config["train"]),
            "folder": folder,
            "repeats": repeats,
        }
        ours = Side("_training_optdiff.py", job)
        results = compare(ours, variants, job, repeats, script="_training_torch.py")
        ours.end()
    return results


def training_config(part: str, choices: dict[str, Any]) -> dict[str, Any]:
    """The configuration of `train.py` for a stage that starts from the shipped parts."""
    chosen = {name: choice for name, choice in choices.items() if choice is not None}
    overrides = {"stage": part, "folder": os.devnull, **chosen}
    config = compose("train", [f"{name}={choice}" for name, choice in overrides.items()])
    return OmegaConf.to_container(config, resolve=True)


def heading(results: list[Result]) -> Iterable[str]:
    """What was run, on what and with which versions, and what the columns mean."""
    commit, dirty = checkout()
    source = f"commit `{commit[:7]}`{' with changes' if dirty else ''}" if commit else "no commit"
    versions = dict.fromkeys(result.facts["versions"] for result in results)
    yield "# A training step beside PyTorch\n"
    yield f"    python experiments/benchmark.py {shlex.join(['training', *sys.argv[1:]])}\n"
    yield f"{results[0].facts['machine']}, {processor()}. {'; '.join(versions)}; {source}.\n"
    yield NOTES
    yield row(COLUMNS)
    yield row("---" for _ in COLUMNS)


def processor() -> str:
    """How many cores there are, and of which kind where the system tells."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    kinds = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores ({kinds[0] if kinds else platform.machine()})"


def cells(part: str, result: Result) -> Iterable[str]:
    """The table's row of one side."""
    return (
        f"{part}, batch {result.facts['batch']}", result.by, f"{result.seconds:.3f}",
        "" if result.ratio is None else f"{result.ratio:.2f}", f"{result.first:.1f}",
        *(f"{share:.0%}" for share in shares(result)), f"{result.peak / 1e9:.2f}",
    )  # fmt: skip


def shares(result: Result) -> tuple[float, ...]:
    """What `SHARES` took of a step."""
    of = result.facts["pieces"]
    teachers = of.get("teachers", 0.0)
    taken = teachers, of["loss"] - teachers, of["gradient"] - of["loss"], of["update"]
    return tuple(seconds / of["step"] for seconds in taken)


def conclusion(part: str, results: list[Result], variants: list[str]) -> str:
    """The ratio to PyTorch's best, and what of PyTorch there was no number for."""
    ours, theirs = results[0], best_of(results)
    failed = [name for name in variants if name not in {result.by for result in results}]
    words = f"; did not run: {', '.join(failed)}" if failed else ""
    if theirs is None:
        return f"- {part}: optdiff takes {ours.seconds:.3f} s{words}"
    if ours.facts["pieces"].get("teachers"):
        alone = theirs.ratio * (1.0 - shares(ours)[0]) / (1.0 - shares(theirs)[0])
        words = f", {alone:.2f} times without the teachers{words}"
    return (
        f"- {part}: optdiff takes {theirs.ratio:.2f} times the time of PyTorch's best "
        f"({theirs.by}){words}"
    )
