"""The oracle: diffusers' UNet in float64, every parameter drawn anew, and its weights in ours."""

import functools

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from optdiff.nn.abstract import abstract
from optdiff.nn.unet.config import UNetConfig
from optdiff.nn.unet.model import UNet
from optdiff.nn.unet.weights import names

SD15 = {
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SD21 = SD15 | {
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4, 8],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL = SD21 | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1, 2],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
    "upcast_attention": None,
}


def redraw(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter, those that start at zero or one too, at a size that keeps signals."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=draw, dtype=torch.float64)
            if p.ndim > 1:
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return module


def oracle(config: dict, seed: int = 0) -> UNet2DConditionModel:
    """diffusers' network in float64."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).double().eval()
    return redraw(unet.to_empty(device="cpu"), seed)


def ours(config: dict, tensors: dict[str, torch.Tensor], dtype=jnp.float32) -> UNet:
    """This package's network with the oracle's weights in float32; empties `tensors`."""
    parsed = UNetConfig.from_dict(config)
    table = names(parsed)
    turn = {"conv": (2, 3, 1, 0), "linear": (1, 0)}
    graphdef, state = nnx.split(abstract(lambda rngs: UNet(parsed, rngs=rngs, dtype=dtype)))
    flat = []
    for path, leaf in nnx.to_flat_state(state):
        foreign, layout = table[".".join(map(str, path))]
        tensor = tensors.pop(foreign).numpy()
        tensor = tensor.transpose(turn[layout]) if layout in turn else tensor
        assert tensor.shape == leaf.shape, (path, tensor.shape, leaf.shape)
        flat.append((path, leaf.replace(jnp.asarray(tensor, jnp.float32))))
    assert not tensors, f"tensors that no parameter claims: {sorted(tensors)}"
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def drawn(config: UNetConfig, size: tuple[int, int], batch: int = 2) -> dict:
    """Everything that such a network wants to be called with, at random."""
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    dim, projected = config.cross_attention_dim, config.projection_class_embeddings_input_dim
    dim = config.encoder_hid_dim or (dim[0] if isinstance(dim, tuple) else dim)
    inputs = {"x": normal(batch, *size, config.in_channels), "context": normal(batch, 5, dim)}
    inputs["t"] = jnp.asarray(rng.uniform(0, 999, batch), jnp.float32)
    if config.addition_embed_type:
        ids = jnp.asarray(rng.integers(0, 1025, (batch, 6)), jnp.float32)
        text = projected - 6 * config.addition_time_embed_dim
        inputs["added"] = {"text_embeds": normal(batch, text), "time_ids": ids}
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = normal(batch, config.time_cond_proj_dim)
    if config.has_classes:
        inputs["class_labels"] = {
            None: jnp.asarray(rng.integers(0, config.num_class_embeds or 1, batch)),
            "timestep": jnp.asarray(rng.uniform(0, 999, batch), jnp.float32),
            "identity": normal(batch, config.time_embed_dim),
        }.get(config.class_embed_type, normal(batch, projected or 1))
    return inputs


# Tests spend their time in the compiler, and the code it would make faster runs once.
hasty = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(unet: UNet, **inputs) -> np.ndarray:
    """Our network under jit, its parameters as arguments."""
    graphdef, params = nnx.split(unet)
    program = hasty(lambda params, inputs: nnx.merge(graphdef, params)(**inputs))
    return np.asarray(program(params, inputs))


def their_run(unet: UNet2DConditionModel, x, t, context, added=None, **rest) -> np.ndarray:
    """PyTorch's network on the same inputs in float64."""

    def tensor(value):
        value = torch.tensor(np.asarray(value))
        return value.double() if value.is_floating_point() else value

    with torch.no_grad():
        out = unet(
            tensor(x).permute(0, 3, 1, 2),
            torch.tensor(np.asarray(t)),
            tensor(context),
            added_cond_kwargs=added and {k: tensor(v) for k, v in added.items()},
            **{k: tensor(v) for k, v in rest.items()},
        )
    return out.sample.permute(0, 2, 3, 1).numpy()


def relative(actual, expected) -> float:
    """Relative L2 error."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
