"""What a network learns to predict, at which levels, by which loss: chosen by command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import train
from _build import build, check_targets
from _stages import parts

from optdiff.learning import distances, noise_levels
from optdiff.noise import variance_exploding
from optdiff.problems.captioned_digits import SHIPPED

ROOT = Path(__file__).parents[2]


def conf(*choices):
    """The configuration of train.py."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["folder=run", *choices])
    config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_targets({k: v for k, v in config.items() if k != "preset"}, "config")
    return config


def names(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.mark.parametrize("preset", names("preset"))
def test_by_default_the_shipped_recipe(preset):
    task = conf("stage=unet", f"preset={preset}")["task"]
    shipped = json.loads((SHIPPED / "scheduler" / "scheduler_config.json").read_text())
    assert task["scheduler"] == shipped | {"time_conditioning": True}
    assert build(task["levels"]).func is noise_levels.uniform_time
    assert task["perceptual"] == 0.0 and "distance" not in task  # the task's own, squared


@pytest.mark.parametrize("preset", names("preset"))
@pytest.mark.parametrize("stage", ["unet", "vae"])
@pytest.mark.parametrize("name", names("distance"))
def test_any_distance_is_for_the_stage_that_compares(name, stage, preset):
    choices = f"preset={preset}", f"distance={name}", "perceptual=0.3"
    task = conf(f"stage={stage}", *choices)["task"]
    assert build(task["distance"]).func is getattr(distances, name)
    assert task["perceptual"] == 0.3
    assert conf("stage=judge", *choices)["task"] == conf("stage=judge", f"preset={preset}")["task"]


@pytest.mark.parametrize("name", names("levels"))
def test_any_levels_are_the_unets(name):
    levels = build(conf("stage=unet", "preset=gpu", f"levels={name}")["task"]["levels"])
    assert levels.func is getattr(noise_levels, name)


def test_options_reach_what_they_are_of():
    task = conf(
        "stage=unet", "distance=pseudo_huber", "distance.c=2.0", "levels=log_normal",
        "levels.mean=1.0", "levels.std=0.0", "parameterization=edm", "parameterization.sigma_max=9",
        "parameterization.time_conditioning=false",
    )["task"]  # fmt: skip
    a, b = jnp.full((1, 1), 3.0), jnp.zeros((1, 1))
    np.testing.assert_allclose(
        build(task["distance"])(a, b), distances.pseudo_huber(a, b, c=2.0), rtol=1e-6
    )
    drawn = build(task["levels"])(variance_exploding(), jax.random.key(0), 4)
    np.testing.assert_allclose(drawn, np.e, rtol=1e-6)
    assert task["scheduler"]["sigma_max"] == 9
    assert task["scheduler"]["time_conditioning"] is False


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["clip", "vae", "unet"])  # the judge stays in float32
def test_a_stage_computes_in_bfloat16_and_keeps_its_weights_in_float32(stage):
    small = [
        "preset.unet.task.config.block_out_channels=[16,16]",
        "preset.unet.task.config.attention_head_dim=2",
    ]

    def made(dtype):
        config = conf(f"stage={stage}", "batch=8", f"dtype={dtype}", *small)
        task = train.assemble(config, parts(config))
        batch, _ = task.stream.read(0)
        arguments = task.params, task.frozen, batch, jax.random.key(0)
        (loss, _), gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(*arguments)
        return str(jax.make_jaxpr(task.loss)(*arguments)), loss, gradient

    program, loss, gradient = made("bfloat16")
    other, exact_loss, exact = made("float32")
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", program)
    # The rest are logits of attention, which are float32.
    assert products.count("bf16") >= 0.75 * len(products) and "bf16" not in other
    np.testing.assert_allclose(loss, exact_loss, rtol=0.05)
    flat, exact = (
        jnp.concatenate([g.ravel() for g in jax.tree.leaves(t)]) for t in (gradient, exact)
    )
    assert flat.dtype == jnp.float32 and jnp.all(jnp.isfinite(flat))
    assert flat @ exact > 0.98 * jnp.linalg.norm(flat) * jnp.linalg.norm(exact)


def run(script, folder, *arguments):
    command = [sys.executable, ROOT / "experiments" / script, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_model_of_other_choices_is_trained_and_sampled_by_them(tmp_path):
    run(
        "train.py", tmp_path, "stage=unet", "steps=2", "batch=4", "watch_every=2", "log_every=1",
        "folder=run", "parameterization=edm", "parameterization.time_conditioning=false",
        "levels=log_normal", "distance=pseudo_huber", "perceptual=0.1",
        "preset.unet.task.config.block_out_channels=[16,16]",
        "preset.unet.task.config.attention_head_dim=2", "+preset.unet.task.scored=16",
    )  # fmt: skip
    unet = tmp_path / "run/unet"
    assert (unet / "pictures/000002.png").exists()
    assert "perceptual" in (unet / "curves.csv").read_text().splitlines()[0]
    saved = json.loads((unet / "model/scheduler/scheduler_config.json").read_text())
    choices = "parameterization=edm", "parameterization.time_conditioning=false"
    assert saved == conf("stage=unet", *choices)["task"]["scheduler"]
    run(
        "generate.py", tmp_path, f"problem.path={unet}/model", "prompt=a red 7", "nfe=3", "out=made"
    )
    assert (tmp_path / "made/000.png").exists()
