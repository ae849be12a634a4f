"""The autoencoder's tensor names against PyTorch's, and every older spelling of them."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from flax import nnx
from vae_oracle import SD, TINY, arrays

from optdiff.nn.abstract import abstract
from optdiff.nn.vae.config import VAEConfig
from optdiff.nn.vae.model import VAE
from optdiff.nn.vae.weights import canonical, names, original_names

FAMILIES = {
    "sd": SD,
    "attention everywhere": TINY
    | {
        "down_block_types": ("AttnDownEncoderBlock2D",) * 2,
        "up_block_types": ("AttnUpDecoderBlock2D",) * 2,
    },
    "bare": TINY
    | {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "layers_per_block": 3,
    },
}


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_names_and_layouts_are_those_of_the_torch_module(fields):
    with torch.device("meta"):
        theirs = AutoencoderKL(**fields).state_dict()
    config = VAEConfig(**fields)
    table = names(config)
    ours = nnx.to_flat_state(nnx.state(abstract(lambda rngs: VAE(config, rngs=rngs)), nnx.Param))
    assert sorted(name for name, _ in table.values()) == sorted(theirs)
    turn = {"conv": (2, 3, 1, 0), "linear": (1, 0), "same": (0,)}
    for path, leaf in ours:
        name, layout = table[".".join(map(str, path))]
        assert leaf.get_value().shape == tuple(theirs[name].shape[i] for i in turn[layout]), name


def test_original_single_file_names_convert_to_the_same_weights():
    # Give each original tensor its own values; diffusers' converter is the independent reader.
    config = VAEConfig(**SD)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in AutoencoderKL(**SD).state_dict().items()}
    ours = names(config)
    original, expected = {}, {}
    for i, (path, (name, layout)) in enumerate(original_names(config).items()):
        shape = (*shapes[ours[path][0]], *((1, 1) if layout == "conv1x1" else ()))
        # One number, repeated without storage, stands for the tensor.
        original[name] = torch.tensor(float(i)).expand(shape)
        expected[ours[path][0]] = i
    converted = convert_ldm_vae_checkpoint(
        {f"first_stage_model.{k}": v for k, v in original.items()}, dict(SD)
    )
    assert {k: int(v.flatten()[0]) for k, v in converted.items()} == expected
    assert {k: v.shape for k, v in converted.items()} == shapes


def test_one_by_one_convolutions_become_linear_maps():
    config = VAEConfig(**TINY)
    state = {
        name: torch.arange(12.0).reshape(3, 4, 1, 1)
        for name, layout in original_names(config).values()
        if layout == "conv1x1"
    }
    table = {p: t for p, t in original_names(config).items() if t[1] == "conv1x1"}
    assert len(table) == 8  # q, k, v and out of the two middle blocks
    for kernel in arrays(state, table).values():
        assert kernel.shape == (4, 3)


def test_old_attention_names_are_read_as_the_current_ones():
    table = names(VAEConfig(**TINY)).values()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = 0
    for name, _ in table:
        assert canonical(name) == name
        for new, before in old.items():
            if f".{new}." in name:
                assert canonical(name.replace(new, before)) == name
                renamed += 1
    assert renamed == 16  # weight and bias, encoder and decoder
