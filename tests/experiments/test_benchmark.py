"""The networks' benchmark at tiny size: the table, and the FLOP that its rates are made of."""

import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import _network
import _network_optdiff as ours
import _network_torch as theirs

ROOT = Path(__file__).parents[2]
SIZES = sorted(path.stem for path in (ROOT / "conf/benchmark/size").glob("*.yaml"))


def geometry(size):
    with initialize_config_dir(str(ROOT / "conf/benchmark"), version_base="1.3"):
        config = compose("network", [f"size={size}"])
    return OmegaConf.to_container(config["size"])


@pytest.mark.slow
def test_optdiff_stands_beside_pytorch():
    command = [
        sys.executable, ROOT / "experiments/benchmark.py", "network", "size=tiny", "repeats=1",
        "parts=[vae]", "torch=[eager]",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tiny, batch 1, float32")
    table = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    assert tuple(table[0]) == _network.COLUMNS
    assert [row[:2] for row in table[2:]] == [["vae", "optdiff"], ["vae", "eager"]]
    assert table[2][3] == "" and math.isfinite(float(table[3][3]))
    for row in table[2:]:
        numbers = [float(cell.rstrip("%")) for cell in row[2:3] + row[4:]]
        assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert "times the time of PyTorch's best (eager)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", ["clip", "unet", "vae"])
def test_flops_are_those_that_pytorch_counts(size, part, monkeypatch):
    """Of whole networks, from shapes alone: which also says that the geometries are the same."""
    sizes = geometry(size)
    job = {"geometry": sizes, "batch": 2, "steps": 1, "variant": "eager"}
    monkeypatch.setattr(theirs, "DEVICE", torch.device("meta"))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs.PARTS[part](job, sizes, torch.float32)()
    monkeypatch.setattr(ours, "draw", lambda _, like: jnp.zeros(like.shape, like.dtype))

    def whole():  # traced, so that the zeros take no memory
        function, arguments = ours.PARTS[part](job, sizes, jnp.float32)
        return function(*arguments)

    counted = ours.flops(jax.make_jaxpr(whole)().jaxpr)
    # Chunks of queries are filled up to one length.
    assert counter.get_total_flops() <= counted < 1.01 * counter.get_total_flops()


def test_an_image_is_put_together_from_its_parts(capsys):
    """2 text encodings, every guided step and the decoder, shared by the batch."""

    def side(*seconds):
        return [_network.Result("side", s, 1.0, 1.0) for s in seconds]

    sides = zip(side(1, 2, 5), side(2, 4, 10), strict=True)
    best = dict(zip(("clip", "guided", "vae"), sides, strict=True))
    _network._print_image(best, steps=10, batch=3)
    assert "optdiff 9.00 s, PyTorch 18.00 s: x 0.50" in capsys.readouterr().out
    _network._print_image({"vae": best["vae"]}, steps=10, batch=3)
    assert capsys.readouterr().out == ""
