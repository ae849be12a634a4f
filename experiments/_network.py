"""The networks' benchmark: optdiff and PyTorch by turns, each in a process of its own.

A process holds one part (text encoders, a UNet, a decoder, or all that makes an image), so that
its peak of memory is that part's. This file owns the turns and the table; what is run is in
`_network_optdiff.py` and `_network_torch.py`, which answer as `_side.py` says.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

from _side import Ended, Side

COLUMNS = (
    "part", "by", "seconds", "optdiff / it", "first call", "TFLOP/s", "of matmul", "peak GB",
    "ever GB",
)  # fmt: skip


class Result(NamedTuple):
    """What one side took for a part: medians of its calls, the most memory held, all it told."""

    by: str
    seconds: float
    peak: float
    ever: float
    ratio: float | None = None
    first: float = 0.0
    rate: float = 0.0
    facts: dict[str, Any] | None = None


def network(config: dict[str, Any]) -> None:
    """Print what each part takes here and, where it is installed, in PyTorch."""
    missing = not_installed()
    variants = [] if missing else config["torch"]
    job = {name: config[name] for name in ("batch", "dtype", "steps")}
    job["geometry"] = config["size"]
    best = {}
    for part in config["parts"]:
        ours = Side("_network_optdiff.py", job | {"part": part})
        if not best:
            print(f"{config['size']['name']}, batch {config['batch']}, {ours.facts['machine']}\n")
            print(row(COLUMNS), row("---" for _ in COLUMNS), sep="\n", flush=True)
        results = compare(ours, variants, job | {"part": part}, config["repeats"])
        ours.end()
        rate = max(result.rate for result in results)  # the device's, by whoever reaches it
        for result in results:
            print(row(_cells(part, result, ours.facts["flops"], rate)), flush=True)
        best[part] = results[0], best_of(results)
    print()
    for part, (ours, theirs) in best.items():
        if theirs:
            print(
                f"{part}: optdiff takes {theirs.ratio:.2f} times the time of PyTorch's best "
                f"({theirs.by}) and {ours.peak / theirs.peak:.2f} times the memory, "
                f"{ours.ever / theirs.ever:.2f} times with compiling"
            )
    _print_image(best, config["steps"], config["batch"])
    if missing:
        print(f"optdiff alone: not installed: {', '.join(missing)}")


def not_installed() -> list[str]:
    """What PyTorch's side needs and is not there."""
    return [name for name in ("torch", "diffusers", "transformers") if not find_spec(name)]


def best_of(results: list[Result]) -> Result | None:
    """The fastest of PyTorch's variants, if any ran."""
    return min(results[1:], key=lambda result: result.seconds, default=None)


def compare(
    ours: Side,
    variants: list[str],
    job: dict[str, Any],
    repeats: int,
    script: str = "_network_torch.py",
) -> list[Result]:
    """Our result, and those of PyTorch's variants, which in turn alternate with us by the call."""
    theirs = []
    for variant in variants:
        try:
            side = Side(script, job | {"variant": variant})
            ratio = median(ours.run() / side.run() for _ in range(repeats))
        except Ended:
            print(f"{variant} did not run", flush=True)
            continue
        theirs.append(_result(variant, side, ratio))
        side.end()
    for _ in range(0 if theirs else repeats):
        ours.run()
    return [_result("optdiff", ours, None), *theirs]


def _result(by: str, side: Side, ratio: float | None) -> Result:
    measured = {name: side.facts[name] for name in ("peak", "ever", "first", "rate")}
    return Result(by, median(side.seconds), ratio=ratio, **measured, facts=side.facts)


def _print_image(best: dict[str, tuple[Result, Result | None]], steps: int, batch: int) -> None:
    """What an image takes, put together from its parts, where all of them were timed."""
    times = {"clip": 2, "guided": steps, "vae": 1}
    if not times.keys() <= best.keys():
        return
    ours, theirs = (
        [best[part][side].seconds * n / batch for part, n in times.items() if best[part][side]]
        for side in (0, 1)
    )
    print(f"\nan image of {steps} guided steps, derived as 2 clip + {steps} guided + vae:")
    print(f"optdiff {sum(ours):.2f} s", end="")
    whole = len(theirs) == len(times)
    print(f", PyTorch {sum(theirs):.2f} s: x {sum(ours) / sum(theirs):.2f}" if whole else "")


def _cells(part: str, result: Result, flops: float, rate: float) -> Iterable[str]:
    speed = flops / result.seconds
    return (
        part, result.by, f"{result.seconds:.3f}",
        "" if result.ratio is None else f"{result.ratio:.2f}", f"{result.first:.1f}",
        f"{speed / 1e12:.3f}", f"{speed / rate:.0%}", f"{result.peak / 1e9:.2f}",
        f"{result.ever / 1e9:.2f}",
    )  # fmt: skip


def row(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"
