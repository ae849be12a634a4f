"""The benchmark of a training step: both sides learn from the same loss, and what the page says."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hydra import initialize_config_dir

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _training
import _training_optdiff as ours
import _training_torch as theirs
from _network import Result
from _stages import parts
from train import assemble

from optdiff.learning.noise_levels import uniform_time
from optdiff.nn.checkpoint import load_module
from optdiff.nn.network import network
from optdiff.problems.captioned_digits import SHIPPED
from optdiff.scheduler_config import read

torch.set_num_threads(1)  # its idle threads spin, which costs others more than they bring here
ROOT = Path(__file__).parents[2]
BATCH = 4
KEY = jax.random.key(5)


def conf(stage):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return _training.training_config(
            stage, {"preset": "small", "batch": BATCH, "optimizer": "adamw"}
        )


def drawn(config):
    """What our losses draw from the key, as PyTorch's take it."""
    if config["stage"] == "clip":
        return {}

    def noise(key):
        return jax.random.normal(key, (BATCH, 8, 8, 4), jnp.float32).transpose(0, 3, 1, 2)

    if config["stage"] == "vae":
        return {"noise": noise(KEY)}
    level_key, noise_key, drop_key = jax.random.split(KEY, 3)
    schedule = read(config["task"]["scheduler"]).schedule
    sigma = uniform_time(schedule, level_key, BATCH).astype(jnp.float32)
    dropped = jax.random.bernoulli(drop_key, config["task"]["dropout"], (BATCH, 1))
    t = schedule.t(sigma).astype(jnp.float32)
    return {"t": t, "sigma": sigma, "noise": noise(noise_key), "dropped": dropped}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["unet", "vae", "clip"])
def test_both_sides_learn_from_the_same_loss(stage, tmp_path):
    """Of the shipped weights, on the same batch and what was drawn with it."""
    config = conf(stage)
    task = assemble(config, parts(config))
    task = task._replace(params=network(load_module(SHIPPED / stage)))
    batch, _ = task.stream.read(task.stream.start)
    ours.hand_over(tmp_path, stage, task, batch)
    expected, _ = jax.jit(task.loss)(task.params, task.frozen, batch, KEY)

    job = {"config": config, "folder": str(tmp_path), "variant": "channels_last"}
    draws = {k: torch.from_numpy(np.array(v)) for k, v in drawn(config).items()}
    with torch.no_grad():
        loss = theirs.PARTS[stage](job).loss(draws)
    assert np.isfinite(expected)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-4)


@pytest.mark.slow
def test_both_sides_take_turns_and_leave_a_page(tmp_path):
    page = tmp_path / "benchmarks/training.md"
    command = [
        sys.executable, ROOT / "experiments/benchmark.py", "training", "parts=[clip]",
        "train.batch=4", "torch=[eager,compile]", "repeats=1", f"page={page}",
    ]  # fmt: skip
    no_compiler = os.environ | {"CXX": "absent"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=no_compiler
    )
    assert done.returncode == 0, done.stderr
    assert page.read_text() in done.stdout
    table = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    assert tuple(table[0]) == _training.COLUMNS
    assert [row[:2] for row in table[2:]] == [
        ["clip, batch 4", "optdiff"], ["clip, batch 4", "eager"],
    ]  # fmt: skip
    assert float(table[3][3]) > 0
    assert done.stdout.endswith("PyTorch's best (eager); did not run: compile\n")


def result(by, ratio, **pieces):
    return Result(by, pieces["step"], 1.0, 1.0, ratio, facts={"pieces": pieces, "batch": BATCH})


def test_the_page_says_where_a_step_goes_and_who_did_not_run():
    results = [
        result("optdiff", None, teachers=2.0, loss=4.0, gradient=7.0, update=1.0, step=8.0),
        result("eager", 1.6, teachers=1.0, loss=2.0, gradient=4.0, update=1.0, step=5.0),
        result("compile", 2.0, teachers=1.0, loss=2.0, gradient=3.0, update=1.0, step=4.0),
    ]
    assert _training.shares(results[0]) == (0.25, 0.25, 0.375, 0.125)
    cells = tuple(_training.cells("unet", results[1]))
    assert len(cells) == len(_training.COLUMNS)
    assert cells[:4] == ("unet, batch 4", "eager", "5.000", "1.60")
    said = _training.conclusion("unet", results, ["eager", "channels_last", "compile"])
    assert said == (
        "- unet: optdiff takes 2.00 times the time of PyTorch's best (compile), 2.00 times without "
        "the teachers; did not run: channels_last"
    )
    alone = _training.conclusion("unet", results[:1], [])
    assert alone == "- unet: optdiff takes 8.000 s"
