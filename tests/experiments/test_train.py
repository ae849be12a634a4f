"""Training by command: stages hand on what they learned, and go on where they were stopped."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from optdiff.data.caption_stream import captioned_digits
from optdiff.images import to_pixels
from optdiff.learning.curves import read
from optdiff.nn.checkpoint import load, load_module
from optdiff.nn.clip.tokenizer import load_tokenizer

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
QUICK = ("log_every=1", "watch_every=null", "batch=4")


def train(folder, *arguments, fails=False):
    command = [sys.executable, TRAIN, *arguments, f"folder={folder}/run"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_tokenizer_is_learned_and_others_ask_for_what_is_missing(tmp_path):
    train(tmp_path, "stage=tokenizer")
    assert load_tokenizer(tmp_path / "run/tokenizer/model").model_max_length == 24
    (tmp_path / "run" / "clip").mkdir()
    said = train(tmp_path, "stage=unet", *QUICK, "steps=1", fails=True)
    assert "run/clip is not finished; go on with stage=clip first" in said
    assert "stage is one of" in train(tmp_path, "stage=unett", fails=True)


@pytest.mark.slow
def test_five_stages_make_a_model_that_loads(tmp_path):
    small = [
        "preset.judge.task.config.widths=[8,8]",
        "+preset.judge.task.scored=16",
        "+preset.clip.task.scored=1",
        "preset.vae.task.config.block_out_channels=[8,8,8]",
        "+preset.vae.task.scored=16",
        "preset.unet.task.config.block_out_channels=[16,16]",
        "preset.unet.task.config.attention_head_dim=2",
        "+preset.unet.task.scored=16",
    ]
    stages = "stage=tokenizer,judge,clip,vae,unet"
    train(tmp_path, "-m", stages, "log_every=1", "batch=4", "steps=2", "watch_every=2", *small)
    model = tmp_path / "run/unet/model"
    pipeline = load(model)
    assert pipeline.unet.config.block_out_channels == (16, 16)
    assert pipeline.vae.config.scaling_factor != 1.0
    for critic in ("clip", "judge"):
        load_module(model / critic)
    note = json.loads((tmp_path / "run/unet/run.json").read_text())
    assert note["scores"]["held_out_loss"] > 0 and note["config"]["steps"] == 2
    assert (tmp_path / "run/unet/pictures/000002.png").exists()

    train(tmp_path, "stage=judge", *QUICK, "steps=4", *small)  # go on
    assert [row["step"] for row in read(tmp_path / "run/judge/curves.csv")] == [1, 2, 3, 4]


def in_a_folder(path, captions):
    """Pictures with these captions in the imagefolder layout, and what train.py is told of it."""
    rows = []
    for i, (image, text) in enumerate(captions.items()):
        Image.open(image).save(path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": "a seven", "said": text})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ["+data.text=said", "+held_out.text=said"]
    return ["data=image_folder", f"data.path={path}", f"held_out.path={path}", *columns]


def in_shards(path, captions):
    """The same in two tar shards of the WebDataset layout."""
    for i, (image, text) in enumerate(captions.items()):
        (path / "text").write_text(text)
        with tarfile.open(path / f"{i % 2}.tar", "a") as tar:
            tar.add(image, f"{i}.png")
            tar.add(path / "text", f"{i}.txt")
    return ["data=webdataset", f"data.shards={path}/*.tar", f"held_out.shards={path}/*.tar"]


@pytest.mark.slow
@pytest.mark.parametrize("laid_out", [in_a_folder, in_shards])
def test_ones_own_images_and_captions_train_with_the_same_loop(laid_out, tmp_path):
    batch, _ = captioned_digits(batch=12).read(0)
    captions = {}
    for i, image in enumerate(to_pixels(batch["images"])):
        file = tmp_path / f"drawn {i}.png"
        Image.fromarray(image).resize((40, 48)).save(file)
        captions[file] = f"my zebra, number {i}"
    (tmp_path / "data").mkdir()
    data = laid_out(tmp_path / "data", captions)
    train(tmp_path, "stage=tokenizer", *data)
    tokenizer = load_tokenizer(tmp_path / "run/tokenizer/model")
    assert tokenizer.tokenize("zebra seven")[0] == "zebra</w>"
    assert len(tokenizer.tokenize("seven")) > 1, "it learned from other captions"
    train(tmp_path, "stage=clip", *QUICK, "steps=2", *data, "+preset.clip.task.scored=1")
    assert [row["step"] for row in read(tmp_path / "run/clip/curves.csv")] == [1, 2]
    assert load_module(tmp_path / "run/clip/model").config.vision.image_size == 32


@pytest.mark.slow
def test_a_stage_alone_starts_from_the_shipped_parts_and_survives_a_kill(tmp_path):
    arguments = ["stage=unet", "batch=8", "log_every=1", "save_every=1", "watch_every=null"]
    command = [sys.executable, TRAIN, f"folder={tmp_path}/run", "steps=20", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    curves = tmp_path / "run/unet/curves.csv"
    while process.poll() is None:
        if curves.exists() and curves.read_text().count("\n") > 4:
            process.kill()
            break
    assert process.wait() == -9, "it was over before it could be killed"
    train(tmp_path, "steps=20", *arguments)
    assert [row["step"] for row in read(curves)] == list(range(1, 21))
    load(tmp_path / "run/unet/model")
