"""What an image's own text may do: choose among our configurations, and nothing else."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import _recall
import numpy as np
import pytest
from _build import build
from _errors import ConfigError
from _generate import completed
from _recall import read
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from optdiff.images import read_note, write_png
from optdiff.provenance import content_digest

HARMLESS = np.zeros((8, 8, 3), np.uint8)
MARKER = "ran"

SHELL = f"touch {MARKER}"
PYTHON = f"open({MARKER!r}, 'w').close()"
CALLS = {  # callables that run what they are given, and what to give
    "os.system": [SHELL],
    "os.popen": [SHELL],
    "subprocess.getoutput": [SHELL],
    "subprocess.check_output": ["touch", MARKER],
    "builtins.eval": [PYTHON],
    "builtins.exec": [PYTHON],
    "numpy.testing.runstring": [f"import os; os.system({SHELL!r})", {}],
    "timeit.timeit": [PYTHON],
    "code.InteractiveInterpreter.runsource": [None, PYTHON],
    "runpy.run_path": ["evil.py"],
    "pathlib.Path.touch": [MARKER],
    "hydra.utils.get_method": ["evil.touch"],
    "hydra.utils.instantiate": [{"_target_": "os.system", "_args_": [SHELL]}],
    "functools.partial": [{"_target_": "os.system", "_args_": [SHELL]}],
    "evil.touch": [],  # a module in the working directory: to import it is enough
}


def call(target, arguments, **more):
    return {"_target_": target, "_args_": arguments} | more


def places(evil):
    """Configurations with a call somewhere."""
    adam = "optdiff.samplers.from_transformation"
    return [
        {"sampler": evil},
        {"problem": evil},
        {"grid": evil},
        {"sampler": evil | {"_partial_": True}},
        {"sampler": evil | {"_recursive_": False}},
        {"sampler": {"_target_": "optdiff.samplers.ipndm", "order": evil}},
        {"sampler": {"_target_": "optdiff.samplers.ipndm", "order": [{"deep": [evil]}]}},
        {"sampler": {"_target_": "optdiff.samplers.ddim", "_args_": [evil]}},
        {"sampler": {"_target_": adam, "transformation": evil, "reading": {}}},
        {"problem": {"_target_": "optdiff.problems.captioned_digits.text_to_image", "path": evil}},
        {"grid": {"_target_": "optdiff.grids.karras", "_partial_": True, "rho": evil}},
        {"prompt": evil},
        {"negative": [evil]},
        {"init_image": evil},
        {"more": evil},
    ]


@pytest.fixture
def evil(tmp_path):
    (tmp_path / "evil.py").write_text(f"{PYTHON}\ndef touch(): {PYTHON}\n")


@pytest.fixture
def note(ask):
    """`note(**changes)` writes an image with the note of a real one, changed."""
    config, _ = ask("prompt=a red seven", "nfe=4", "out=made")

    def write(**changes):
        Path("stranger.png").unlink(missing_ok=True)
        write_png("stranger.png", HARMLESS, {"config": config | changes, "index": 0})
        return "stranger.png"

    yield write


def refused(ask, image, *arguments):
    """What is said of an image that is not to be made again; what it says has not been done."""
    with pytest.raises(ConfigError) as refusal:
        ask(f"from={image}", *arguments)
    assert not os.path.exists(MARKER)
    assert len(str(refusal.value).splitlines()) == 1, "one line"
    os.remove(image)
    return str(refusal.value)


@pytest.mark.parametrize("target", CALLS)
def test_a_stranger_runs_nothing(ask, note, evil, monkeypatch, tmp_path, target):
    monkeypatch.syspath_prepend(tmp_path)
    for changes in places(call(target, CALLS[target])):
        refused(ask, note(**changes))


def test_the_calls_that_are_refused_would_have_run(evil, monkeypatch, tmp_path):
    """The test above means something: what it looks for is left by at least these."""
    monkeypatch.chdir(tmp_path)
    build(call("numpy.testing.runstring", CALLS["numpy.testing.runstring"]))
    assert os.path.exists(MARKER)


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "${oc.decode:'1'}", "${hydra:runtime.cwd}", "a${problem}", "???"]
)
def test_nothing_is_looked_up_for_a_stranger(ask, note, text):
    config = read(note())["config"]
    for group, name in (("problem", "path"), ("sampler", "order"), ("problem", text)):
        said = refused(ask, note(**{group: config[group] | {name: text}}))
        assert "is to be looked up elsewhere" in said
    again, _ = ask(f"from={note(prompt=[text])}")  # words are words
    assert again["prompt"] == [text]


def test_a_strangers_prompts_are_not_read_from_files(ask, note):
    with open("secret", "w") as file:
        file.write("a secret")
    again, _ = ask(f"from={note(prompt_file='secret', trust=True, out='elsewhere')}")
    assert again["prompt"] == ["a red seven"] and again["out"] == "outputs/run"
    assert "give one of prompt" in refused(ask, note(prompt=None, prompt_file="secret"))


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("init_image", "secret.png", "init_image = secret.png"),
        ("latents", "two\nlines\x1b[2J", r"latents = two\\nlines\\x1b\[2J"),
        ("latents", 7, "latents = 7"),
        ("problem.path", "owner/name", "problem.path = owner/name"),
        ("problem.path", "/", "problem.path = /"),
        ("problem.variant", "../x", r"problem.variant = \.\./x"),
        ("problem.revision", "refs/pr/3", "problem.revision = refs/pr/3"),
        ("problem.like", "/", "problem.like = /"),
        ("sampler.order", 10**9, "sampler.order = 10{9}"),
        ("images", 10**12, "images = 10{12}"),
        ("nfe", 10**9, "nfe = 10{9}"),
        ("batch", 4097, "batch = 4097"),
        ("height", 10**6, "height = 10{6}"),
        ("width", 10**6, "width = 10{6}"),
        ("preview", 10**6, None),  # which no note decides
        ("prompt", ["a"] * 5000, r"prompt = \['a', 'a'"),
        ("prompt", ["a"] * 4096, None),
        ("guidance", [2.5] * 5000, r"guidance = \[2.5, 2.5"),
        ("seed", 10**12, None),
    ],
)
def test_files_and_huge_counts_that_a_stranger_names_are_asked_about(
    ask, note, capsys, name, value, said
):
    group, _, entry = name.partition(".")
    config = read(note())["config"]
    image = note(**{group: config[group] | {entry: value} if entry else value})
    if said is None:
        ask(f"from={image}")
        return
    assert re.search(f"stranger.png asks for {said}.*: trust=true", refused(ask, image))
    with suppress(ConfigError):  # from where such files are read
        ask(
            f"from={note(**{group: config[group] | {entry: value} if entry else value})}",
            "trust=true",
        )
    assert re.search(f"{said}.*; trusted, so it is taken\n", capsys.readouterr().err)


def test_many_of_each_are_more_together(ask, note):
    many = {"prompt": ["a"] * 300, "guidance": [2.0] * 300, "images": 300}
    assert "asks for 27000000 images. " in refused(ask, note(**many))
    image = note(**many, latents="secret", nfe=10**9)
    anew = ask(f"from={image}", "images=1", "prompt=b", "latents=null", "nfe=3")[0]
    assert (anew["prompt"], anew["images"], anew["latents"], anew["nfe"]) == (["b"], 1, None, 3)


@pytest.mark.parametrize(
    "whole, said",
    [
        (None, "does not say how it was made"),
        ("{", "Expecting"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no configuration"),
        ('{"config": 1}', "no configuration"),
        ('{"config": {}}', "problem = None is no choice"),
        ({"config": {"sampler": "ddim"}}, "sampler = 'ddim' is no choice"),
        ({"config": {"grid": ["karras"]}}, r"grid = \['karras'\] is no choice"),
        ({"index": "0"}, "index = '0' counts no image"),
        ({"index": -1}, "index = -1 counts no image"),
        ({"index": True}, "index = True counts no image"),
        ({"index": 10**9}, "image 1000000000 of its call, counted from 0, but now 1 are asked for"),
        ({"config": {"colour": 1}}, "the note has 'colour', which is no entry"),
        ({"config": {"sampler": {"_target_": "optdiff.samplers.ddim", "order": 3}}}, "order"),
        ({"config": {"prompt": {"a": 1}}}, "prompt = .* must be words"),
        ({"config": {"prompt": []}}, "prompt = None must be words"),
        ({"config": {"images": None, "nfe": [4]}}, r"nfe = \[4\] must be a whole number"),
        ({"config": {"guidance": {"a": 1}}}, "guidance"),
        ({"config": {"strength": "x", "init_image": None}}, "strength says how far"),
    ],
)
def test_a_note_that_is_none_is_refused_in_a_line(ask, note, whole, said):
    image = note()
    if isinstance(whole, dict):
        kept = read_note(image)
        whole = json.dumps(kept | whole | {"config": kept["config"] | whole.get("config", {})})
    chunks = PngInfo()
    if whole is not None:
        chunks.add_text("optdiff", whole)
    Image.fromarray(HARMLESS).save(image, pnginfo=chunks)
    assert re.search(said, refused(ask, image))


def test_ones_own_code_needs_to_be_trusted(ask, capsys):
    own = ["sampler=optimizer", "sampler.optimizer._target_=optax.fromage"]
    config, _ = ask("prompt=a", *own, "sampler.optimizer.learning_rate=0.5")
    write_png("mine.png", HARMLESS, {"config": config, "index": None})
    with pytest.raises(ConfigError, match=r"optimizer\._target_ = optax\.fromage.* trust=true"):
        ask("from=mine.png")
    assert ask("from=mine.png", "sampler=ddim")[0]["sampler"] == ask("prompt=a")[0]["sampler"]
    capsys.readouterr()
    again, _ = ask("from=mine.png", "trust=true", "seed=3")
    assert again["sampler"] == config["sampler"] and again["seed"] == 3
    told = capsys.readouterr().err
    assert "optimizer._target_ = optax.fromage" in told and "trusted, so it is run" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["sampler=ipndm", "sampler.order=2"],
        ["sampler=momentum", "sampler.beta=-0.3", "grid=karras", "grid.rho=5"],
        ["sampler=adam", "sampler.transformation.b1=0.5", "grid=restart"],
        ["problem=stable_diffusion", "problem.path=x", "grid=explicit", "grid.levels=[3,1]"],
        ["problem.guidance=4", "problem.dtype=bfloat16", "seed=5", "images=3"],
    ],
)
def test_what_our_choices_made_is_made_again_with_its_parameters(ask, arguments):
    config, _ = ask("prompt=a ${x} \\${y}", *arguments)
    write_png("a.png", HARMLESS, {"config": config, "index": None})
    again, _ = ask("from=a.png", "trust=true")  # a path among them
    assert {**again, "from": None, "changed": [], "trust": False} == config | {"digests": {}}


def test_a_parameter_of_what_is_recalled_can_be_changed(ask):
    config, _ = ask("prompt=a", "sampler=ipndm", "sampler.order=2", "nfe=7")
    write_png("a.png", HARMLESS, {"config": config, "index": 0})
    again, index = ask("from=a.png", "sampler.order=1", "seed=9")
    assert again["sampler"] == config["sampler"] | {"order": 1} and index == 0
    assert (again["seed"], again["nfe"]) == (9, 7)
    other, _ = ask("from=a.png", "sampler=ipndm")
    assert other["sampler"]["order"] == ask("prompt=a", "sampler=ipndm")[0]["sampler"]["order"]


def test_choices_of_ones_own_are_known_where_they_are_named(ask, tmp_path):
    (tmp_path / "mine/sampler").mkdir(parents=True)
    (tmp_path / "mine/sampler/gentle.yaml").write_text("_target_: my.module.gentle\nweight: 1\n")
    config, _ = ask("prompt=a")
    sampler = {"_target_": "my.module.gentle", "weight": 2}
    write_png("a.png", HARMLESS, {"config": config | {"sampler": sampler}, "index": None})
    assert "sampler=gentle" in completed(["--config-dir", "mine", "from=a.png"])
    assert "sampler=gentle" in completed(["--config-dir=mine", "from=a.png"])
    with pytest.raises(ConfigError, match="no choice of sampler runs what made"):
        completed(["from=a.png"])


def test_a_checkpoint_is_read_once_for_its_digest_while_it_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    asked = {"problem": {"_target_": "x", "path": "model"}, "init_image": None, "latents": None}
    whole, read = content_digest, []
    monkeypatch.setattr(_recall, "content_digest", lambda *a: (read.append(a), whole(*a))[1])
    for text, times in (("one", [1, 1]), ("another", [2, 2])):
        weights.write_text(text)
        for count in times:
            assert _recall.digests(asked) == {"problem.path": whole("model")}
            assert len(read) == count
    monkeypatch.setattr(_recall, "CACHE", weights / "no folder")
    assert _recall.digests(asked) == {"problem.path": whole("model")} and len(read) == 3
