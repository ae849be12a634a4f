"""What a network is trained to predict, and from what, is what the saved model is sampled by."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))

from digits_folder import redrawn

from optdiff.learning.unet import task
from optdiff.nn.checkpoint import load, load_module
from optdiff.nn.clip.tokenizer import tokenize
from optdiff.nn.network import network
from optdiff.problems.stable_diffusion import from_pipeline
from optdiff.sample import sample, sample_keys
from optdiff.samplers import ddim
from optdiff.types import Stream, expand

torch.set_num_threads(1)  # its idle threads spin, which costs others more than they bring here
CONF = Path(__file__).parents[2] / "conf"
C_OUT = {  # a network's error times this is its denoiser's
    "eps": lambda s: -s,
    "v": lambda s: -s / jnp.sqrt(1 + s**2),
    "x0": lambda s: jnp.ones_like(s),
    "flow": lambda s: -s / (1 + s),
    "edm": lambda s: s / jnp.sqrt(1 + s**2),
}
PROMPTS = ["a red seven on a yellow background", "a blue 3", "zero"]
SIGMA = jnp.array([0.05, 0.7, 6.0], jnp.float32)
KEY = jax.random.key(5)
TINY = {
    "sample_size": 8, "block_out_channels": [16], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip
QUICK = [("v", False)]
OTHERS = [("eps", True), ("x0", True), ("flow", True), ("edm", True)]


class Trained(NamedTuple):
    """A network as the loss sees it, with x0 and x in latents; and where it is saved."""

    kind: str
    timed: bool
    answer: Any
    wanted: Any
    x0: Any
    x: Any
    folder: Path


def scheduler(kind, timed):
    """What train.py tells the unet's task."""
    choices = [f"parameterization={kind}", f"parameterization.time_conditioning={timed}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["stage=unet", "folder=run", *choices])
    return OmegaConf.to_container(config, resolve=True)["task"]["scheduler"]


@pytest.fixture(
    scope="module",
    params=[
        *QUICK,
        *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS),
    ],
    ids=lambda case: f"{case[0]}-{'timed' if case[1] else 'untimed'}",
)
def trained(request, random_model, tmp_path_factory):
    kind, timed = request.param
    pipeline, heard = load(random_model), []
    ids = jnp.asarray(tokenize(pipeline.tokenizers[0], PROMPTS, 24))
    batch = {"images": jax.random.uniform(KEY, (3, 32, 32, 3)), "ids": ids}
    made = task(
        data=lambda **unused: Stream(0, lambda i: (batch, i + 1)),
        held_out=lambda **unused: Stream(0, lambda i: (batch, i + 1)),
        config=TINY,
        vae=pipeline.vae,
        clip=load_module(random_model / "clip"),
        tokenizer=pipeline.tokenizers[0],
        scheduler=scheduler(kind, timed),
        seed=0,
        levels=lambda schedule, key, count: SIGMA,
        distance=lambda answer, wanted: heard.extend((answer, wanted)) or jnp.mean(answer),
        dropout=0.0,
    )
    unet = network(redrawn(made.params.module(), 1))

    @jax.jit
    def listen(unet, frozen, batch):
        made.loss(unet, frozen, batch, KEY)
        return heard[-2:]

    answer, wanted = listen(unet, made.frozen, batch)
    folder = tmp_path_factory.mktemp(f"{kind}-{timed}") / "model"
    made.save(unet, folder)
    x0 = from_pipeline(load(folder)).problem.encode(batch["images"])
    noise = jax.random.normal(jax.random.split(KEY, 3)[1], x0.shape, x0.dtype)
    return Trained(kind, timed, answer, wanted, x0, x0 + expand(SIGMA, x0) * noise, folder)


def apart(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_the_loss_and_the_sampler_have_one_denoiser(trained):
    """`D - x0 = c_out (F - target)` where D is the saved model's and F and target the loss's: so
    they agree on what is predicted, from what, and on `c_skip`, `c_in` and `c_out`."""
    problem = from_pipeline(load(trained.folder), prompts=PROMPTS, guidance=None)
    denoised = jax.jit(type(problem).denoise)(problem, trained.x, SIGMA, problem.prompts)
    c_out = expand(C_OUT[trained.kind](SIGMA), trained.x0)
    for i in range(len(SIGMA)):
        error = c_out[i] * (trained.answer - trained.wanted)[i]
        assert apart((denoised - trained.x0)[i], error) < 1e-4

    again = from_pipeline(load(trained.folder), prompts=PROMPTS, guidance=None)
    assert jax.tree.structure(problem) == jax.tree.structure(again)  # else it would recompile


def test_only_a_network_that_is_told_the_level_answers_by_it(trained):
    problem = from_pipeline(load(trained.folder), prompts=PROMPTS[:1] * 3, guidance=None)
    c = [expand(value, trained.x) for value in problem.scaling(problem.schedule, SIGMA)[:3]]
    z = jnp.stack([trained.x[1]] * 3)  # the network sees the same thrice
    denoised = jax.jit(type(problem).denoise)(problem, z / c[2], SIGMA, problem.prompts)
    answer = (denoised - c[0] * z / c[2]) / c[1]
    spread = max(apart(answer[i], answer[1]) for i in (0, 2))
    assert spread > 1e-2 if trained.timed else spread < 1e-3


def test_diffusers_opens_the_model_and_steps_as_we_do(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained.folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    saved = json.loads((trained.folder / "scheduler" / "scheduler_config.json").read_text())
    assert ("time_conditioning" in saved) != trained.timed
    if not trained.timed:  # diffusers always says the time
        return
    problem = from_pipeline(load(trained.folder), prompts=PROMPTS, guidance=None)
    way = problem.scheduler.route(4, sampler="ddim")
    noise = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype(np.float32)
    x = way.spread * jnp.asarray(noise)
    if trained.kind == "flow":  # its step is DDIM's at order 1; the times it tells are rounded
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(saved, solver_order=1)
    ours, _ = sample(
        problem, ddim(), way.levels, sample_keys(0, 3), cond=problem.prompts, x=x, finish=way.finish
    )
    theirs = pipeline(
        PROMPTS, latents=torch.from_numpy(noise.transpose(0, 3, 1, 2).copy()),
        num_inference_steps=4, guidance_scale=1.0, output_type="latent",
    ).images  # fmt: skip
    close = 2e-2 if trained.kind == "flow" else 1e-3
    assert apart(ours, theirs.permute(0, 2, 3, 1).numpy()) < close


def test_there_is_a_config_for_each():
    assert {path.stem for path in (CONF / "parameterization").glob("*.yaml")} == {*C_OUT}
    assert {kind for kind, _ in QUICK + OTHERS} == {*C_OUT}
