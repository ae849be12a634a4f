"""One image a prompt and a seed: in any batch, on any number of devices, and in PyTorch."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from optdiff.problems.captioned_digits import SHIPPED, text_to_image
from optdiff.sample import sample, sample_keys, start
from optdiff.samplers import ancestral, ddim

torch.set_num_threads(1)  # its idle threads spin, which costs others more than they bring here
CLOSE = 2 / 255
LEVELS = [8.0, 2.0, 0.5, 0.1]
DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optdiff.problems.captioned_digits import text_to_image
from optdiff.keys import sample_keys
from optdiff.sample import sample
from optdiff.samplers import ancestral

folder, levels, out, *processes = sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:]
if processes:
    jax.distributed.initialize(processes[0], 2, int(processes[1]))
assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()), ("data",))
problem = text_to_image(folder, prompts=64, guidance=2.0)
rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))
keys = jax.jit(lambda: sample_keys(3, 8), out_shardings=rows)()
problem, levels = jax.device_put((problem, np.asarray(levels, np.float32)), everywhere)
x0, _ = sample(problem, ancestral(), levels, keys, cond=problem.condition(keys))
assert len(x0.sharding.device_set) == 8, x0.sharding
images = problem.decode(x0)
if processes:
    assert not images.is_fully_addressable
    images = multihost_utils.process_allgather(images, tiled=True)
np.save(out, images)
"""


@pytest.fixture(scope="module")
def images(random_model):
    """`images(keys)`: what these keys lead to, noise injected and all."""
    problem = text_to_image(random_model, prompts=64, guidance=2.0)

    def make(keys):
        cond = problem.condition(keys)
        levels = jnp.asarray(LEVELS, jnp.float32)
        return np.asarray(problem.decode(sample(problem, ancestral(), levels, keys, cond=cond)[0]))

    return make


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_company(images):
    eight = images(sample_keys(3, 8))
    three, one = images(sample_keys(3, 3, start=4)), images(sample_keys(3, 1, start=5))
    assert np.abs(three - eight[4:7]).max() < CLOSE
    assert np.abs(one - eight[5:6]).max() < CLOSE
    assert np.abs(eight[0] - eight[5]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_image_does_not_depend_on_the_number_of_devices(
    processes, images, random_model, tmp_path
):
    """Eight of them, of one process or shared by two."""
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",  # as here: integers of other widths are drawn otherwise
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", DEVICES, random_model, json.dumps(LEVELS), tmp_path / f"{i}.npy"]
            + ([address, str(i)] if processes > 1 else []),
            env=os.environ | flags,
            stderr=(tmp_path / f"{i}.txt").open("w"),  # a pipe that is not read may stop one
        )
        for i in range(processes)
    ]
    ours = images(sample_keys(3, 8))
    for i, process in enumerate(running):
        assert process.wait(timeout=600) == 0, (tmp_path / f"{i}.txt").read_text()
        assert np.abs(np.load(tmp_path / f"{i}.npy") - ours).max() < CLOSE


@pytest.mark.parametrize("which", [pytest.param("random", marks=pytest.mark.slow), "shipped"])
def test_pytorchs_pipeline_makes_our_image(which, random_model):
    folder = SHIPPED if which == "shipped" else random_model
    prompts = ["a red seven on a yellow background", "the digit 3 in blue on white"]
    problem = text_to_image(folder, prompts=prompts, guidance=3.0)
    model = problem.problem
    way = model.scheduler.route(10, sampler="ddim")
    keys = sample_keys(0, 2)
    noise = start(model, keys, jnp.zeros((), jnp.float32)).astype(jnp.float32)
    x0, _ = sample(
        problem,
        ddim(),
        way.levels,
        keys,
        cond=model.prompts,
        x=way.spread * noise,
        finish=way.finish,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(np.asarray(noise).transpose(0, 3, 1, 2).copy())
    theirs = pipeline(
        prompts, latents=latents, num_inference_steps=10, guidance_scale=3.0, output_type="np"
    ).images
    ours = np.asarray(jax.device_get(problem.decode(x0)))
    assert np.abs(ours - theirs).max() < CLOSE
    assert np.abs(ours[0] - ours[1]).max() > 0.1
