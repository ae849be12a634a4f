"""Pages that a command writes: what is committed is what it writes today, and what a run says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import training_page

from optdiff.learning.curves import Table
from optdiff.report.training import SHOWN, TITLES

ROOT = Path(__file__).parents[2]
STAGES = ("judge", "clip", "vae", "unet")


def trained(run, looks=3):
    """Folders of stages as train.py leaves them, each with so many rows of curves."""
    for place, stage in enumerate(STAGES, 1):
        curves = Table(run / stage / "curves.csv", 0)
        for step in range(10, 10 * looks + 1, 10):
            shown = dict.fromkeys(SHOWN[stage], step / 100)
            curves.append(step, {"seconds": place * step * 1.5, "loss": 1 / step, **shown})
        config = {"steps": 10 * looks, "batch": 8 * place, "seed": place}
        scores = {f"{stage}_score": place / 3, "other": 2}
        note = {"config": config, "device": "1 x abacus", "scores": scores}
        (run / stage / "run.json").write_text(json.dumps(note))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, written, page",
    [
        ("samplers_page.py", "docs/samplers.md", "docs/samplers.md"),
        # Not over what is committed, unless asked to.
        ("identities.py", "outputs/identities/README.md", "results/identities/README.md"),
    ],
)
def test_a_page_is_up_to_date(script, written, page, tmp_path):
    """For the samplers that it has: a new one is one file and one yaml."""
    names = re.findall(r"^### (\w+)$", (ROOT / "docs/samplers.md").read_text(), re.MULTILINE)
    command = [sys.executable, ROOT / "experiments" / script, f"samplers={sorted(names)}"]
    subprocess.run(command, cwd=tmp_path, check=True)
    told = f"python experiments/{script} writes another {page} than the one committed"
    assert (tmp_path / written).read_text() == (ROOT / page).read_text(), told


@pytest.mark.parametrize("looks", [1, 3])
def test_the_page_of_training_tells_what_each_stage_took_and_reached(looks, tmp_path):
    run, page = trained(tmp_path / "run", looks), tmp_path / "page"
    training_page.main(run, page)
    _, _, *lines = (page / "scores.md").read_text().splitlines()
    assert lines == [
        f"| {stage} | {10 * looks} x {8 * place} | {place} | 1 x abacus | "
        f"{place * looks * 15} | {stage}_score {place / 3:.4g}, other 2 |"
        for place, stage in enumerate(STAGES, 1)
    ]
    for stage in STAGES:
        curves = (run / stage / "curves.csv").read_bytes()
        assert (page / f"{stage}.csv").read_bytes() == curves
    # Letters are drawn as paths, and told in comments.
    told = re.findall("<!-- (.*?) -->", (page / "curves.svg").read_text())
    assert [text for text in told if text in TITLES.values()] == [TITLES[stage] for stage in STAGES]
    assert told.count("loss") == 4
    assert all(told.count(name) == 1 for names in SHOWN.values() for name in names)


def no_folder(stage):
    shutil.rmtree(stage)


def no_scores(stage):
    note = json.loads((stage / "run.json").read_text())
    del note["scores"]
    (stage / "run.json").write_text(json.dumps(note))


@pytest.mark.parametrize("lack", [no_folder, no_scores])
def test_a_run_that_has_not_finished_has_no_page_yet(lack, tmp_path):
    run, page = trained(tmp_path / "run"), tmp_path / "page"
    for stage in ("clip", "unet"):
        lack(run / stage)
    with pytest.raises(SystemExit) as error:
        training_page.main(run, page)
    assert f"{run} has not finished clip, unet" in str(error.value)
    assert f"train.py -m stage=clip,unet folder={run}" in str(error.value)
    assert not page.exists()
