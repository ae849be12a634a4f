"""CLIP's geometry, from and to the `config.json` of transformers' CLIP models.

transformers writes dozens of generic fields into these files. Each one is a field here, or must
hold the one value that this network computes with, or is known to change nothing it computes; any
other is refused by name. What the fields build is in `model.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from optdiff.nn import fields
from optdiff.nn.fields import COUNT, NATURAL, NOT_NEGATIVE, NULL, NUMBER, field, one_of

# Fields of transformers' base class that have one behaviour here: what they must say.
_FIXED: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "tie_encoder_decoder": (False,),
    "use_bfloat16": (False,),
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
_UNREAD = frozenset((_PROVENANCE + _GENERATION).split())
ACTIVATIONS = ("quick_gelu", "gelu")


class _Tower:
    """What the configs of both towers share."""

    _model_type: ClassVar[str]
    _architecture: ClassVar[str]

    def __post_init__(self):
        fields.check(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Any:
        """Read a parsed `config.json` of transformers' model, with or without projection.

        Raises:
          ValueError: naming every unknown field and every value that cannot be honoured.
        """
        projects = f"{cls._architecture}WithProjection" in (raw.get("architectures") or ())
        return fields.read(cls, raw, cls.fixed(), _UNREAD, with_projection=projects)

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` says: `from_dict` of it is this config."""
        stated = fields.written(self)
        architecture = self._architecture + (
            "WithProjection" if stated.pop("with_projection") else ""
        )
        model = {"architectures": [architecture], "model_type": self._model_type}
        return {**model, **stated, "attention_dropout": 0.0}

    @classmethod
    def fixed(cls) -> dict[str, tuple[Any, ...]]:
        """Fields that have one behaviour here: what they must say."""
        return _FIXED | {"model_type": (cls._model_type,)}

    @staticmethod
    def misfits(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Fields that do not fit together, each with what it must be."""
        if values["hidden_size"] % values["num_attention_heads"]:
            yield "num_attention_heads", "must be a divisor of hidden_size"
        if values["with_projection"] and values["projection_dim"] is None:
            yield "projection_dim", "must be a natural number where there is a projection"

    @property
    def least_tensors(self) -> int:
        """A bound from below on how many tensors hold the weights."""
        return self.num_hidden_layers


@dataclass(frozen=True)
class CLIPTextConfig(_Tower):
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

    vocab_size: int = field(49408, COUNT)
    hidden_size: int = field(512, COUNT)
    intermediate_size: int = field(2048, COUNT)
    projection_dim: int | None = field(512, NULL | NATURAL)
    num_hidden_layers: int = field(12, COUNT)
    num_attention_heads: int = field(8, COUNT)
    max_position_embeddings: int = field(77, COUNT)
    hidden_act: str = field("quick_gelu", one_of(*ACTIVATIONS))
    layer_norm_eps: int | float = field(1e-5, NOT_NEGATIVE)
    initializer_range: int | float = field(0.02, NOT_NEGATIVE)
    initializer_factor: int | float = field(1.0, NOT_NEGATIVE)
    pad_token_id: int | None = field(1, NULL | NATURAL)
    bos_token_id: int | None = field(49406, NULL | NATURAL)
    eos_token_id: int = field(49407, NATURAL)
    with_projection: bool = False

    _model_type = "clip_text_model"
    _architecture = "CLIPTextModel"


@dataclass(frozen=True)
class CLIPVisionConfig(_Tower):
    """What builds a VisionEncoder; the defaults are transformers'.

    `with_projection` is what `architectures` says: CLIPVisionModelWithProjection or
    CLIPVisionModel.

    Raises:
      ValueError: naming every field that cannot be honoured, with its value.

    >>> CLIPVisionConfig.from_dict({"patch_size": 14}).patch_size
    14
    """

    hidden_size: int = field(768, COUNT)
    intermediate_size: int = field(3072, COUNT)
    projection_dim: int | None = field(512, NULL | NATURAL)
    num_hidden_layers: int = field(12, COUNT)
    num_attention_heads: int = field(12, COUNT)
    num_channels: int = field(3, COUNT)
    image_size: int = field(224, COUNT)
    patch_size: int = field(32, COUNT)
    hidden_act: str = field("quick_gelu", one_of(*ACTIVATIONS))
    layer_norm_eps: int | float = field(1e-5, NOT_NEGATIVE)
    initializer_range: int | float = field(0.02, NOT_NEGATIVE)
    initializer_factor: int | float = field(1.0, NOT_NEGATIVE)
    with_projection: bool = False

    _model_type = "clip_vision_model"
    _architecture = "CLIPVisionModel"


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
    logit_scale_init_value: int | float = field(2.6592, NUMBER)

    def __post_init__(self):
        fields.check(self)
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
            if (overruling := raw.pop(f"{name}_config_dict", None)) is not None:
                nested |= {f.name: f.default for f in dataclasses.fields(tower) if f.metadata}
                nested |= overruling
            stated, wrong = fields.split(tower, nested, tower.fixed(), _UNREAD)
            stated |= {"projection_dim": width, "with_projection": True}
            wrong += fields.faults_of(tower, stated)
            if (own := stated.get("initializer_factor", 1.0)) != factor:
                wrong.append(f"initializer_factor = {own!r}: must be {factor!r}, as beside it")
            faults += [f"{name}_config.{fault}" for fault in wrong]
            towers[name] = stated
        stated, wrong = fields.split(cls, raw, _FIXED | {"model_type": ("clip",)}, _UNREAD)
        fields.refuse(cls, faults + wrong + fields.faults_of(cls, stated))
        text, vision = CLIPTextConfig(**towers["text"]), CLIPVisionConfig(**towers["vision"])
        return cls(text=text, vision=vision, **stated)

    @property
    def least_tensors(self) -> int:
        """A bound from below on how many tensors hold the weights."""
        return self.text.least_tensors + self.vision.least_tensors

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
