"""The autoencoder's geometry, from and to the `config.json` of a diffusers AutoencoderKL.

Every field is honoured or refused by name; none is dropped. What the fields build is in `model.py`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optdiff.nn.layers import ACTIVATIONS

DOWN_BLOCKS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
"""Encoder block types, and whether each residual block is followed by attention."""

UP_BLOCKS = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
"""Decoder block types, and whether each residual block is followed by attention."""

# Fields that only have one value this network can honour.
_NEUTRAL: dict[str, Any] = {"latents_mean": None, "latents_std": None}
_COUNTS = ("in_channels", "out_channels", "latent_channels", "layers_per_block", "norm_num_groups")
_SWITCHES = ("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")


@dataclass(frozen=True)
class VAEConfig:
    """What builds a VAE; the defaults are those of diffusers' AutoencoderKL, field for field.

    `latents = (z - shift_factor) * scaling_factor` (arXiv 2112.10752, sec. D.1, for the scale).
    `force_upcast` makes float16 weights compute in float32, whose range the encoder needs;
    `sample_size` says what images the checkpoint was trained on and changes nothing.

    Raises:
      ValueError: naming every field that cannot be honoured, with its value.

    >>> VAEConfig(latent_channels=0)
    Traceback (most recent call last):
    ValueError: VAEConfig:
      latent_channels = 0: must be a positive integer
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: int | float = 0.18215
    shift_factor: int | float | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        _raise_if(_faults(vars(self)))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VAEConfig":
        """Read a parsed `config.json`; keys that begin with "_" are diffusers' own bookkeeping.

        Raises:
          ValueError: naming every unknown field and every value that cannot be honoured.

        >>> VAEConfig.from_dict({"_class_name": "AutoencoderKL", "latent_channels": 16}).act_fn
        'silu'
        """
        required = _NEUTRAL | {"_class_name": "AutoencoderKL"}
        raw = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        known = {k: v for k, v in raw.items() if k in defaults}
        other = [
            f"{k} = {v!r}: {f'must be {required[k]!r}' if k in required else 'not a known field'}"
            for k, v in raw.items()
            if not (k in known or (v == required[k] if k in required else k[:1] == "_"))
        ]
        _raise_if(_faults(defaults | known) + other)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says, `_class_name` included: `from_dict` of it is this config."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {"_class_name": "AutoencoderKL", **fields, **_NEUTRAL}


def _raise_if(faults: list[str]) -> None:
    if faults:
        raise ValueError("VAEConfig:\n  " + "\n  ".join(faults))


def _faults(fields: Mapping[str, Any]) -> list[str]:
    """Every field whose value cannot be honoured, with what would be."""

    def count(value):
        return type(value) is int and value > 0

    def number(value):
        return type(value) in (int, float)

    def blocks(value, kinds):
        return isinstance(value, tuple) and len(value) == levels and all(b in kinds for b in value)

    widths, groups = fields["block_out_channels"], fields["norm_num_groups"]
    groups = groups if count(groups) else 1
    levels = len(widths) if isinstance(widths, tuple) else 0
    wide = levels and all(count(w) and w % groups == 0 for w in widths)
    scale, shift = fields["scaling_factor"], fields["shift_factor"]
    rules = {
        **{k: (count(fields[k]), "a positive integer") for k in _COUNTS},
        **{k: (type(fields[k]) is bool, "true or false") for k in _SWITCHES},
        "block_out_channels": (wide, f"a list of positive multiples of {groups}"),
        "down_block_types": (
            blocks(fields["down_block_types"], DOWN_BLOCKS),
            f"one of {', '.join(DOWN_BLOCKS)} for each of {levels} widths",
        ),
        "up_block_types": (
            blocks(fields["up_block_types"], UP_BLOCKS),
            f"one of {', '.join(UP_BLOCKS)} for each of {levels} widths",
        ),
        "act_fn": (fields["act_fn"] in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        "scaling_factor": (number(scale) and scale > 0, "a positive number"),
        "shift_factor": (shift is None or number(shift), "a number or null"),
    }
    return [f"{k} = {fields[k]!r}: must be {want}" for k, (good, want) in rules.items() if not good]
