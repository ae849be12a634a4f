"""The autoencoder's geometry, from and to the `config.json` of a diffusers AutoencoderKL.

Every field is honoured or refused by name; none is dropped. What the fields build is in `model.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optdiff.nn import fields
from optdiff.nn.fields import COUNT, FLAG, NULL, NUMBER, POSITIVE, field, one_of, several
from optdiff.nn.layers import ACTIVATIONS

DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
"""Encoder block types, and whether each residual block is followed by attention."""

UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
"""Decoder block types, and whether each residual block is followed by attention."""


@dataclass(frozen=True)
class VAEConfig:
    """What builds a VAE; the defaults are those of diffusers' AutoencoderKL, field for field.

    `latents = (z - shift_factor) * scaling_factor` (arXiv 2112.10752, sec. D.1, for the scale), or
    with both `latents_mean` and `latents_std`, one of each a channel, as diffusers' SDXL pipeline
    has it, `(z - latents_mean) * scaling_factor / latents_std`.
    `force_upcast` makes float16 weights compute in float32, whose range the encoder needs;
    `sample_size` says what images the checkpoint was trained on and changes nothing.

    Raises:
      ValueError: naming every field that cannot be honoured, with its value.

    >>> VAEConfig(latent_channels=0)
    Traceback (most recent call last):
    ValueError: VAEConfig:
      latent_channels = 0: must be a positive integer below 2^31
    """

    in_channels: int = field(3, COUNT)
    out_channels: int = field(3, COUNT)
    down_block_types: tuple[str, ...] = field(
        ("DownEncoderBlock2D",), several(one_of(*DOWN_BLOCKS))
    )
    up_block_types: tuple[str, ...] = field(("UpDecoderBlock2D",), several(one_of(*UP_BLOCKS)))
    block_out_channels: tuple[int, ...] = field((64,), several(COUNT))
    layers_per_block: int = field(1, COUNT)
    act_fn: str = field("silu", one_of(*ACTIVATIONS))
    latent_channels: int = field(4, COUNT)
    norm_num_groups: int = field(32, COUNT)
    sample_size: int | tuple[int, ...] | None = field(32, NULL | COUNT | several(COUNT))
    scaling_factor: int | float = field(0.18215, POSITIVE)
    shift_factor: int | float | None = field(None, NULL | NUMBER)
    latents_mean: tuple[int | float, ...] | None = field(None, NULL | several(NUMBER))
    latents_std: tuple[int | float, ...] | None = field(None, NULL | several(POSITIVE))
    force_upcast: bool = field(True, FLAG)
    use_quant_conv: bool = field(True, FLAG)
    use_post_quant_conv: bool = field(True, FLAG)
    mid_block_add_attention: bool = field(True, FLAG)

    def __post_init__(self):
        fields.check(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VAEConfig":
        """Read a parsed `config.json`; keys that begin with "_" are diffusers' own bookkeeping.

        Raises:
          ValueError: naming every unknown field and every value that cannot be honoured.

        >>> VAEConfig.from_dict({"_class_name": "AutoencoderKL", "latent_channels": 16}).act_fn
        'silu'
        """
        return fields.read(cls, raw, {"_class_name": ("AutoencoderKL",)})

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says, `_class_name` included: `from_dict` of it is this config."""
        return {"_class_name": "AutoencoderKL", **fields.written(self)}

    @staticmethod
    def misfits(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields that do not fit together, each with what it must be."""
        widths, groups = values["block_out_channels"], values["norm_num_groups"]
        if any(width % groups for width in widths):
            yield "block_out_channels", f"must be multiples of norm_num_groups = {groups}"
        channels = values["latent_channels"]
        for name in ("latents_mean", "latents_std"):
            if values[name] is not None and len(values[name]) != channels:
                yield name, f"must have {channels} entries, one for each of latent_channels"
        for name in ("down_block_types", "up_block_types"):
            if len(values[name]) != len(widths):
                yield name, f"must have {len(widths)} entries, one for each of block_out_channels"

    @property
    def least_tensors(self) -> int:
        """A bound from below on how many tensors hold the weights."""
        return len(self.block_out_channels) * self.layers_per_block
