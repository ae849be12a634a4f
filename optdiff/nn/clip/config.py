"""CLIP's geometry, from and to the `config.json` of transformers' CLIP models.

transformers writes dozens of generic fields into these files. Each one is a field here, or must
hold the one value that this network computes with, or is known to change nothing it computes; any
other is refused by name. What the fields build is in `model.py`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Fields of transformers' base class that have only one value this network can honour.
_NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_dropout": 0,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "dropout": 0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "use_bfloat16": False,
}
# Fields that change nothing a CLIP encoder computes: what wrote the file (weights carry their own
# type), and how transformers trains, labels, returns outputs and generates text.
_PROVENANCE = """
architectures dtype finetuning_task gradient_checkpointing id2label label2id num_labels
output_attentions output_hidden_states prefix problem_type return_dict sep_token_id
task_specific_params tie_word_embeddings tokenizer_class torch_dtype torchscript
transformers_version use_cache
"""
_GENERATION = """
bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups
num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
return_dict_in_generate suppress_tokens temperature tf_legacy_loss top_k top_p typical_p
"""
_METADATA = frozenset((_PROVENANCE + _GENERATION).split())
ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class CLIPTextConfig:
    """What builds a TextEncoder; the defaults are transformers'.

    `eos_token_id` settles where the pooled output is read: at its first place in the ids, or, for
    2 (what files said before transformers 4.31, wrongly), at the largest id.
    `with_projection` is what `architectures` says: CLIPTextModelWithProjection or CLIPTextModel.
    `initializer_factor` scales fresh weights (`initializer_range` does in the vision tower only);
    what starts and pads a text is the tokenizer's business.

    Raises:
      ValueError: naming every field that cannot be honoured, with its value.

    >>> CLIPTextConfig(num_attention_heads=7)
    Traceback (most recent call last):
    ValueError: CLIPTextConfig:
      num_attention_heads = 7: must be a divisor of hidden_size
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: int | float = 1e-5
    initializer_range: int | float = 0.02
    initializer_factor: int | float = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    with_projection: bool = False

    def __post_init__(self):
        _raise_if(type(self), _tower_faults(vars(self)))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "CLIPTextConfig":
        """Read a parsed `config.json` of CLIPTextModel or CLIPTextModelWithProjection.

        Raises:
          ValueError: naming every unknown field and every value that cannot be honoured.

        >>> CLIPTextConfig.from_dict({"architectures": ["CLIPTextModel"]}).with_projection
        False
        """
        return _tower_from(cls, raw, "clip_text_model", "CLIPTextModelWithProjection")

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says: `from_dict` of it is this config."""
        return _tower_to(self, "clip_text_model", "CLIPTextModel")


@dataclass(frozen=True)
class CLIPVisionConfig:
    """What builds a VisionEncoder; the defaults are transformers'.

    `with_projection` is what `architectures` says: CLIPVisionModelWithProjection or
    CLIPVisionModel.

    Raises:
      ValueError: naming every field that cannot be honoured, with its value.

    >>> CLIPVisionConfig(hidden_act="gelu").patch_size
    32
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: int | float = 1e-5
    initializer_range: int | float = 0.02
    initializer_factor: int | float = 1.0
    with_projection: bool = False

    def __post_init__(self):
        _raise_if(type(self), _tower_faults(vars(self)))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "CLIPVisionConfig":
        """Read a parsed `config.json` of CLIPVisionModel or CLIPVisionModelWithProjection.

        Raises:
          ValueError: naming every unknown field and every value that cannot be honoured.

        >>> CLIPVisionConfig.from_dict({"patch_size": 14}).patch_size
        14
        """
        return _tower_from(cls, raw, "clip_vision_model", "CLIPVisionModelWithProjection")

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says: `from_dict` of it is this config."""
        return _tower_to(self, "clip_vision_model", "CLIPVisionModel")


@dataclass(frozen=True)
class CLIPConfig:
    """What builds a CLIP: two towers that project to one width, and the first temperature.

    Raises:
      ValueError: if a tower has no projection, or widths or initializer factors differ.

    >>> CLIPConfig.from_dict({"projection_dim": 64}).vision.projection_dim
    64
    """

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    logit_scale_init_value: int | float = 2.6592

    def __post_init__(self):
        ends = {(t.with_projection, t.projection_dim) for t in (self.text, self.vision)}
        if len(ends) > 1 or (False, self.text.projection_dim) in ends:
            raise ValueError(
                "CLIPConfig: both towers must project, and to the same width; "
                f"(with_projection, projection_dim) is {sorted(ends)}"
            )
        if self.text.initializer_factor != self.vision.initializer_factor:
            raise ValueError("CLIPConfig: the towers must share one initializer_factor")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "CLIPConfig":
        """Read a parsed `config.json` of CLIPModel.

        As in transformers, the `projection_dim` beside the towers' configs is the one that counts,
        and an old `text_config_dict`, completed by defaults, overrules `text_config`.

        Raises:
          ValueError: naming every unknown field and every value that cannot be honoured.
        """
        raw = dict(raw)
        width, factor = raw.pop("projection_dim", 512), raw.pop("initializer_factor", 1.0)
        towers, faults = {}, []
        for name, tower in (("text", CLIPTextConfig), ("vision", CLIPVisionConfig)):
            nested = dict(raw.pop(f"{name}_config", None) or {})
            defaults = {f.name: f.default for f in dataclasses.fields(tower)}
            if (overruling := raw.pop(f"{name}_config_dict", None)) is not None:
                nested |= {k: v for k, v in defaults.items() if k != "with_projection"}
                nested |= overruling
            fields, wrong = _split(tower, nested, f"clip_{name}_model")
            fields |= {"projection_dim": width, "with_projection": True}
            wrong += _tower_faults(defaults | fields)
            if (own := fields.get("initializer_factor", 1.0)) != factor:
                wrong.append(f"initializer_factor = {own!r}: must be {factor!r}, as beside it")
            faults += [f"{name}_config.{fault}" for fault in wrong]
            towers[name] = fields
        fields, wrong = _split(cls, raw, "clip")
        wrong += [
            f"{k} = {v!r}: must be a number"
            for k, v in fields.items()
            if type(v) not in (int, float)
        ]
        _raise_if(cls, faults + wrong)
        text, vision = CLIPTextConfig(**towers["text"]), CLIPVisionConfig(**towers["vision"])
        return cls(text=text, vision=vision, **fields)

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says: `from_dict` of it is this config."""
        return {
            "architectures": ["CLIPModel"],
            "initializer_factor": self.text.initializer_factor,
            "logit_scale_init_value": self.logit_scale_init_value,
            "model_type": "clip",
            "projection_dim": self.text.projection_dim,
            "text_config": self.text.to_dict(),
            "vision_config": self.vision.to_dict(),
        }


def _raise_if(cls: type, faults: list[str]) -> None:
    if faults:
        raise ValueError(f"{cls.__name__}:\n  " + "\n  ".join(faults))


def _split(cls: type, raw: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of `cls` that a file states, and a complaint about each thing unheard of."""
    names = {f.name for f in dataclasses.fields(cls)} - {"with_projection", "text", "vision"}
    required = _NEUTRAL | {"model_type": kind}
    faults = [
        f"{k} = {v!r}: {f'must be {required[k]!r}' if k in required else 'not a known field'}"
        for k, v in raw.items()
        if not (k in names or k in _METADATA or k[:1] == "_")
        and not (k in required and v == required[k])
    ]
    return {k: v for k, v in raw.items() if k in names}, faults


def _tower_from(cls: type, raw: Mapping[str, Any], kind: str, projecting: str) -> Any:
    fields, faults = _split(cls, raw, kind)
    fields["with_projection"] = projecting in (raw.get("architectures") or ())
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    _raise_if(cls, _tower_faults(defaults | fields) + faults)
    return cls(**fields)


def _tower_to(config: Any, kind: str, architecture: str) -> dict[str, Any]:
    fields = dict(vars(config))
    architecture += "WithProjection" if fields.pop("with_projection") else ""
    return {"architectures": [architecture], "model_type": kind, **fields, "attention_dropout": 0.0}


def _tower_faults(fields: Mapping[str, Any]) -> list[str]:
    """Every field whose value cannot be honoured, with what would be; for either tower."""

    def count(value):
        return type(value) is int and value > 0

    rules = {}
    for name, value in fields.items():
        if name in ("projection_dim", "pad_token_id", "bos_token_id"):
            optional = not (name == "projection_dim" and fields.get("with_projection"))
            whole = type(value) is int and value >= 0
            rules[name] = (whole or (value is None and optional), "a whole number or null")
        elif name == "eos_token_id":
            rules[name] = (type(value) is int and value >= 0, "one token id")
        elif name == "hidden_act":
            rules[name] = (value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}")
        elif name.startswith(("initializer", "layer_norm")):
            rules[name] = (type(value) in (int, float) and value >= 0, "a number, not negative")
        elif name != "with_projection":
            rules[name] = (count(value), "a positive integer")
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if count(width) and count(heads):
        rules["num_attention_heads"] = (width % heads == 0, "a divisor of hidden_size")
    return [f"{k} = {fields[k]!r}: must be {want}" for k, (good, want) in rules.items() if not good]
