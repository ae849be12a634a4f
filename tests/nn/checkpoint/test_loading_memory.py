"""Loading needs no torch, and little more memory than the weights it loads."""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from optdiff.nn.abstract import abstract
from optdiff.nn.assign import LAYOUTS
from optdiff.nn.checkpoint import STEMS
from optdiff.nn.families import FAMILIES

ROOT = Path(__file__).parents[3]
BYTES = {"F32": 4, "F16": 2, "float32": 4, "float16": 2, "bfloat16": 2}
MEASURE = """
import sys
import jax
from flax import nnx
from optdiff.nn.checkpoint import load

pipeline = load(sys.argv[1], dtype=sys.argv[2])
parts = (pipeline.unet, pipeline.vae, *pipeline.text_encoders)
weights = sum(leaf.nbytes for part in parts for leaf in jax.tree.leaves(nnx.state(part)))
# Unlike getrusage, this high-water mark does not remember the process that started this one.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(weights, int(peak) * 1024, "torch" in sys.modules)
"""


def measure(folder, dtype):
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, dtype],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    weights, peak, torch = run.stdout.split()
    return int(weights), int(peak), torch == "True"


def test_loading_imports_no_torch(sd15):
    weights, _, torch = measure(sd15, "float32")
    assert weights > 0 and not torch


def write_sparse(folder, class_name, described, stored):
    """A network's config and weights of the right size that take no room on the disk: zeros."""
    family = FAMILIES[class_name]
    config = family.config(described)
    names = family.names(config)
    shapes = nnx.state(abstract(lambda rngs: family.build(config, "float32", rngs)))
    header, end = {}, 0
    for path, leaf in nnx.to_flat_state(shapes):
        name, layout = names[".".join(map(str, path))]
        shape = LAYOUTS[layout].shape(leaf.get_value().shape)
        start, end = end, end + math.prod(shape) * BYTES[stored]
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(described))
    with (folder / f"{STEMS[family.library]}.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end


FULL_SIZE = {
    "unet": ("UNet2DConditionModel", {"cross_attention_dim": 768, "sample_size": 64}),
    "vae": (
        "AutoencoderKL",
        {
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
    ),
    "text_encoder": (
        "CLIPTextModel",
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "dtype"), [("F32", "float32"), ("F16", "float16"), ("F32", "bfloat16")]
)
def test_loading_sd15_peaks_at_no_more_than_1_2_times_its_weights(sd15, tmp_path, stored, dtype):
    folder = tmp_path / "full"
    shutil.copytree(sd15, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    total = sum(
        write_sparse(folder / part, class_name, described, stored)
        for part, (class_name, described) in FULL_SIZE.items()
    )
    weights, peak, _ = measure(folder, dtype)
    assert weights / BYTES[dtype] == total / BYTES[stored] == 1_066_235_307
    assert peak < 1.2 * weights, f"{peak / weights:.3f} times {weights / 1e9:.2f} GB"
