"""Write results/training from a run of train.py: curves, scores, and how each network was made.

python experiments/training_page.py outputs/training/small
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _note

from optdiff.learning import curves
from optdiff.report.training import training_figure
from optdiff.results import write

STAGES = ("judge", "clip", "vae", "unet")
PAGE = Path("results/training")


def main(run: Path, page: Path = PAGE) -> None:
    notes = {stage: _note.read(run / stage) or {} for stage in STAGES}
    missing = [stage for stage, note in notes.items() if "scores" not in note]
    if missing:
        raise SystemExit(
            f"{run} has not finished {', '.join(missing)}; this goes on with it, options as before:"
            f"\npython experiments/train.py -m stage={','.join(missing)} folder={run}"
        )
    files = {stage: run / stage / "curves.csv" for stage in STAGES}
    rows = {stage: curves.read(file) for stage, file in files.items()}
    table = scores(notes, {stage: rows[stage][-1]["seconds"] for stage in STAGES})
    copies = {f"{stage}.csv": file.read_bytes() for stage, file in files.items()}
    write(page, copies | {"curves.svg": training_figure(rows), "scores.md": table.encode()})
    print(table)


def scores(notes: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float]) -> str:
    """A table: what each stage took, over all sessions of its run, and how good its network is on
    what nothing learned from.
    """
    lines = [
        "| stage | updates x batch | seed | on | seconds | scores on held-out data |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    for stage, note in notes.items():
        config = note["config"]
        values = ", ".join(f"{name} {value:.4g}" for name, value in note["scores"].items())
        lines.append(
            f"| {stage} | {config['steps']} x {config['batch']} | {config['seed']} | "
            f"{note['device']} | {seconds[stage]:.0f} | {values} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
