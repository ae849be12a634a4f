"""Every kind of block on the inputs that PyTorch's saw, so that a fault points at its block."""

import functools

import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from unet_oracle import SD15, oracle, ours, relative

CONFIG = SD15 | {"attention_head_dim": [2, 8], "layers_per_block": 2}
TRANSFORMER = "down_blocks.0.attentions.0"
CONTEXT = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

# What each of our blocks takes, from the arguments that its counterpart got.
INPUTS = {
    "plain": lambda x: (x,),
    "residual": lambda x, temb: (x, temb),
    "self-attention": lambda x, **_: (x,),
    "context": lambda x, encoder_hidden_states, **_: (x, encoder_hidden_states),
    "down": lambda hidden_states, temb, **_: (hidden_states, temb, CONTEXT),
    "mid": lambda x, temb, **_: (x, temb, CONTEXT),
    "upsample": lambda x, size: (x, size and tuple(size)),
    "up": lambda hidden_states, temb, res_hidden_states_tuple, upsample_size, **_: (
        hidden_states, list(res_hidden_states_tuple), temb, CONTEXT,
        upsample_size and tuple(upsample_size),
    ),
}  # fmt: skip
BLOCKS = {
    "conv_in": ("conv_in", "plain"),
    "down_blocks.0.resnets.0": ("down_blocks.0.resnets.0", "residual"),
    f"{TRANSFORMER}.norm": (f"{TRANSFORMER}.norm", "plain"),
    f"{TRANSFORMER}.blocks.0.attn1": (
        f"{TRANSFORMER}.transformer_blocks.0.attn1",
        "self-attention",
    ),
    f"{TRANSFORMER}.blocks.0.attn2": (f"{TRANSFORMER}.transformer_blocks.0.attn2", "context"),
    f"{TRANSFORMER}.blocks.0.ff": (f"{TRANSFORMER}.transformer_blocks.0.ff", "plain"),
    f"{TRANSFORMER}.blocks.0": (f"{TRANSFORMER}.transformer_blocks.0", "context"),
    TRANSFORMER: (TRANSFORMER, "context"),
    "down_blocks.0.downsample": ("down_blocks.0.downsamplers.0", "plain"),
    "down_blocks.0": ("down_blocks.0", "down"),
    "down_blocks.1": ("down_blocks.1", "down"),
    "mid_block": ("mid_block", "mid"),
    "up_blocks.0.resnets.2": ("up_blocks.0.resnets.2", "residual"),
    "up_blocks.0.upsample": ("up_blocks.0.upsamplers.0", "upsample"),
    "up_blocks.0": ("up_blocks.0", "up"),
    "up_blocks.1": ("up_blocks.1", "up"),
    "conv_norm_out": ("conv_norm_out", "plain"),
    "time_embedding": ("time_embedding", "residual"),
}


def in_jax(value):
    """Tensors as arrays, images with their channels last, float32; lists one by one."""
    if isinstance(value, list):
        return [in_jax(v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    value = value.movedim(1, -1) if value.ndim == 4 else value
    return jnp.asarray(value.detach().numpy(), jnp.float32)


@functools.cache
def recorded():
    """Our network, and what each of PyTorch's modules got and gave in one forward (odd sizes)."""
    theirs, calls = oracle(CONFIG), {}
    for name, _ in BLOCKS.values():

        def keep(module, args, kwargs, out, name=name):
            calls[name] = (args, kwargs, out)

        theirs.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
    x = torch.randn(2, 4, 7, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs(x, torch.tensor([3, 701]), CONTEXT)
    return ours(CONFIG, theirs.state_dict()), calls


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name):
    unet, calls = recorded()
    their_name, kind = BLOCKS[name]
    args, kwargs, expected = calls[their_name]
    block = unet
    for part in name.split("."):
        block = block[int(part)] if part.isdigit() else getattr(block, part)

    inputs = in_jax(list(INPUTS[kind](*args, **kwargs)))
    arrays = [x for x in inputs if not isinstance(x, tuple)]  # a size is static
    size = [x for x in inputs if isinstance(x, tuple)]
    actual = nnx.jit(lambda block, arrays: block(*arrays, *size))(block, arrays)

    if kind == "down":  # theirs: the output and all that is kept for the skips, ours: the latter
        expected = list(expected[1])
    elif isinstance(expected, tuple):
        expected = expected[0]
    for a, e in zip(
        *([x] if not isinstance(x, list) else x for x in (actual, expected)), strict=True
    ):
        e = e.movedim(1, -1) if e.ndim == 4 else e
        assert relative(a, e.detach().numpy()) < 2e-6
