"""The original single-file layout of Stable Diffusion 1.x: one file, three networks, other names.

This file owns which tensor of such a file belongs to which network, and the UNet's names in
CompVis latent-diffusion, where blocks are numbered in one row from input to output. The
autoencoder's are in `vae/weights.py`; the text encoder's are those of transformers.
"""

import re
from collections.abc import Mapping
from typing import Any

from optdiff.nn.assign import Family, Names, warn_of
from optdiff.nn.tensorfile import CheckpointError, Tensor
from optdiff.nn.unsupported import READ, by_tensors
from optdiff.nn.vae.weights import original_names

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
# The trainer's tables and counters, its average of the weights, and the autoencoder's critic.
_SPARE = re.compile(
    r"model_ema\..*|first_stage_model\.loss\..*|betas|logvar|lvlb_weights|scale_factor"
    r"|alphas_cumprod(_prev)?|(sqrt|log|posterior)_[a-z0-9_]+"
    r"|(.*\.)?(position_ids|logit_scale|global_step|epoch)"
)
_ELSEWHERE = {
    "cond_stage_model.model.": "SD 2.x",
    "conditioner.embedders.": "SDXL",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Deal a single file's tensors out to `unet`, `vae` and `text_encoder`, prefixes taken off.

    What belongs to none of them goes to `unet`, where it is reported with all else that is wrong.

    Args:
      tensors: the file's, by name.

    Returns:
      For each network its tensors, by the name within it.

    Raises:
      CheckpointError: the file is of another generation of Stable Diffusion.
    """
    if kind := by_tensors({name: tensor.shape for name, tensor in tensors.items()}):
        path = next(iter(tensors.values())).path
        raise CheckpointError(f"{path}: this is {kind}, which is not supported yet; {READ}")
    dealt: dict[str, dict[str, Tensor]] = {part: {} for part in PREFIXES}
    left_out: list[Tensor] = []
    for name, tensor in tensors.items():
        for prefix, generation in _ELSEWHERE.items():
            if name.startswith(prefix):
                raise CheckpointError(
                    f"{tensor.path}: holds {name!r}, so it is a single file of {generation}; only "
                    "SD 1.x is read in this layout. Convert it with diffusers: "
                    "`from_single_file(file)`, then `save_pretrained(folder)`"
                )
        if _SPARE.fullmatch(name):
            left_out.append(tensor)
            continue
        part = next((p for p, prefix in PREFIXES.items() if name.startswith(prefix)), "unet")
        dealt[part][name.removeprefix(PREFIXES[part])] = tensor
    warn_of(left_out)
    return dealt


def share(dealt: Mapping[str, dict[str, Tensor]], part: str) -> dict[str, Tensor]:
    """The tensors of one network among those that `parts` dealt out.

    Raises:
      CheckpointError: a single file has no such part (a second text encoder).
    """
    if part not in dealt:
        raise CheckpointError(f"a single file of SD 1.x holds no {part}; `like` describes another")
    return dealt[part]


def names(part: str, family: Family, config: Any) -> Names:
    """The names and layouts of a network's parameters within its share of a single file.

    Args:
      part: a key of `PREFIXES`.
      family: the network's own.
      config: its geometry.

    Returns:
      Our path -> (name without prefix, layout).

    Raises:
      CheckpointError: the geometry is not of SD 1.x.
    """
    if part == "vae":
        return original_names(config)
    if part == "unet":
        if not isinstance(config.layers_per_block, int):
            raise CheckpointError("a single file of SD 1.x has equally deep blocks; `like` has not")
        return {
            path: (unet_name(name, config), layout)
            for path, (name, layout) in family.names(config).items()
        }
    return family.names(config)


def unet_name(name: str, config: Any) -> str:
    """What latent-diffusion calls a tensor of diffusers' UNet.

    Args:
      name: as in diffusers.
      config: with `layers_per_block` and `up_block_types`, which the numbering depends on.

    Returns:
      The name without `model.diffusion_model.`.

    >>> from optdiff.nn.unet.config import UNetConfig
    >>> unet_name("down_blocks.1.resnets.0.conv1.weight", UNetConfig())
    'input_blocks.4.0.in_layers.2.weight'
    """
    module, _, leaf = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{leaf}"
    place = _BLOCK.fullmatch(name)
    if place is None:
        return name  # not in SD 1.x: it will be missing under its own name
    level, kind, rest = place[1], place[3], place[5]
    block, i = int(place[2] or 0), int(place[4])
    if kind == "resnets":
        ours, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[ours]}.{leaf}"
    column = 0 if kind == "resnets" else 1
    if level == "mid":
        return f"middle_block.{2 * i + column}.{rest}"
    layers = config.layers_per_block
    row = block * (layers + 1) + i + (1 if level == "down" else 0)  # the first input is conv_in
    if kind == "downsamplers":
        return f"input_blocks.{row + layers}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        last = 2 if "Attn" in config.up_block_types[block] else 1
        return f"output_blocks.{row + layers}.{last}.{rest}"
    return f"{'input_blocks' if level == 'down' else 'output_blocks'}.{row}.{column}.{rest}"
