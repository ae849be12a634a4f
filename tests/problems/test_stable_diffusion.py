"""Published pipelines as problems: the latents and images of PyTorch's diffusers, step by step."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))

from stable_diffusion_folder import write

from optdiff.denoisers import Guided
from optdiff.nn.checkpoint import load
from optdiff.problems.stable_diffusion import encode_prompts, from_pipeline, stable_diffusion
from optdiff.problems.text_to_image import TextToImage, slerp
from optdiff.sample import eps_at, sample, sample_keys, sample_scan, start
from optdiff.samplers import ancestral, ddim, dpmpp_2m
from optdiff.types import Problem

torch.set_num_threads(1)  # its idle threads spin, which costs others more than they bring here
PROMPTS = ["a red cube on the yellow sphere", 'photo of "the astronaut", blue']
NOISE = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype(np.float32)
KINDS = ["sd15", "sdxl"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: write(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def pipelines(folders):
    return {kind: load(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def problem(pipelines):
    """SD 1.5 under guidance, with two prompts to draw from."""
    return from_pipeline(pipelines["sd15"], prompts=PROMPTS)


def torch_pipeline(folder, scheduler=DDIMScheduler, **changes):
    """PyTorch's own pipeline; clip_sample is what its constructor turns off for SD 1.x and 2.x."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    if scheduler is DDIMScheduler:
        changes = {"clip_sample": False} | changes
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def trajectory(pipeline, steps, **options):
    """The latents of every step, (steps, b, h, w, c), and the images."""
    seen = []

    def keep(pipeline, i, t, tensors):
        seen.append(tensors["latents"].permute(0, 2, 3, 1).numpy())
        return tensors

    latents = torch.from_numpy(NOISE.transpose(0, 3, 1, 2).copy())
    images = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        latents=latents,
        output_type="np",
        callback_on_step_end=keep,
        **options,
    ).images
    return np.stack(seen), images


def published(problem, steps):
    """Model, levels and finish as the checkpoint's own DDIM has them."""
    model = problem.problem
    way = model.scheduler.route(steps, sampler="ddim")
    return model, way.levels, way.finish


def latents_of(step):
    """What a variance-preserving network calls this iterate."""
    return step.x_next * jax.lax.rsqrt(1.0 + step.sigma_next**2)


def ours(problem, steps, sampler=None):
    model, levels, finish = published(problem, steps)
    x0, trace = sample(
        problem,
        sampler or ddim(),
        levels,
        sample_keys(0, 2),
        cond=model.prompts,
        x=model.from_noise(jnp.asarray(NOISE), levels[0]),
        finish=finish,
        observe=latents_of,
    )
    return jnp.concatenate([trace.observed, x0[None]])


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_ten_guided_steps_lead_where_diffusers_leads(folders, pipelines):
    problem = from_pipeline(pipelines["sd15"], prompts=PROMPTS, negative="the blue sphere")
    path = ours(problem, 10)
    their_path, their_images = trajectory(
        torch_pipeline(folders["sd15"]),
        10,
        guidance_scale=7.5,
        negative_prompt=["the blue sphere"] * 2,
    )
    for mine, theirs in zip(path, their_path, strict=True):
        assert relative(mine, theirs) < 1e-4
    assert np.abs(problem.decode(path[-1]) - their_images).max() < 2 / 255


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_no_negative_prompt_is_what_the_checkpoint_makes_of_it(kind, folders, pipelines):
    # An empty prompt for SD 1.x, zeros instead of any prompt for SDXL.
    problem = from_pipeline(pipelines[kind], prompts=PROMPTS)
    path = ours(problem, 8)
    their_path, their_images = trajectory(torch_pipeline(folders[kind]), 8, guidance_scale=7.5)
    assert relative(path[-1], their_path[-1]) < 1e-4
    assert np.abs(problem.decode(path[-1]) - their_images).max() < 2 / 255


def test_it_is_a_problem_like_any_other(problem):
    model, levels, _ = published(problem, 3)
    assert isinstance(problem, Guided) and isinstance(model, TextToImage)
    assert isinstance(model, Problem) and isinstance(problem, Problem)
    keys = sample_keys(3, 6)
    cond = problem.condition(keys)
    drawn = np.asarray(cond["context"])
    told = np.asarray(model.prompts["context"])
    which = [int(np.argmin([np.abs(d - t).sum() for t in told])) for d in drawn]
    np.testing.assert_array_equal(drawn, told[which])
    assert set(which) == {0, 1}
    x, trace = sample(problem, ancestral(), levels, keys[:2], cond=problem.condition(keys[:2]))
    assert x.dtype == jnp.float32 and trace.nfe.tolist() == [3, 3] and problem.passes == 2
    images = problem.decode(x)
    assert images.shape == (2, 32, 32, 3) and images.min() >= 0 and images.max() <= 1
    with pytest.raises(ValueError, match="no reference set"):
        problem.reference(keys)
    with pytest.raises(ValueError, match="needs a condition"):
        model.denoise(x, levels[0])


@pytest.mark.slow
def test_one_program_takes_the_same_steps(problem):
    model, levels, finish = published(problem, 4)
    given = problem, ancestral(), levels, sample_keys(0, 2)
    options = {"cond": model.prompts, "finish": finish}
    x0, trace = sample(*given, **options)
    scanned, scan_trace = sample_scan(*given, **options)
    np.testing.assert_allclose(scanned, x0, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(scan_trace.nfe, trace.nfe)


def test_host_modes_network_lowers_for_tpu_and_cuda(problem, lower):
    levels, keys = published(problem, 3)[1], sample_keys(0, 2)
    cond = problem.condition(keys)
    x = jax.eval_shape(start, problem, keys, levels[0], cond)
    arguments = problem, cond, jnp.zeros(x.shape, x.dtype), levels[0]
    lower(eps_at, *arguments)
    lower(lambda problem, x: problem.decode(x), problem, arguments[2])


def test_weights_are_leaves_and_the_network_compiles_once(problem, folders):
    levels, keys = published(problem, 3)[1], sample_keys(0, 2)
    cond = problem.condition(keys)
    x0, _ = sample(problem, ddim(), levels, keys, cond=cond)
    compiled = eps_at._cache_size()
    sample(dataclasses.replace(problem, scale=3.0), dpmpp_2m(), levels[:2], keys, cond=cond)
    doubled = jax.tree.map(lambda w: 2 * w, problem.problem.unet)
    other = dataclasses.replace(problem, problem=dataclasses.replace(problem.problem, unet=doubled))
    changed, _ = sample(other, ddim(), levels, keys, cond=cond)
    assert eps_at._cache_size() == compiled
    assert relative(changed, x0) > 0.1
    again = stable_diffusion(folders["sd15"], prompts=PROMPTS)  # the same geometry, loaded anew
    sample(again, ddim(), levels, keys, cond=cond)
    assert eps_at._cache_size() == compiled


@pytest.mark.slow
def test_a_sample_does_not_depend_on_the_batch(problem):
    levels, keys = published(problem, 3)[1], sample_keys(0, 3)
    together, _ = sample(problem, ddim(), levels, keys, cond=problem.condition(keys))
    alone, _ = sample(problem, ddim(), levels, keys[2:], cond=problem.condition(keys[2:]))
    images = problem.decode(together)
    assert np.abs(problem.decode(alone)[0] - images[2]).max() < 2 / 255


def test_images_are_decoded_a_few_at_a_time(problem, monkeypatch):
    three = np.concatenate([NOISE, NOISE[::-1]])[:3]
    monkeypatch.setattr("optdiff.problems.text_to_image.PIXELS_AT_ONCE", 2 * 32 * 32)
    images = problem.decode(jnp.asarray(three))  # two, and one with an empty place beside it
    pair = problem.decode(jnp.asarray(NOISE))
    np.testing.assert_allclose(images, np.concatenate([pair, pair[1:]]), atol=1e-4)


def test_the_prior_has_the_variance_of_latents_and_noise(problem):
    model, keys = problem.problem, sample_keys(0, 50)
    x = start(problem, keys, jnp.array(3.0))
    assert float(jnp.std(x)) == pytest.approx(10**0.5, rel=0.01)
    np.testing.assert_allclose(
        model.from_noise(start(model, keys, jnp.array(0.0)), jnp.array(3.0)), x, 1e-5
    )


def test_images_become_the_latents_that_diffusers_makes(problem, folders):
    images = np.random.default_rng(2).uniform(size=(1, 32, 32, 3)).astype(np.float32)
    vae = torch_pipeline(folders["sd15"]).vae
    with torch.no_grad():
        theirs = vae.encode(torch.from_numpy(images.transpose(0, 3, 1, 2)) * 2 - 1)
    theirs = theirs.latent_dist.mode().permute(0, 2, 3, 1).numpy() * vae.config.scaling_factor
    assert relative(problem.problem.encode(jnp.asarray(images)), theirs) < 2e-5


@pytest.mark.slow
def test_half_precision_stays_close(folders):
    noise, sigma = jnp.asarray(NOISE), jnp.array(2.0, jnp.float32)
    full, half = (
        stable_diffusion(folders["sd15"], prompts=PROMPTS, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    predicted = [eps_at(p, p.problem.prompts, noise, sigma) for p in (full, half)]
    assert predicted[1].dtype == jnp.float32
    assert relative(predicted[1], predicted[0]) < 0.1  # guidance of 7.5 amplifies bf16's 0.4 %
    assert {leaf.dtype for leaf in jax.tree.leaves(half.problem.unet)} == {jnp.dtype("bfloat16")}


def test_another_size_is_told_to_sdxl(pipelines):
    problem = from_pipeline(pipelines["sdxl"], prompts=["a cube"], height=24, width=40)
    model = problem.problem
    assert model.shape == (12, 20, 4)
    assert model.prompts["added"]["time_ids"].tolist() == [[24, 40, 0, 0, 24, 40]]
    cond = encode_prompts(pipelines["sdxl"], ["a cube"], (24, 40))
    jax.tree.map(np.testing.assert_array_equal, cond, model.prompts)


def test_slerp_keeps_the_length_of_noise():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(1, 16, 16, 4))) for _ in range(2))
    path = slerp(a, b, jnp.linspace(0, 1, 5))
    np.testing.assert_allclose(path[0], a[0], atol=1e-12)
    np.testing.assert_allclose(path[-1], b[0], atol=1e-12)
    lengths = np.linalg.norm(path.reshape(5, -1), axis=1)
    assert np.ptp(lengths) < 0.1 * lengths.mean() and lengths.min() > 0.95 * lengths[[0, -1]].min()
    np.testing.assert_allclose(slerp(a, a, jnp.array([0.3]))[0], a[0])
    np.testing.assert_allclose(slerp(0 * a, 0 * a, jnp.array([0.3])), 0 * a)
    unit = [v / jnp.linalg.norm(v) for v in (a, b)]
    path = slerp(*unit, jnp.linspace(0, 1, 5)).reshape(5, -1)  # equal steps along the circle
    np.testing.assert_allclose(jnp.linalg.norm(path, axis=1), 1.0)
    cosines = jnp.sum(path[1:] * path[:-1], axis=1)
    np.testing.assert_allclose(cosines, cosines[0])


@pytest.mark.parametrize(
    "options, told",
    [
        ({"height": 33}, "height = 33 pixels must be a positive multiple of 2"),
        ({"width": 0}, "width = 0 pixels"),
        ({"prompts": []}, "at least one prompt"),
    ],
)
def test_options_that_cannot_work_are_refused(options, told, pipelines):
    with pytest.raises(ValueError, match=told):
        from_pipeline(pipelines["sd15"], **options)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"scheduler": {"prediction_type": "x0"}}, "prediction_type = 'x0'"),
        ({"scheduler": {"_class_name": "DDIMScheduler", "thresholding": True}}, "thresholding = T"),
        ({"settings": {"requires_aesthetics_score": True}}, "a refiner"),
        ({"text_encoders": (None,)}, "0 text encoders"),
    ],
)
def test_pipelines_that_do_something_else_are_refused(changes, told, pipelines):
    pipeline = pipelines["sd15"]
    changes = {
        name: {**getattr(pipeline, name), **value} if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    with pytest.raises(ValueError, match=told):
        from_pipeline(dataclasses.replace(pipeline, **changes))
