"""CLIP's configs: every field of a transformers config.json is honoured or refused by name."""

import json

import pytest
import transformers

from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

SD15_TEXT = {  # Stable Diffusion 1.5's text_encoder/config.json
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
GENERIC = {  # what older transformers wrote into every nested config
    "add_cross_attention": False,
    "architectures": None,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "do_sample": False,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "max_length": 20,
    "pruned_heads": {},
    "return_dict": True,
    "temperature": 1.0,
    "tie_word_embeddings": True,
    "torchscript": False,
    "use_bfloat16": False,
}
# Old joint files state each tower twice; the shorter statement, with defaults, is what counts.
JOINT = {
    "architectures": ["CLIPModel"],
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": SD15_TEXT | GENERIC,
    "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": 14} | GENERIC,
    "vision_config_dict": None,
    "torch_dtype": "float32",
    "transformers_version": None,
}


def same(ours, theirs):
    """Every field of ours holds what transformers makes of the same file."""
    for field, value in vars(ours).items():
        if field not in ("with_projection", "projection_dim"):
            assert value == getattr(theirs, field), field


@pytest.mark.parametrize(
    ("cls", "raw"),
    [
        (CLIPTextConfig, SD15_TEXT),
        (CLIPTextConfig, {}),
        (CLIPVisionConfig, {}),
        (CLIPVisionConfig, JOINT["vision_config"]),
    ],
)
def test_reads_a_file_as_transformers_does(cls, raw):
    ours = cls.from_dict(raw)
    theirs = getattr(transformers, cls.__name__)(**raw)
    same(ours, theirs)
    assert ours.projection_dim == theirs.projection_dim


def test_reads_an_old_joint_file_as_transformers_does():
    ours = CLIPConfig.from_dict(JOINT)
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(JOINT)))
    same(ours.text, theirs.text_config)
    same(ours.vision, theirs.vision_config)
    assert ours.text.eos_token_id == 49407  # stated as 2 above and overruled
    assert ours.text.projection_dim == ours.vision.projection_dim == theirs.projection_dim


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_architectures_say_whether_there_is_a_projection(kind):
    config = CLIPTextConfig.from_dict(SD15_TEXT | {"architectures": [kind]})
    assert config.with_projection == kind.endswith("WithProjection")
    assert config.to_dict()["architectures"] == [kind]


@pytest.mark.parametrize(
    ("cls", "raw"),
    [
        (CLIPTextConfig, SD15_TEXT | {"architectures": ["CLIPTextModelWithProjection"]}),
        (CLIPVisionConfig, {"hidden_act": "gelu", "layer_norm_eps": 1e-6}),
        (CLIPConfig, JOINT),
    ],
)
def test_what_is_written_reads_back_here_and_in_transformers(cls, raw):
    config = cls.from_dict(raw)
    written = json.loads(json.dumps(config.to_dict()))
    assert cls.from_dict(written) == config
    again = getattr(transformers, cls.__name__)(**written).to_dict()
    assert (
        cls.from_dict(json.loads(json.dumps(again)) | {"architectures": written["architectures"]})
        == config
    )


def test_one_error_names_every_field_that_cannot_be_honoured():
    bad = {
        "hidden_act": "relu",
        "attention_dropout": 1.5,
        "num_attention_heads": 0,
        "eos_token_id": [2, 3],
        "model_type": "siglip_text_model",
        "rope_theta": 1e4,
    }
    with pytest.raises(ValueError, match=r"^CLIPTextConfig:") as error:
        CLIPTextConfig.from_dict(SD15_TEXT | bad)
    for field, value in bad.items():
        value = tuple(value) if isinstance(value, list) else value
        assert f"{field} = {value!r}: " in str(error.value)


def test_the_joint_error_says_which_tower():
    raw = {
        "text_config": {"hidden_act": "relu"},
        "vision_config": {"image_size": [224, 224], "rope": 1},
        "logit_scale_init_value": None,
        "loss": "siglip",
    }
    with pytest.raises(ValueError, match=r"^CLIPConfig:") as error:
        CLIPConfig.from_dict(raw)
    for fault in (
        "text_config.hidden_act = 'relu'",
        "vision_config.image_size = (224, 224)",
        "vision_config.rope = 1",
        "logit_scale_init_value = None",
        "loss = 'siglip'",
    ):
        assert fault in str(error.value)


def test_towers_must_meet():
    text, vision = CLIPTextConfig(with_projection=True), CLIPVisionConfig(with_projection=True)
    assert CLIPConfig(text, vision).text is text
    with pytest.raises(ValueError, match="same width"):
        CLIPConfig(text, CLIPVisionConfig(with_projection=True, projection_dim=8))
    with pytest.raises(ValueError, match="must project"):
        CLIPConfig(CLIPTextConfig(), CLIPVisionConfig())
