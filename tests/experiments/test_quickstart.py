"""The main comparison: what it sweeps, and that its rows, table and pictures come out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "problems"))

import digits_folder

from optdiff import results

ROOT = Path(__file__).parents[2]
METRICS = {
    *("attribute_accuracy", "digit_accuracy", "ink_accuracy", "paper_accuracy", "clip_score"),
    *("judge_frechet", "judge_mmd"),
    *("judge_precision", "judge_recall", "judge_density", "judge_coverage"),
}
OF_THE_MODEL = {"memorization", "copied_memorization", "reconstructed_frechet"}
PATHS = {"latent_error", "trajectory_error"}  # which real images have none of


def swept(experiment):
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        asked = [f"experiment={experiment}"]
        config = hydra.compose("config", asked, return_hydra_config=True)
    params = config.hydra.sweeper.params
    return config, {name: str(values).split(",") for name, values in params.items()}


def test_make_compare_is_on_text_to_image():
    config, params = swept("quickstart")
    assert config.problem["_target_"].endswith("captioned_digits.text_to_image")
    assert config.problem.path is None and (config.samples, config.study) == (160, "quickstart")
    assert params["nfe"] == ["4", "8", "12", "20"]
    assert {"ddim", "dpmpp_2m", "momentum", "adam"} <= set(params["sampler"])
    assert len(params["sampler"]) >= 6


def test_the_study_is_larger():
    config, params = swept("text_to_image")
    assert config.samples == 2048 and len(params["seed"]) == 3 and len(params["sampler"]) >= 8
    assert (params["nfe"][0], params["nfe"][-1]) == ("3", "50")
    config, _ = swept("few_step")
    assert config.problem["_target_"] == "optdiff.problems.digits"


@pytest.mark.slow
def test_its_rows_say_how_well_images_keep_to_their_prompts(tmp_path):
    model = digits_folder.write(tmp_path / "model")
    small = ["samples=32", "batch=32", "exact.levels=5", f"problem.path={model}", "seed=0"]
    command = [sys.executable, ROOT / "experiments/evaluate.py", "-m", "experiment=quickstart"]
    done = subprocess.run(
        [*command, *small, "sampler=ddim,ancestral", "nfe=4", "metrics=generator"],
        cwd=tmp_path,
        env=os.environ | {"JAX_LOG_COMPILES": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    compiled = re.findall(r"Finished XLA compilation of (\S+)", done.stderr)
    assert compiled.count("jit(eps_at)") == 1
    rows = results.load(tmp_path / "results/quickstart")
    assert len(rows) == 2 and [row["passes"] for row in rows] == [8, 8]
    for row in rows:
        assert set(row["metrics"]) == METRICS | PATHS | OF_THE_MODEL
        assert set(row["floor"]) == METRICS | {"memorization"}
        assert next(iter(row["metrics"])) == "attribute_accuracy"
        artifact = results.load_artifact(tmp_path / "results/quickstart", row["key"])
        assert artifact["reference"].shape == artifact["samples"].shape == (8, 32, 32, 3)
        assert artifact["words"].shape == (8,)
    for name in ("table.md", "figure.svg", "diagnostics.svg", "samples.png"):
        assert (tmp_path / "results/quickstart" / name).stat().st_size > 0
    assert "attribute_accuracy" in done.stdout
