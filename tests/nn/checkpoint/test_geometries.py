"""Any geometry of the supported families goes from PyTorch through here and back, unchanged."""

import random

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from flax import nnx
from stable_diffusion_folder import redraw
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from optdiff.nn.checkpoint import load_module, save_module


def unet(rng):
    levels = rng.choice([1, 2, 3])
    crossed = [rng.random() < 0.6 for _ in range(levels)]
    depths = [rng.choice([1, 2]) for _ in range(levels)]
    added = rng.random() < 0.4
    return UNet2DConditionModel(
        in_channels=rng.choice([4, 9]),
        block_out_channels=[8 * rng.choice([1, 2]) for _ in range(levels)],
        layers_per_block=rng.choice([1, 2]),
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)],
        cross_attention_dim=rng.choice([8, 12]),
        attention_head_dim=[rng.choice([1, 2, 4]) for _ in range(levels)],
        transformer_layers_per_block=depths,
        use_linear_projection=rng.random() < 0.5,
        norm_num_groups=rng.choice([2, 4]),
        addition_embed_type="text_time" if added else None,
        addition_time_embed_dim=4 if added else None,
        projection_class_embeddings_input_dim=20 if added else None,
        time_cond_proj_dim=rng.choice([None, 6]),
        resnet_time_scale_shift=rng.choice(["default", "scale_shift"]),
    )


def vae(rng):
    levels = rng.choice([1, 2, 3])
    return AutoencoderKL(
        block_out_channels=[4 * rng.choice([1, 2, 3]) for _ in range(levels)],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=rng.choice([1, 2]),
        latent_channels=rng.choice([4, 16]),
        norm_num_groups=rng.choice([2, 4]),
        scaling_factor=rng.choice([0.18215, 0.13025, 1.5]),
        shift_factor=rng.choice([None, 0.1]),
        use_quant_conv=rng.random() < 0.5,
        use_post_quant_conv=rng.random() < 0.5,
        mid_block_add_attention=rng.random() < 0.7,
    )


def tower(rng):
    heads = rng.choice([1, 2, 4])
    return {
        "hidden_size": heads * rng.choice([2, 4]),
        "intermediate_size": rng.choice([8, 12]),
        "num_attention_heads": heads,
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "hidden_act": rng.choice(["gelu", "quick_gelu"]),
        "projection_dim": rng.choice([5, 6]),
    }


def text(rng):
    ends = {"vocab_size": rng.choice([17, 30]), "eos_token_id": rng.choice([2, 16])}
    kind = rng.choice([CLIPTextModel, CLIPTextModelWithProjection])
    return kind(CLIPTextConfig(**tower(rng), **ends, bos_token_id=0, pad_token_id=1))


def vision(rng):
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(**tower(rng), image_size=8, patch_size=rng.choice([2, 4]))
    )


def clip(rng):
    width = rng.choice([4, 6])
    return CLIPModel(
        CLIPConfig(
            text_config=tower(rng) | {"vocab_size": 17, "projection_dim": width},
            vision_config=tower(rng) | {"image_size": 8, "patch_size": 4, "projection_dim": width},
            projection_dim=width,
        )
    )


def plain(fields):
    """What a config says about the network, not who wrote it when."""
    ignored = ("transformers_version", "dtype", "architectures")
    return {
        key: plain(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if not str(key).startswith("_") and key not in ignored
    }


@pytest.mark.parametrize(
    ("make", "seed"),
    [
        *((unet, seed) for seed in range(2)),
        *((make, seed) for make in (vae, text) for seed in range(4)),
        *((make, seed) for make in (vision, clip) for seed in range(2)),
        *(
            pytest.param(make, seed, marks=pytest.mark.slow)
            for make in (unet, vae, text, vision, clip)
            for seed in range(100, 110)
        ),
    ],
)
def test_a_random_geometry_comes_back_to_torch_as_it_was(make, seed, tmp_path):
    theirs = redraw(make(random.Random(seed)), seed)
    theirs.save_pretrained(tmp_path / "in")
    ours = load_module(tmp_path / "in")
    count = sum(np.size(leaf.get_value()) for _, leaf in nnx.to_flat_state(nnx.state(ours)))
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    save_module(tmp_path / "out", ours, shard_bytes=random.Random(seed).choice([500, 10**9]))
    back = type(theirs).from_pretrained(tmp_path / "out", local_files_only=True)
    state = back.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    before, after = (
        model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
        for model in (theirs, back)
    )
    assert plain(after) == plain(before)
