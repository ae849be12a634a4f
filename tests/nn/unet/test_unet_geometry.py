"""Full-size networks by their shapes alone: counts, names, and programs for TPU and CUDA."""

import jax
import jax.numpy as jnp
import pytest
import torch
from diffusers import UNet2DConditionModel
from flax import nnx
from unet_oracle import SD15 as TINY_SD15
from unet_oracle import SD21 as TINY_SD21
from unet_oracle import SDXL as TINY_SDXL

from optdiff.nn.abstract import abstract
from optdiff.nn.unet.config import UNetConfig
from optdiff.nn.unet.model import UNet
from optdiff.nn.unet.weights import names

SD15 = {"cross_attention_dim": 768}
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
COUNTS = {"SD 1.5": (SD15, 859_520_964), "SD 2.1": (SD21, 865_910_724), "XL": (SDXL, 2_567_463_684)}


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1", pytest.param("XL", marks=pytest.mark.slow)])
def test_published_geometry(name):
    """As many parameters as published; every tensor of PyTorch's, of its shape, once."""
    config, count = COUNTS[name]
    unet = abstract(lambda rngs: UNet(UNetConfig.from_dict(config), rngs=rngs))
    shapes = {
        ".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(unet))
    }
    assert sum(jax.tree.leaves(jax.tree.map(lambda x: x.size, nnx.state(unet)))) == count
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(config).state_dict()
    turn = {"conv": lambda s: s[2:] + s[1::-1], "linear": lambda s: s[::-1], "same": lambda s: s}
    table = names(UNetConfig.from_dict(config))
    assert len(table) == len(shapes)
    assert {foreign: shapes[path] for path, (foreign, _) in table.items()} == {
        foreign: turn[layout](tuple(theirs[foreign].shape)) for foreign, layout in table.values()
    }
    assert len(theirs) == len(table)


def program(config, dtype, size):
    """Abstract parameters and inputs of one forward, and the function."""
    config = UNetConfig.from_dict(config)
    unet = abstract(lambda rngs: UNet(config, rngs=rngs, dtype=dtype, param_dtype=dtype))
    graphdef, params = nnx.split(unet)

    def shape(*s, dtype=dtype):
        return jax.ShapeDtypeStruct(s, dtype)

    inputs = [shape(1, *size, 4), shape(dtype=jnp.float32), shape(1, 7, config.cross_attention_dim)]
    added = None
    if config.addition_embed_type:
        ids = 6 * config.addition_time_embed_dim
        text = config.projection_class_embeddings_input_dim - ids
        added = {"text_embeds": shape(1, text), "time_ids": shape(1, 6)}
    return jax.jit(lambda p, a, k: nnx.merge(graphdef, p)(*a, added=k)), (params, inputs, added)


@pytest.mark.parametrize("config, size", [
    (TINY_SD15, (8, 8)), (TINY_SD21, (9, 8)), (TINY_SDXL, (8, 5)),
    pytest.param(SD15, (64, 64), marks=pytest.mark.slow),
    pytest.param(SDXL, (128, 128), marks=pytest.mark.slow),
])  # fmt: skip
def test_lowers_for_tpu_and_cuda(config, size):
    function, inputs = program(config, jnp.bfloat16, size)
    exported = jax.export.export(function, platforms=["tpu", "cuda"])(*inputs)
    assert exported.out_avals[0].shape == (1, *size, 4)


def test_weights_are_arguments_of_the_program():
    function, inputs = program(TINY_SD15, jnp.float32, (8, 8))
    constants = jax.make_jaxpr(function)(*inputs).consts
    assert sum(jnp.size(c) for c in constants) < 100
