"""generate.py beside PyTorch's pipeline, on small ones of every kind: classes, files, counts."""

import csv
import dataclasses
import functools
import io
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import parity
from stable_diffusion_folder import write

from optdiff.nn.checkpoint import load
from optdiff.problems import stable_diffusion

torch.set_num_threads(1)  # its idle threads spin, which costs others more than they bring here
CASES = {case.sampler[0].removeprefix("sampler="): case for case in parity.CASES}
LCM = {
    "_class_name": "LCMScheduler",
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
SHORT = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
WITHOUT = dict.fromkeys(["set_alpha_to_one", "steps_offset", "timestep_spacing"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return functools.cache(lambda kind: write(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture(scope="module")
def read(folders):
    """`read(kind)`: our pipeline, and PyTorch's."""

    @functools.cache
    def both(kind):
        theirs = DiffusionPipeline.from_pretrained(folders(kind), local_files_only=True)
        theirs.set_progress_bar_config(disable=True)
        return load(folders(kind)), theirs

    return both


# Every class on SD 1.5 from its published file: at each number of steps those that have a grid rule
# of their own, the others at one; then other kinds, and files with other fields, without some, or
# of another class.
OF_A_GRID = ("ddim", "euler", "dpmpp_2m", "lcm")
OTHERS = [name for name in CASES if name not in OF_A_GRID]
MATRIX = [
    *(("sd15", {}, name, steps) for name in OF_A_GRID for steps in parity.STEPS),
    *(("sd15", {}, name, (4, 10)[i % 2]) for i, name in enumerate(OTHERS)),
    ("sd15", {}, "plms", 1),
    ("sd15", WITHOUT, "ddim", 4),
    ("sd15", WITHOUT, "dpmpp_2m", 4),
    ("sd15", SHORT, "euler", 1),
    ("sd15", KARRAS, "dpmpp_2m", 10),
    ("sd15", {"final_sigmas_type": "sigma_min"}, "dpmpp_2m", 4),
    ("sd15", LCM, "lcm", 4),
    ("sd21", {}, "euler_ancestral", 4),
    ("sd21", {}, "dpmpp_2m", 10),
    ("sd21", {"rescale_betas_zero_snr": True, **SHORT}, "ddim", 4),
    ("sdxl", {}, "euler", 4),
    ("sdxl", {"set_alpha_to_one": False}, "ddim", 4),
    ("sdxl", {}, "dpmpp_2m", 4),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind, changes, sampler, steps", MATRIX)
def test_every_class_makes_the_image_of_pytorchs_pipeline(
    kind, changes, sampler, steps, read, folders, monkeypatch
):
    mine, theirs = read(kind)
    file = {**mine.scheduler, **changes}
    file = {key: value for key, value in file.items() if value is not None}
    changed = dataclasses.replace(mine, scheduler=file)
    monkeypatch.setattr(stable_diffusion, "load", lambda *args, **options: changed)
    own = getattr(diffusers, file["_class_name"]).from_config(file)
    theirs = type(theirs)(**{**theirs.components, "scheduler": own}, **_unsafe(kind))
    theirs.set_progress_bar_config(disable=True)
    case = CASES[sampler]
    if own.__class__.__name__ in ("EulerDiscreteScheduler", "DDIMScheduler") and sampler == "ddim":
        case = case._replace(name=own.__class__.__name__)  # the file's own method
    assert parity.difference(folders(kind), theirs, case, steps, 1.0) <= 2  # half the passes


def test_the_committed_page_is_of_the_shipped_model_alone(monkeypatch, tmp_path):
    """Another folder's goes where one says; and a row says all that it was made with."""
    done = []
    monkeypatch.setattr(parity, "main", lambda *paths: done.append(paths))
    for arguments in ([str(tmp_path)], ["a", "b", "c"]):
        with pytest.raises(SystemExit, match="FOLDER OUT"):
            parity.started(arguments)
    parity.started([])
    parity.started(["a", "b"])
    assert done == [(), (Path("a"), Path("b"))]
    origin = {"commit": "abc", "dirty": False, "versions": {"jax": "1"}}
    rows = [[0] * len(parity.STEPS) for _ in parity.CASES]
    text, lines = parity.page(tmp_path, rows, origin), parity.table(rows, origin)
    records = [*csv.DictReader(io.StringIO(lines))]
    for case in parity.CASES:
        for stated in (" ".join(case.sampler), case.asked()):
            assert stated in text
            assert any(stated in record.values() for record in records)
    assert {(r["commit"], r["versions"], r["seed"]) for r in records} == {("abc", "jax=1", "0")}


@pytest.mark.slow
def test_an_image_leads_where_pytorchs_pipeline_leads(read, folders, monkeypatch, tmp_path):
    """Its noise is ours, and its latents are the likeliest."""
    rng, path = np.random.default_rng(0), tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32)).save(path)
    mine, theirs = read("sd15")
    monkeypatch.setattr(stable_diffusion, "load", lambda *args, **options: mine)
    asked = (f"init_image={path}", "strength=0.6", "guidance=3.0")
    made = parity.ours(folders("sd15"), CASES["ddim"], 6, tmp_path / "made", *asked)
    noise = np.load(tmp_path / "made/latents.npy").transpose(0, 3, 1, 2)
    pipeline = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    config = theirs.scheduler.config
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(config, clip_sample=False)
    module = sys.modules[StableDiffusionImg2ImgPipeline.__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: torch.tensor(noise))
    posterior = DiagonalGaussianDistribution
    monkeypatch.setattr(posterior, "sample", lambda self, generator=None: self.mode())
    asked = {"strength": 0.6, "num_inference_steps": 6, "guidance_scale": 3.0}
    image = pipeline(parity.PROMPT, image=Image.open(path), output_type="np", **asked).images[0]
    assert np.abs(made - np.round(255 * image)).max() <= 2


def _unsafe(kind):
    return {} if kind == "sdxl" else {"requires_safety_checker": False}
