"""What a checkpoint's `config.json` says about its UNet, and whether this UNet can honour it.

Field names and defaults are those of diffusers' UNet2DConditionModel, so that a config reads from
and writes to a diffusers folder. This file owns their meaning; the modules are in `model.py`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optdiff.nn import fields
from optdiff.nn.fields import COUNT, FLAG, NATURAL, NULL, NUMBER, ODD, field, one_of, several
from optdiff.nn.layers import ACTIVATIONS

CLASS_NAME = "UNet2DConditionModel"

# Fields of diffusers' config that this UNet has one behaviour for: what they must say.
FIXED: dict[str, tuple[Any, ...]] = {
    "addition_embed_type_num_heads": (64,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "num_attention_heads": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "time_embedding_type": ("positional",),
}

# Fields that hold one value, or one for each entry of `block_out_channels`.
PER_BLOCK = (
    "down_block_types",
    "up_block_types",
    "only_cross_attention",
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
)


_ACT = one_of(*ACTIVATIONS)


@dataclass(frozen=True)
class UNetConfig:
    """The geometry of a conditional UNet, in the words of diffusers' UNet2DConditionModel.

    Defaults are diffusers', which makes `UNetConfig(cross_attention_dim=768)` Stable Diffusion 1.5.
    Lists are tuples here. Where diffusers takes one value or one per block, so does this.
    Beware `attention_head_dim`: in every published config it is the *number* of heads.

    Raises:
      ValueError: some fields hold what they may not; all of them are named, with their values.
    """

    sample_size: int | tuple[int, int] | None = field(None, NULL | COUNT | several(COUNT))
    in_channels: int = field(4, COUNT)
    out_channels: int = field(4, COUNT)
    center_input_sample: bool = field(False, FLAG)
    flip_sin_to_cos: bool = field(True, FLAG)
    freq_shift: float | int = field(0, NUMBER)
    down_block_types: tuple[str, ...] = field(
        ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        several(one_of("CrossAttnDownBlock2D", "DownBlock2D")),
    )
    mid_block_type: str | None = field(
        "UNetMidBlock2DCrossAttn", one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
    )
    up_block_types: tuple[str, ...] = field(
        ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        several(one_of("CrossAttnUpBlock2D", "UpBlock2D")),
    )
    only_cross_attention: bool | tuple[bool, ...] = field(False, FLAG | several(FLAG))
    block_out_channels: tuple[int, ...] = field((320, 640, 1280, 1280), several(COUNT))
    layers_per_block: int | tuple[int, ...] = field(2, COUNT | several(COUNT))
    downsample_padding: int = field(1, NATURAL)
    mid_block_scale_factor: float | int = field(1, NUMBER)
    act_fn: str = field("silu", _ACT)
    norm_num_groups: int = field(32, COUNT)
    norm_eps: float | int = field(1e-5, NUMBER)
    cross_attention_dim: int | tuple[int, ...] = field(1280, COUNT | several(COUNT))
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = field(
        1, NATURAL | several(NATURAL | several(NATURAL))
    )
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = field(
        None, NULL | several(NATURAL | several(NATURAL))
    )
    encoder_hid_dim: int | None = field(None, NULL | COUNT)
    encoder_hid_dim_type: str | None = field(None, one_of(None, "text_proj"))
    attention_head_dim: int | tuple[int, ...] = field(8, COUNT | several(COUNT))
    use_linear_projection: bool = field(False, FLAG)
    class_embed_type: str | None = field(
        None, one_of(None, "timestep", "identity", "projection", "simple_projection")
    )
    addition_embed_type: str | None = field(None, one_of(None, "text_time"))
    addition_time_embed_dim: int | None = field(None, NULL | COUNT)
    num_class_embeds: int | None = field(None, NULL | COUNT)
    upcast_attention: bool | None = field(False, NULL | FLAG)
    resnet_time_scale_shift: str = field("default", one_of("default", "scale_shift"))
    time_embedding_dim: int | None = field(None, NULL | COUNT)
    time_embedding_act_fn: str | None = field(None, NULL | _ACT)
    timestep_post_act: str | None = field(None, NULL | _ACT)
    time_cond_proj_dim: int | None = field(None, NULL | COUNT)
    conv_in_kernel: int = field(3, ODD)
    conv_out_kernel: int = field(3, ODD)
    projection_class_embeddings_input_dim: int | None = field(None, NULL | COUNT)
    class_embeddings_concat: bool = field(False, FLAG)

    def __post_init__(self):
        fields.check(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "UNetConfig":
        """Read a diffusers `config.json`.

        Args:
          raw: the parsed file; keys that start with `_` are diffusers' own notes, except that
            `_class_name`, where there is one, must be UNet2DConditionModel.

        Raises:
          ValueError: fields that are unknown, or that this UNet cannot honour, all in one message.

        >>> UNetConfig.from_dict({"cross_attention_dim": 768}).heads
        (8, 8, 8, 8)
        """
        return fields.read(cls, _before_0_9(raw), FIXED | {"_class_name": (CLASS_NAME,)})

    def to_dict(self) -> dict[str, Any]:
        """The diffusers `config.json` of this UNet, which `from_dict` reads back to an equal one.

        >>> UNetConfig.from_dict(UNetConfig().to_dict()) == UNetConfig()
        True
        """
        return {"_class_name": CLASS_NAME, **fields.written(self)}

    @staticmethod
    def misfits(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields that do not fit together, each with what it must be."""
        # The other checks take lists to be as long as they must.
        yield from list(_wrong_lengths(values)) or _misfits(values)

    def per_block(self, name: str) -> tuple[Any, ...]:
        """A field that holds one value, or one per down block, as one per down block."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each down block; the mid block has as many as the last one."""
        return self.per_block("attention_head_dim")

    @property
    def time_embed_dim(self) -> int:
        """Width of the time embedding."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def has_classes(self) -> bool:
        """Whether the network wants class labels."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @property
    def down_depths(self) -> tuple[tuple[int, ...], ...]:
        """Transformer layers after each residual block, for each down block."""
        return tuple(map(_spread, self.per_block("transformer_layers_per_block"), self._layers))

    @property
    def mid_depth(self) -> int:
        """Transformer layers of the mid block."""
        return _spread(self.per_block("transformer_layers_per_block")[-1], 1)[0]

    @property
    def up_depths(self) -> tuple[tuple[int, ...], ...]:
        """Transformer layers after each residual block, for each up block."""
        depths = self.reverse_transformer_layers_per_block
        if depths is None:
            depths = self.per_block("transformer_layers_per_block")[::-1]
        return tuple(map(_spread, depths, (n + 1 for n in self._layers[::-1])))

    @property
    def least_tensors(self) -> int:
        """A bound from below on how many tensors hold the weights, known before anything is built.

        >>> UNetConfig(layers_per_block=10**9).least_tensors > 10**9
        True
        """
        layers, depths = self._layers, self.per_block("transformer_layers_per_block")
        up_depths = self.reverse_transformer_layers_per_block or depths[::-1]
        down = zip(self.down_block_types, depths, layers, strict=True)
        up = zip(self.up_block_types, up_depths, [n + 1 for n in layers[::-1]], strict=True)
        count = sum(layers)
        for kind, depth, n in (*down, *up):
            if kind.startswith("CrossAttn"):
                count += sum(depth) if isinstance(depth, tuple) else depth * n
        return count

    @property
    def _layers(self) -> tuple[int, ...]:
        return self.per_block("layers_per_block")


def _spread(depth: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return depth if isinstance(depth, tuple) else (depth,) * layers


def _before_0_9(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Files saved before diffusers 0.9 say less than 64 where they mean it, which its
    StableDiffusionPipeline knows, too: 512 pixels, not 256."""
    version = re.match(r"(\d+)\.(\d+)", str(raw.get("_diffusers_version", "")))
    side = raw.get("sample_size")
    small = type(side) is int and 0 < side < 64
    old = version is not None and tuple(map(int, version.groups())) < (0, 9)
    return {**raw, "sample_size": 64} if small and old else raw


def _wrong_lengths(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    blocks = len(config["block_out_channels"])
    for name in PER_BLOCK:
        if isinstance(config[name], tuple) and len(config[name]) != blocks:
            yield name, f"must have {blocks} entries, one for each of block_out_channels"
    if isinstance(config["sample_size"], tuple) and len(config["sample_size"]) != 2:
        yield "sample_size", "must be one number or (height, width)"


def _misfits(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    widths, groups = config["block_out_channels"], config["norm_num_groups"]
    blocks = len(widths)
    if any(width % groups for width in widths):
        yield "norm_num_groups", f"must divide every width of block_out_channels = {widths}"
    heads = config["attention_head_dim"]
    heads = heads if isinstance(heads, tuple) else (heads,) * blocks
    if any(width < h for width, h in zip(widths, heads, strict=True)):
        yield "attention_head_dim", f"must not exceed the widths in block_out_channels = {widths}"
    if config["freq_shift"] == widths[0] // 2:
        yield "freq_shift", "must not equal half the first of block_out_channels"

    layers = config["layers_per_block"]
    layers = layers if isinstance(layers, tuple) else (layers,) * blocks
    down, up = (config[f"{way}transformer_layers_per_block"] for way in ("", "reverse_"))
    if not isinstance(down, int) and up is None and any(isinstance(d, tuple) for d in down):
        yield (
            "reverse_transformer_layers_per_block",
            (f"must be given with a nested transformer_layers_per_block = {down}"),
        )
    for name, depths, need in (
        ("transformer_layers_per_block", down, layers),
        ("reverse_transformer_layers_per_block", up, [n + 1 for n in layers[::-1]]),
    ):
        nested = zip(depths, need, strict=True) if isinstance(depths, tuple) else ()
        if any(isinstance(d, tuple) and len(d) != n for d, n in nested):
            yield name, f"nested lists must have {tuple(need)} entries, one a residual block"

    projected = config["class_embed_type"] in ("projection", "simple_projection")
    text_time = config["addition_embed_type"] == "text_time"
    if (projected or text_time) and config["projection_class_embeddings_input_dim"] is None:
        yield (
            "projection_class_embeddings_input_dim",
            ("must be given for this class_embed_type or addition_embed_type"),
        )
    if text_time and config["addition_time_embed_dim"] is None:
        yield "addition_time_embed_dim", "must be given with addition_embed_type = 'text_time'"
    classless = config["class_embed_type"] is None and config["num_class_embeds"] is None
    if config["class_embeddings_concat"] and classless:
        yield "class_embeddings_concat", "needs class_embed_type or num_class_embeds"
    if config["encoder_hid_dim_type"] is not None and config["encoder_hid_dim"] is None:
        yield "encoder_hid_dim", "must be given with encoder_hid_dim_type"
    if config["encoder_hid_dim"] is not None and isinstance(config["cross_attention_dim"], tuple):
        yield "cross_attention_dim", "must be one number where encoder_hid_dim is given"
