"""Images from prompts: the same as PyTorch's, made again from themselves, and nothing lost."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "nn"))
sys.path.insert(0, str(Path(__file__).parents[1] / "problems"))
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _help
import digits_folder
import generate
from _errors import ConfigError, explain
from stable_diffusion_folder import write

from optdiff import results
from optdiff.images import read_note, write_png
from optdiff.problems import stable_diffusion

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
torch.set_num_threads(1)  # its idle threads spin, which costs others more than they bring here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, which is read once for all that happens in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stable_diffusion, "load", functools.cache(stable_diffusion.load))
        yield write(tmp_path_factory.mktemp("sd15"), "sd15")


@pytest.fixture
def make(ask, folder, tmp_path):
    """`make(name, *arguments)` generates into the folder of that name, without a new process."""

    def run(name, *arguments):
        again = any(a.startswith("from=") for a in arguments)
        source = ("trust=true",) if again else (
            f"problem.path={folder}", "nfe=4", "batch=2", "images=2",
        )  # fmt: skip
        config, only = ask(*source, *arguments)
        generate.generate(config, tmp_path / name, only)
        return sorted((tmp_path / name).glob("[0-9]*.png"))

    return run


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def apart(a, b):
    return np.abs(pixels(a) - pixels(b)).max()


def test_one_command_makes_the_image_that_diffusers_makes(folder, tmp_path):
    prompt = 'a red cube, "the" yellow sphere\'s {photo} = (1:2) [on] ${x}'
    arguments = ["problem=stable_diffusion", f"problem.path={folder}", "nfe=8", "seed=1"]
    command = [sys.executable, EXPERIMENTS / "generate.py", *arguments, f"prompt={prompt}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [out] = (tmp_path / "outputs").glob("[!.]*")
    assert str((out / "grid.png").relative_to(tmp_path)) in done.stdout
    assert read_note(out / "000.png")["config"]["prompt"] == [prompt]

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    config = dict(pipeline.scheduler.config) | {"clip_sample": False}
    pipeline.scheduler = DDIMScheduler.from_config(config)
    latents = torch.from_numpy(np.load(out / "latents.npy").transpose(0, 3, 1, 2).copy())
    theirs = pipeline(prompt, latents=latents, num_inference_steps=8, guidance_scale=7.5).images[0]
    assert np.abs(pixels(out / "000.png") - np.asarray(theirs).astype(int)).max() <= 2
    shown = pixels(out / "grid.png")  # enlarged, on white, below its words
    large = pixels(out / "000.png").repeat(6, axis=0).repeat(6, axis=1)
    np.testing.assert_array_equal(shown[-12 - 192 : -12, 8:-8], large)


@pytest.mark.slow
def test_images_make_themselves_again(make, tmp_path):
    made = make("one", "prompt=a red cube", "images=3", "guidance=[1,7]", "seed=5")
    assert [p.name for p in made] == [f"{i:03}.png" for i in range(6)]
    assert pixels(tmp_path / "one/grid.png").shape[1] == 3 * 192 + 4 * 8
    for i in (2, 4):
        [again] = make(f"again{i}", f"from={made[i]}")
        assert again.name == made[i].name and apart(again, made[i]) == 0
        assert read_note(again) == read_note(made[i])
    everything = make("all", f"from={tmp_path / 'one/grid.png'}")
    assert [apart(a, b) for a, b in zip(everything, made, strict=True)] == [0] * 6
    [changed] = make("changed", f"from={made[1]}", "seed=6", "sampler=dpmpp_2m")
    assert apart(changed, made[1]) > 10
    config = read_note(changed)["config"]
    assert (config["seed"], config["sampler"]["_target_"]) == (6, "optdiff.samplers.dpmpp_2m")


@pytest.mark.slow
def test_image_i_is_the_same_in_any_batch_and_row(make):
    rows = make("a", "prompt=a blue sphere, yellow", "guidance=[2,7.5]")
    alone = make("b", "prompt=a blue sphere, yellow", "batch=1")
    assert [apart(rows[2 + i], alone[i]) <= 2 for i in range(2)] == [True] * 2
    assert apart(rows[0], rows[2]) > 10 and apart(rows[0], rows[1]) > 10


@pytest.mark.slow
def test_guidance_up_to_one_is_none_and_a_negative_is_each_prompts_own(folder, make, tmp_path):
    """Both as in diffusers, where `guidance_scale <= 1` runs the network once."""
    asked = ("prompt=[a red cube, a blue sphere]", "images=1", "seed=3")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    config = dict(pipeline.scheduler.config) | {"clip_sample": False}
    pipeline.scheduler = DDIMScheduler.from_config(config)
    for name, scale, negative in (("none", 0, None), ("own", 4, ["yellow", "photo of the"])):
        more = () if negative is None else (f"negative=[{','.join(negative)}]",)
        ours = make(name, *asked, f"guidance={scale}", *more)
        noise = torch.from_numpy(np.load(tmp_path / name / "latents.npy").transpose(0, 3, 1, 2))
        theirs = pipeline(
            ["a red cube", "a blue sphere"], negative_prompt=negative, guidance_scale=scale,
            latents=noise.repeat(2, 1, 1, 1), num_inference_steps=4,
        ).images  # fmt: skip
        for image, of_torch in zip(ours, theirs, strict=True):
            assert np.abs(pixels(image) - np.asarray(of_torch).astype(int)).max() <= 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["guidance=1", "negative=dull"], "is what guidance leads away from, but there is none"),
        (["guidance=null", "negative=[dull]"], "guidance must be above 1"),
        (["negative=[a,b]"], "2 of negative for 1 of prompt"),
        (["guidance=nan"], "guidance = nan must be a number"),
    ],
)
def test_a_negative_that_leads_nowhere_is_refused(ask, arguments, said):
    with pytest.raises(ConfigError, match=said):
        ask("problem.path=x", "prompt=a", *arguments)


@pytest.mark.slow
def test_prompts_come_from_files_line_by_line(make, tmp_path):
    prompts = ['a red cube, "big"', "photo of\u2028the\x85sphere"]
    lines = ("\ufeff" + "\r\n\n".join(prompts)).encode()
    (tmp_path / "prompts.txt").write_bytes(lines)
    made = make("a", "prompt_file=prompts.txt")
    assert read_note(made[0])["config"]["prompt"] == prompts and len(made) == 4
    (tmp_path / "prompts.txt").unlink()
    [again] = make("b", f"from={made[2]}")
    assert apart(again, made[2]) == 0 and apart(made[0], made[2]) > 10


def test_latents_are_taken_in_either_layout(make, tmp_path):
    drawn = make("a", "prompt=a red cube")
    noise = np.load(tmp_path / "a/latents.npy")
    assert noise.shape == (2, 16, 16, 4) and abs(noise.std() - 1) < 0.1
    np.save(tmp_path / "torch.npy", noise.transpose(0, 3, 1, 2))
    np.save(tmp_path / "small.npy", noise[:, :8])
    for name in ("a/latents.npy", "torch.npy"):
        given = make(f"from_{name[0]}", "prompt=a red cube", f"latents={tmp_path / name}", "seed=9")
        assert [apart(a, b) for a, b in zip(given, drawn, strict=True)] == [0, 0]
    with pytest.raises(ConfigError, match=r"\(2, 8, 16, 4\), but images need \(n, 16, 16, 4\)"):
        make("c", "prompt=a red cube", f"latents={tmp_path / 'small.npy'}")


def test_strength_leads_from_the_image_to_noise(make, tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32))
    smooth.save(tmp_path / "init.png")
    asked = ("prompt=a cube", "grid=karras", "guidance=1")
    images = {
        s: make(f"s{s}", *asked, "init_image=init.png", f"strength={s}")[0] for s in (0, 0.5, 1)
    }
    assert apart(images[1], make("noise", *asked)[0]) == 0
    through = make("through", "prompt=a cube", "init_image=init.png", "strength=0.0")[0]
    distance = {s: np.abs(pixels(p) - pixels(through)).mean() for s, p in images.items()}
    assert distance[0] < distance[0.5] < distance[1]


def test_strength_begins_where_pytorchs_pipeline_does(folder, ask):
    theirs = StableDiffusionImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    config, _ = ask(f"problem.path={folder}", "prompt=a")
    problem = generate.assemble(config, guidance=None)
    for steps, strength in [(6, 0.6), (10, 0.1), (10, 0.56), (10, 0.99), (7, 0.5), (25, 1.0)]:
        theirs.scheduler.set_timesteps(steps)
        timesteps, _ = theirs.get_timesteps(steps, strength, "cpu")
        for more in ({}, {"grid": {"_target_": "optdiff.grids.leading", "steps_offset": 1}}):
            more = {k: v | {"_partial_": True} for k, v in more.items()}
            way = generate.route(config | {"strength": strength} | more, problem, steps)
            np.testing.assert_allclose(problem.schedule.t(way.levels), timesteps, atol=1e-3)


def test_strength_means_something_at_one_step_too(folder, ask):
    """Where PyTorch's pipeline would take none: at this share of the trained time."""
    config, _ = ask(f"problem.path={folder}", "prompt=a")
    problem = generate.assemble(config, guidance=None)
    for steps, strength in [(1, 0.8), (1, 0.3), (6, 0.1), (6, 0.0)]:
        [level] = generate.route(config | {"strength": strength}, problem, steps).levels
        highest = 999 if steps == 1 else 831
        assert problem.schedule.t(level) == pytest.approx(highest * strength, abs=1e-3)


def test_only_a_sampler_of_ours_steps_as_a_class_of_diffusers(folder, ask):
    """Another's function may have the name of one of ours, and be another method."""
    config, _ = ask(f"problem.path={folder}", "prompt=a", "sampler=dpmpp_2m")
    problem = generate.assemble(config, guidance=None)

    def levels(target):
        return generate.route(config | {"sampler": {"_target_": target}}, problem, 5).levels

    own = problem.scheduler.route(5).levels  # as the file's own class
    its = problem.scheduler.route(5, sampler="dpmpp_2m").levels
    assert not np.allclose(own, its)
    for target in ("optdiff.samplers.dpmpp_2m", "optdiff.samplers.dpmpp.dpmpp_2m"):
        np.testing.assert_array_equal(levels(target), its)
    for target in ("my.module.dpmpp_2m", "optdiff.samplers_of_mine.dpmpp_2m", "dpmpp_2m"):
        np.testing.assert_array_equal(levels(target), own)


@pytest.mark.slow
def test_paths_between_prompts_and_seeds_keep_their_ends(make):
    path = make("path", "prompt=a red cube", "prompt_to=blue", "seed=1", "seed_to=2", "images=4")
    ends = make("a", "prompt=a red cube", "seed=1"), make("b", "prompt=blue", "seed=2")
    assert apart(path[0], ends[0][0]) <= 2 and apart(path[3], ends[1][0]) <= 2
    assert min(apart(a, b) for a, b in zip(path[1:], path[:-1], strict=True)) > 10
    words = make("words", "prompt=a red cube", "prompt_to=blue", "seed=1")
    assert apart(words[0], ends[0][0]) <= 2 and apart(words[1], words[0]) > 10


def test_previews_show_every_so_many_steps(make, tmp_path):
    make("a", "prompt=a red cube", "preview=2", "nfe=6")
    shown = sorted(p.name for p in (tmp_path / "a").glob("preview*"))
    assert shown == ["preview.png", "preview_000_002.png", "preview_000_004.png"]
    assert pixels(tmp_path / "a" / shown[1]).shape == (32, 64, 3)
    assert pixels(tmp_path / "a/preview.png").shape[1] == 3 * 192 + 4 * 8  # two steps and the end


def test_a_preview_numbers_its_rows_as_the_files_are(make, tmp_path, monkeypatch):
    """Also where the last batch of each scale is filled up."""
    sheets, draw = [], generate.sheet
    monkeypatch.setattr(generate, "sheet", lambda *a, **k: sheets.append((a, k)) or draw(*a, **k))
    asked = ("images=3", "batch=2", "guidance=[2,7]", "preview=2")
    files = make("a", "prompt=a red cube", *asked)
    (shown,), words = sheets[0]
    assert words["rows"] == [file.stem for file in files] and len(files) == 6
    assert len(shown) == 6 * len(words["columns"])
    for picture, file in zip(
        shown[len(words["columns"]) - 1 :: len(words["columns"])], files, strict=True
    ):
        np.testing.assert_array_equal(picture, pixels(file))


def test_what_is_not_as_it_was_is_said(make, folder, tmp_path, capsys):
    """Files that an image is made from are known by content, wherever they lie."""
    for name, colour in (("init.png", "red"), ("other.png", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / name)
    [image, *_] = make("a", "prompt=a cube", "init_image=init.png", "nfe=1", "images=1")
    assert {*read_note(image)["digests"]} == {"init_image", "problem.path"}
    (tmp_path / "init.png").rename(tmp_path / "moved.png")
    make("b", f"from={image}", "init_image=moved.png")
    make("c", f"from={image}", "init_image=other.png")  # as was asked for
    assert "something else" not in capsys.readouterr().err
    (tmp_path / "other.png").rename(tmp_path / "init.png")
    make("d", f"from={image}")
    said = capsys.readouterr().err
    assert said.count("holds something else") == 1
    assert "from: init_image = init.png holds something else than then" in said
    model = shutil.copytree(folder, tmp_path / "model")
    make("e", f"from={image}", "init_image=moved.png", f"problem.path={model}")
    made_there = sorted((tmp_path / "e").glob("[0-9]*.png"))[0]
    (model / "scheduler/scheduler_config.json").write_text(
        (model / "scheduler/scheduler_config.json").read_text() + "\n"
    )
    make("f", f"from={made_there}")
    assert "problem.path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "end, code", [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)]
)
def test_an_interruption_says_what_is_left(make, tmp_path, monkeypatch, capsys, end, code):
    def interrupted(*arguments, **options):
        raise end

    config = {"problem": {}}
    (tmp_path / "out").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "out/000.png")
    monkeypatch.setattr(generate, "generate", interrupted)
    with pytest.raises(SystemExit) as exit:
        generate.make(config, tmp_path / "out", None)
    said = capsys.readouterr().err
    assert exit.value.code == code and str(end) in said
    assert "1 finished images" in said and "makes all anew" in said


@pytest.mark.parametrize(
    "argument, said",
    [
        ("images=[1", r"'images=\[1' is not understood"),
        ("seed=${oc.env:NOPE}", "seed cannot be looked up: .*NOPE"),
        ("seed=${nope}", "seed cannot be looked up: .*nope"),
        ("sed=1", "there is no 'sed'; did you mean 'seed'"),
    ],
)
def test_what_cannot_be_composed_is_said_in_a_line(ask, argument, said):
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        ask("prompt=a", argument)
    assert re.search(said, explain(error.value)) and len(explain(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "a red cube",
        "cat, dog",
        "it's",
        '"quoted" in part',
        "a=b: {c} (d) [e] \\ f\\",
        "${oc.env:HOME} $x",
        "[bracket] first",
        " spaces ",
        "7",
        "ünï 🚀",
        "null and void",
        "a 'b' \"c\", \\'d\\'",
        '"open" beside "closed"',
        "'a', 'b'",
        "[a] and [b]",
        r"a \${oc.env:NOPE} \\${x",
    ],
)
def test_words_are_taken_as_they_stand(ask, prompt):
    config, _ = ask("problem.path=x", f"prompt={prompt}", f"negative={prompt}")
    assert config["prompt"] == [prompt] and str(config["negative"]) == prompt


def test_lists_and_quotes_around_the_whole_are_hydras(ask):
    config, _ = ask("problem.path=x", """prompt=['a, b', "it's"]""", "negative=null")
    assert config["prompt"] == ["a, b", "it's"] and config["negative"] is None
    assert ask("problem.path=x", "prompt='a, b'")[0]["prompt"] == ["a, b"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "give one of prompt"),
        (["prompt=a", "prompt_file=b"], "give one of prompt"),
        (["prompt_file=nowhere.txt"], "nowhere.txt"),
        (["prompt=a", "strength=0.5"], "init_image.* which is not given"),
        (["prompt=a", "init_image=nowhere.png"], "nowhere.png"),
        (["prompt=a", "init_image=image.png", "strength=1.5"], "strength = 1.5 must lie between"),
        (["prompt=a", "init_image=image.png", "strength=-1"], "strength = -1 must lie between"),
        (["prompt=a", "init_image=noise.npy"], "noise.npy: not an image"),
        (["prompt=a", "height=1.5"], "height = 1.5 must be a positive number of pixels"),
        (["prompt=a", "width=0"], "width = 0"),
        (["prompt=a", "images=0"], "images = 0"),
        (["prompt=a", "nfe=many"], "nfe = 'many' must be a whole number"),
        (["prompt=a", "guidance=[1,high]"], "guidance = .* must be a number"),
        (["prompt=a", "guidance=[]"], "guidance"),
        (["prompt=['a','b']", "seed_to=3"], "seed_to lead from one prompt"),
        (["prompt=a", "latents=nowhere.npy"], "nowhere.npy"),
        (["prompt=a", "latents=image.png"], "latents: "),
        (["prompt=a", "latents=noise.npy", "images=3"], "3 images asked for, but 2 latents given"),
        (["prompt=a", "out=."], "out = . is there already"),
        (["from=nowhere.png"], "nowhere.png"),
        (["from=image.png"], "does not say how it was made"),
    ],
)
def test_faults_are_named_before_anything_is_opened(ask, tmp_path, arguments, told):
    np.save(tmp_path / "noise.npy", np.zeros((2, 16, 16, 4), np.float32))
    Image.new("RGB", (40, 33)).save(tmp_path / "image.png")
    with pytest.raises(ConfigError, match=told):
        ask("problem.path=nowhere", *arguments)


def test_all_faults_are_named_at_once_and_nothing_is_made(tmp_path):
    command = [sys.executable, EXPERIMENTS / "generate.py", "height=-3", "nfe=0"]
    done = subprocess.run(
        [*command, "problem.path=nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    for told in ("give one of prompt", "height = -3", "nfe = 0"):
        assert told in done.stderr and "Traceback" not in done.stderr


def test_a_folder_that_is_not_there_is_named(ask):
    config, _ = ask("problem.path=no/where", "prompt=a")
    with pytest.raises(ConfigError, match="problem: no/where: no such file or folder"):
        generate.generate(config, Path("out"))
    assert not os.path.exists("out")
    with pytest.raises(ConfigError, match=r"problem\.path must be given"):
        ask("problem=stable_diffusion", "prompt=a")


@pytest.mark.parametrize("name, script", [("generate", "generate"), ("config", "evaluate")])
def test_help_shows_what_the_yaml_says(name, script, capsys):
    _help.show(f"about {script}", name)
    shown = capsys.readouterr().out
    comments = {
        "generate": "multiples of what the autoencoder makes",
        "config": "samples at a time",
    }
    assert f"about {script}" in shown and comments[name] in shown
    assert re.search(r"^sampler: .*\bdpmpp_2m\b", shown, re.M) and "output_subdir" not in shown


def test_advice_names_overrides_that_there_are(ask, folder, tmp_path):
    for file in folder.glob("unet/*.safetensors"):
        shutil.copytree(folder, tmp_path / "model")
        variant = file.name.replace(".safetensors", ".fp16.safetensors")
        (tmp_path / "model/unet" / file.name).rename(tmp_path / "model/unet" / variant)
    save_file({"a": torch.zeros(2, 2, 2)}, tmp_path / "single.safetensors")
    for arguments, said in {
        ("problem.path=model",): r"pass problem\.variant='fp16'",
        ("problem.path=model", "problem.like=x"): r"problem\.like= goes with a single file",
        ("problem.path=single.safetensors",): r"pass problem\.like=FOLDER.*problem\.like='stable",
    }.items():
        config, _ = ask("prompt=a", *arguments)
        with pytest.raises(ConfigError, match=said):
            generate.generate(config, Path("out"))


def test_sizes_are_multiples_of_what_the_autoencoder_makes_one_latent_of(folder, ask):
    config, _ = ask(f"problem.path={folder}", "prompt=a", "height=33")
    with pytest.raises(ConfigError, match=r"problem: height = 33 pixels .* multiple of 2"):
        generate.generate(config, Path("out"))
    config, _ = ask(f"problem.path={folder}", "prompt=a", "height=36", "width=22")
    assert generate.assemble(config, guidance=None).shape == (18, 11, 4)


@pytest.mark.slow
def test_a_model_of_captioned_digits_takes_prompts_of_ones_own(ask, tmp_path):
    model = digits_folder.write(tmp_path / "model")
    asked = ("problem=text_to_image", f"problem.path={model}", "nfe=3", "images=2")
    config, _ = ask(*asked, "prompt=a red seven on a yellow background", "height=36")
    assert config["guidance"] == [config["problem"]["guidance"]]
    generate.generate(config, tmp_path / "a", None)
    assert pixels(tmp_path / "a/001.png").shape == (36, 32, 3)
    config, only = ask(f"from={tmp_path / 'a/001.png'}", "trust=true")
    generate.generate(config, tmp_path / "b", only)
    assert apart(tmp_path / "a/001.png", tmp_path / "b/001.png") == 0


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["decoder.conv_out.weight", "decoder.conv_in.weight"])
def test_a_decoder_that_overflows_makes_no_picture(folder, ask, tmp_path, layer):
    """At its end it answers infinity; within, NaN."""
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((tmp_path / "model/vae/config.json").read_text())
    (tmp_path / "model/vae/config.json").write_text(json.dumps(config | {"force_upcast": False}))
    file = tmp_path / "model/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[layer] *= 6e4 / tensors[layer].abs().max()
    save_file(tensors, file, {"format": "pt"})
    config, _ = ask("problem.path=model", "prompt=a", "nfe=2", "problem.dtype=float16")
    with pytest.raises(FloatingPointError, match="1 of 1 images, decoded, are not finite"):
        generate.generate(config, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_path_alone_is_a_published_checkpoints(ask, tmp_path):
    config, _ = ask("problem.path=x", "prompt=a")
    named, _ = ask("problem=stable_diffusion", "problem.path=x", "prompt=a")
    assert config == named and config["guidance"] == [7.5]
    ours, _ = ask("prompt=a")
    assert ours["problem"]["_target_"].endswith("captioned_digits.text_to_image")
    mine, _ = ask("problem=text_to_image", "problem.path=x", "prompt=a")
    assert mine == {**ours, "problem": {**ours["problem"], "path": "x"}}
    note = {"config": ours, "index": None}
    write_png(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8), note)
    moved, _ = ask("from=a.png", "problem.path=y")
    assert moved["problem"] == {**ours["problem"], "path": "y"}


def test_the_size_of_an_image_is_kept_in_whole_latents(ask, tmp_path):
    Image.new("RGB", (40, 33)).save(tmp_path / "image.png")
    config, _ = ask("problem.path=x", "prompt=a", "init_image=image.png", "width=64")
    assert (config["height"], config["width"], config["strength"]) == (32, 64, 0.8)


def test_an_image_does_not_size_what_captioned_digits_are_drawn_in(ask, tmp_path):
    Image.new("RGB", (128, 96)).save(tmp_path / "image.png")
    config, _ = ask("prompt=a", "init_image=image.png", "height=36")
    assert (config["height"], config["width"], config["strength"]) == (36, None, 0.8)
    with pytest.raises(ConfigError, match=r"init_image: .*nowhere\.png"):
        ask("prompt=a", "init_image=nowhere.png")


@pytest.mark.slow
def test_a_large_image_leads_to_a_digit_of_the_models_own_size(ask, tmp_path):
    Image.new("RGB", (128, 96), "red").save(tmp_path / "image.png")
    config, _ = ask("prompt=a blue 3 on red", "init_image=image.png", "strength=0.1", "nfe=4")
    generate.generate(config, tmp_path / "a")
    assert pixels(tmp_path / "a/000.png").shape == (32, 32, 3)


@pytest.mark.slow
def test_a_sweep_gives_every_job_a_folder(folder, tmp_path):
    command = [sys.executable, EXPERIMENTS / "generate.py", "-m", f"problem.path={folder}"]
    arguments = ["prompt=a cube, red", "nfe=2", "sampler=ddim,dpmpp_2m", "out=mine"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/0/grid.png").exists() and (tmp_path / "mine/1/grid.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "outputs"]


@pytest.mark.slow
def test_samplers_are_compared_on_a_checkpoint_in_latents(folder, tmp_path):
    sizes = ["samples=2", "batch=2", "exact.levels=9"]
    command = [sys.executable, EXPERIMENTS / "evaluate.py", f"problem.path={folder}", *sizes]
    done = subprocess.run(
        [*command, "problem=stable_diffusion", "sampler=dpmpp_2m", "nfe=8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    [row] = results.load(tmp_path / "results/scratch")
    assert row["status"] == "ok" and row["nfe"] == 8 and row["passes"] == 16
    assert 0 < row["metrics"]["trajectory_error"] < 10 and row["floor"] == {}
    artifact = results.load_artifact(tmp_path / "results/scratch", row["key"])
    assert artifact["samples"].shape == (2, 32, 32, 3) and "reference" not in artifact
