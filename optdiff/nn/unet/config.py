"""What a checkpoint's `config.json` says about its UNet, and whether this UNet can honour it.

Field names and defaults are those of diffusers' UNet2DConditionModel, so that a config reads from
and writes to a diffusers folder. This file owns their meaning; the modules are in `model.py`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from optdiff.nn.layers import ACTIVATIONS

CLASS_NAME = "UNet2DConditionModel"

# Fields of diffusers' config that this UNet has one behaviour for: what they must say.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "addition_embed_type_num_heads": (64,),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "dropout": (0,),
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


class _Kind(NamedTuple):
    """What a field may hold, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def __or__(self, other: "_Kind") -> "_Kind":
        return _Kind(f"{self.words} or {other.words}", lambda v: self.holds(v) or other.holds(v))


def _one_of(*choices: Any) -> _Kind:
    return _Kind("one of " + ", ".join(map(repr, choices)), lambda v: v in choices)


def _several(kind: _Kind) -> _Kind:
    return _Kind(
        f"a list, each {kind.words}",
        lambda v: isinstance(v, tuple) and len(v) > 0 and all(map(kind.holds, v)),
    )


_FLAG = _Kind("true or false", lambda v: isinstance(v, bool))
_COUNT = _Kind("a positive integer", lambda v: type(v) is int and v > 0)
_NATURAL = _Kind("a natural number", lambda v: type(v) is int and v >= 0)
_ODD = _Kind("an odd positive integer", lambda v: _COUNT.holds(v) and v % 2 == 1)
_NUMBER = _Kind("a number", lambda v: type(v) in (int, float))
_NULL = _Kind("null", lambda v: v is None)
_ACT = _one_of(*ACTIVATIONS)


def _field(default: Any, kind: _Kind) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind})


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The geometry of a conditional UNet, in the words of diffusers' UNet2DConditionModel.

    Defaults are diffusers', which makes `UNetConfig(cross_attention_dim=768)` Stable Diffusion 1.5.
    Lists are tuples here. Where diffusers takes one value or one per block, so does this.
    Beware `attention_head_dim`: in every published config it is the *number* of heads.

    Raises:
      ValueError: some fields hold what they may not; all of them are named, with their values.
    """

    sample_size: int | tuple[int, int] | None = _field(None, _NULL | _COUNT | _several(_COUNT))
    in_channels: int = _field(4, _COUNT)
    out_channels: int = _field(4, _COUNT)
    center_input_sample: bool = _field(False, _FLAG)
    flip_sin_to_cos: bool = _field(True, _FLAG)
    freq_shift: float | int = _field(0, _NUMBER)
    down_block_types: tuple[str, ...] = _field(
        ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        _several(_one_of("CrossAttnDownBlock2D", "DownBlock2D")),
    )
    mid_block_type: str | None = _field(
        "UNetMidBlock2DCrossAttn", _one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
    )
    up_block_types: tuple[str, ...] = _field(
        ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        _several(_one_of("CrossAttnUpBlock2D", "UpBlock2D")),
    )
    only_cross_attention: bool | tuple[bool, ...] = _field(False, _FLAG | _several(_FLAG))
    block_out_channels: tuple[int, ...] = _field((320, 640, 1280, 1280), _several(_COUNT))
    layers_per_block: int | tuple[int, ...] = _field(2, _COUNT | _several(_COUNT))
    downsample_padding: int = _field(1, _NATURAL)
    mid_block_scale_factor: float | int = _field(1, _NUMBER)
    act_fn: str = _field("silu", _ACT)
    norm_num_groups: int = _field(32, _COUNT)
    norm_eps: float | int = _field(1e-5, _NUMBER)
    cross_attention_dim: int | tuple[int, ...] = _field(1280, _COUNT | _several(_COUNT))
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = _field(
        1, _NATURAL | _several(_NATURAL | _several(_NATURAL))
    )
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = _field(
        None, _NULL | _several(_NATURAL | _several(_NATURAL))
    )
    encoder_hid_dim: int | None = _field(None, _NULL | _COUNT)
    encoder_hid_dim_type: str | None = _field(None, _one_of(None, "text_proj"))
    attention_head_dim: int | tuple[int, ...] = _field(8, _COUNT | _several(_COUNT))
    use_linear_projection: bool = _field(False, _FLAG)
    class_embed_type: str | None = _field(
        None, _one_of(None, "timestep", "identity", "projection", "simple_projection")
    )
    addition_embed_type: str | None = _field(None, _one_of(None, "text_time"))
    addition_time_embed_dim: int | None = _field(None, _NULL | _COUNT)
    num_class_embeds: int | None = _field(None, _NULL | _COUNT)
    upcast_attention: bool | None = _field(False, _NULL | _FLAG)
    resnet_time_scale_shift: str = _field("default", _one_of("default", "scale_shift"))
    time_embedding_dim: int | None = _field(None, _NULL | _COUNT)
    time_embedding_act_fn: str | None = _field(None, _NULL | _ACT)
    timestep_post_act: str | None = _field(None, _NULL | _ACT)
    time_cond_proj_dim: int | None = _field(None, _NULL | _COUNT)
    conv_in_kernel: int = _field(3, _ODD)
    conv_out_kernel: int = _field(3, _ODD)
    projection_class_embeddings_input_dim: int | None = _field(None, _NULL | _COUNT)
    class_embeddings_concat: bool = _field(False, _FLAG)

    def __post_init__(self):
        _raise_if(_problems(vars(self)))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "UNetConfig":
        """Read a diffusers `config.json`.

        Args:
          config: the parsed file; keys that start with `_` are diffusers' own notes, except that
            `_class_name`, where given, must be UNet2DConditionModel.

        Raises:
          ValueError: fields that are unknown, or that this UNet cannot honour, all in one message.

        >>> UNetConfig.from_dict({"cross_attention_dim": 768}).heads
        (8, 8, 8, 8)
        """
        known = {f.name for f in dataclasses.fields(cls)}
        given = {k: _tupled(v) for k, v in config.items() if not k.startswith("_")}
        problems = []
        if config.get("_class_name", CLASS_NAME) != CLASS_NAME:
            problems.append(f"_class_name = {config['_class_name']!r}: must be {CLASS_NAME!r}")
        for name, value in given.items():
            if name in NEUTRAL and value not in NEUTRAL[name]:
                must = " or ".join(map(repr, NEUTRAL[name]))
                problems.append(f"{name} = {value!r}: not supported, must be {must}")
            elif name not in NEUTRAL and name not in known:
                problems.append(f"{name} = {value!r}: not a known field")
        fields = {name: value for name, value in given.items() if name in known}
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        _raise_if(problems + _problems({**defaults, **fields}))
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The diffusers `config.json` of this UNet, which `from_dict` reads back to an equal one.

        >>> UNetConfig.from_dict(UNetConfig().to_dict()) == UNetConfig()
        True
        """
        return {"_class_name": CLASS_NAME, **{k: _listed(v) for k, v in vars(self).items()}}

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
    def _layers(self) -> tuple[int, ...]:
        return self.per_block("layers_per_block")


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple) else value


def _spread(depth: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return depth if isinstance(depth, tuple) else (depth,) * layers


def _raise_if(problems: list[str]) -> None:
    if problems:
        raise ValueError("UNet config:\n  " + "\n  ".join(problems))


def _problems(config: dict[str, Any]) -> list[str]:
    """Everything wrong with these fields: first each by itself, then how they fit together."""
    kinds = {f.name: f.metadata["kind"] for f in dataclasses.fields(UNetConfig)}
    wrong = [(name, f"must be {kind.words}") for name, kind in kinds.items()
             if not kind.holds(config[name])]  # fmt: skip
    # Lengths are read off fields that must have the right types first.
    wrong = wrong or list(_wrong_lengths(config)) or list(_misfits(config))
    return [f"{name} = {config[name]!r}: {words}" for name, words in wrong]


def _wrong_lengths(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    blocks = len(config["block_out_channels"])
    for name in PER_BLOCK:
        if isinstance(config[name], tuple) and len(config[name]) != blocks:
            yield name, f"must have {blocks} entries, one for each of block_out_channels"
    if isinstance(config["sample_size"], tuple) and len(config["sample_size"]) != 2:
        yield "sample_size", "must be one number or (height, width)"


def _misfits(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
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
