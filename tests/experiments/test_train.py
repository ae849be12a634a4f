"""Training by command: stages hand on what they learned, and go on where they were stopped."""

import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
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
SMALL_UNET = (
    "preset.unet.task.config.block_out_channels=[16]",
    "preset.unet.task.config.down_block_types=[CrossAttnDownBlock2D]",
    "preset.unet.task.config.up_block_types=[CrossAttnUpBlock2D]",
    "preset.unet.task.config.attention_head_dim=2",
)
FIVE_STAGES = (
    "-m", "stage=tokenizer,judge,clip,vae,unet", "log_every=1", "batch=8", "steps=20",
    "texts.count=2000",
    "watch_every=20", "preset.judge.task.config.widths=[8,8]", "+preset.judge.task.scored=16",
    "+preset.clip.task.scored=1", "preset.vae.task.config.block_out_channels=[8,8]",
    "preset.vae.task.config.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "preset.vae.task.config.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
    "+preset.vae.task.scored=16", "+preset.unet.task.scored=16", "distance=squared", *SMALL_UNET,
)  # fmt: skip


def started(folder, *arguments, devices=1):
    """A process, and the file that it writes to: a pipe that nobody reads would stop it."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when the process is over
    process = subprocess.Popen(
        [sys.executable, TRAIN, *arguments, f"folder={folder}/run"],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=said,
        stderr=said,
    )
    return process, said


def finish(process, file, fails=False):
    """What a process said, once it is over."""
    code = process.wait(timeout=900)
    file.seek(0)
    said = file.read()
    assert (code != 0) == fails, said[-3000:]
    return said


def train(folder, *arguments, fails=False, devices=1):
    return finish(*started(folder, *arguments, devices=devices), fails)


def test_a_tokenizer_is_learned_and_what_there_is_not_is_refused(tmp_path):
    train(tmp_path, "stage=tokenizer", "texts.count=2000")
    assert load_tokenizer(tmp_path / "run/tokenizer/model").model_max_length == 24
    assert "stage is one of" in train(tmp_path, "stage=unett", fails=True)
    assert "strokes of generator" in train(tmp_path, "stage=vae", "data.who=me", fails=True)


def assert_agree(folder, other, *stages):
    """Losses of 20 steps agree to 1e-5, and all that stands beside them, stage by stage.

    Of squared distances: an absolute one's gradient jumps where a pixel is met, which turns what
    devices round differently into another path."""
    for stage in stages:
        curves, others = (read(f / "run" / stage / "curves.csv") for f in (folder, other))
        assert [row["step"] for row in curves] == [*range(1, 21)]
        for row, its in zip(curves, others, strict=True):
            assert row | {"seconds": its["seconds"]} == pytest.approx(its, rel=1e-5, abs=1e-5), (
                stage
            )


@pytest.mark.slow
def test_five_stages_make_a_model_that_loads_on_eight_devices_as_on_one(tmp_path):
    """The eight share out the weights, too, and score and show what they learn."""
    one, eight = tmp_path / "one", tmp_path / "eight"
    for folder in (one, eight):
        folder.mkdir()
    train(eight, *FIVE_STAGES, "layout.path=optdiff.learning.layouts.sharded", devices=8)
    model = eight / "run/unet/model"
    pipeline = load(model)
    assert pipeline.unet.config.block_out_channels == (16,)
    assert pipeline.unet.config.sample_size == 16  # its autoencoder halves 32 once
    assert pipeline.vae.config.scaling_factor != 1.0
    for critic in ("clip", "judge"):
        load_module(model / critic)
    note = json.loads((eight / "run/unet/run.json").read_text())
    assert note["scores"]["held_out_loss"] > 0 and note["config"]["steps"] == 20
    assert (eight / "run/unet/pictures/000020.png").exists()

    train(one, *FIVE_STAGES, "watch_every=null")
    assert_agree(eight, one, "judge", "clip", "vae", "unet")


@pytest.mark.slow
def test_two_processes_learn_what_one_does_and_folders_keep_to_their_run(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    asked = (*FIVE_STAGES, "watch_every=null", "stage=judge")
    both = [
        started(
            two,
            *asked,
            f'distributed={{coordinator_address:"{address}",num_processes:2,process_id:{i}}}',
        )
        for i in range(2)
    ]
    for process, said in both:
        finish(process, said)
    train(one, *asked)
    assert_agree(two, one, "judge")
    load_module(two / "run/judge/model")

    # Two processes or one is how, not what: the folder holds this very run, and it is finished.
    model = two / "run/judge/model/config.json"
    written = model.stat().st_mtime_ns
    assert "finished before" in train(two, *asked) and model.stat().st_mtime_ns == written
    asked += "steps=22", "rate=1e-3"
    said = train(two, *asked, fails=True)
    assert "run/judge holds another run: " in said and "resume=any" in said
    assert (
        "optimizer.learning_rate.peak was 0.002 and is 0.001; " in said
        and "; steps was 20 and is 22. " in said
    )
    train(two, *asked, "resume=any")
    assert [row["step"] for row in read(two / "run/judge/curves.csv")] == [*range(1, 23)]


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
    arguments = "stage=unet", "steps=20", "batch=8", "log_every=1", "save_every=1"
    arguments += "watch_every=null", "+preset.unet.task.scored=16", *SMALL_UNET
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert "takes the vae that comes with optdiff" in train(whole, *arguments)
    (process, _), curves = started(parts, *arguments), parts / "run/unet/curves.csv"
    while process.poll() is None:
        if curves.exists() and curves.read_text().count("\n") > 4:
            process.kill()
            break
        time.sleep(0.01)
    assert process.wait() == -9, "it was over before it could be killed"
    train(parts, *arguments)
    rows, others = (read(folder / "run/unet/curves.csv") for folder in (whole, parts))
    assert [row | {"seconds": 0} for row in rows] == [row | {"seconds": 0} for row in others]
    assert [row["step"] for row in rows] == [*range(1, 21)]
    load(parts / "run/unet/model")
    weights = "run/unet/model/unet/diffusion_pytorch_model.safetensors"
    assert (whole / weights).read_bytes() == (parts / weights).read_bytes()
