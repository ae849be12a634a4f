"""Write results/training from a run of train.py: curves, scores, and how each network was made.

python experiments/training_page.py outputs/training/small
"""

import sys
from pathlib import Path

from _note import read

from optdiff.report.training import read_curves, training_figure
from optdiff.results import write

STAGES = ("judge", "clip", "vae", "unet")
PAGE = Path("results/training")


def main(run: Path, page: Path = PAGE) -> None:
    missing = [stage for stage in STAGES if "scores" not in (read(run / stage) or {})]
    if missing:
        raise SystemExit(f"{run} has not finished {', '.join(missing)}")
    curves = {stage: read_curves(run / stage / "curves.csv") for stage in STAGES}
    files = {f"{stage}.csv": (run / stage / "curves.csv").read_bytes() for stage in STAGES}
    files |= {"curves.svg": training_figure(curves), "scores.md": scores(run).encode()}
    write(page, files)
    print(scores(run))


def scores(run: Path) -> str:
    """A table: what each stage took, and how good its network is on what nothing learned from."""
    lines = [
        "| stage | updates x batch | seed | on | seconds | scores on held-out data |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    for stage in STAGES:
        note = read(run / stage)
        config = note["config"]
        told = ", ".join(f"{name} {value:.4g}" for name, value in note["scores"].items())
        seconds = curves_seconds(run / stage)
        lines.append(
            f"| {stage} | {config['steps']} x {config['batch']} | {config['seed']} | "
            f"{note['device']} | {seconds:.0f} | {told} |"
        )
    return "\n".join(lines) + "\n"


def curves_seconds(folder: Path) -> float:
    """Seconds of training over all sessions of a run."""
    return read_curves(folder / "curves.csv")["seconds"][-1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
