"""UNetConfig: every field of diffusers' config is honoured, neutral or refused by name."""

import inspect
import json

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from optdiff.nn.unet.config import FIXED, UNetConfig

FIELDS = {
    name: parameter.default
    for name, parameter in inspect.signature(UNet2DConditionModel.__init__).parameters.items()
    if name != "self"
}
SD21 = {  # stable-diffusion-2-1's unet/config.json
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.10.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 96,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "use_linear_projection": True,
    "upcast_attention": True,
}


def test_every_field_of_diffusers_is_known_and_its_default_is_accepted():
    assert UNetConfig.from_dict(FIELDS) == UNetConfig()
    assert set(FIELDS) == set(vars(UNetConfig())) | set(FIXED) | {"dropout"}


def test_published_file():
    config = UNetConfig.from_dict(SD21)
    assert config.heads == (5, 10, 20, 20)
    assert config.sample_size == 96
    assert config.block_out_channels == (320, 640, 1280, 1280)


@pytest.mark.parametrize("field", FIXED)
def test_a_field_with_one_behaviour_is_refused_any_other_value(field):
    other = {"attention_type": "gated", "time_embedding_type": "fourier"}
    value = other.get(field, 7)
    with pytest.raises(ValueError, match=rf"{field} = {value!r}: must be "):
        UNetConfig.from_dict({field: value})


def test_one_error_names_every_bad_field():
    bad = {
        "down_block_types": ["AttnDownBlock2D"] * 4,
        "attention_head_dim": "8",
        "dual_cross_attention": True,
        "act_fn": "elu",
        "in_channels": 0,
        "use_linear_projection": None,
        "brand_new_field": [1, 2],
        "_class_name": "UNet3DConditionModel",
        "addition_embed_type": "image",
    }
    with pytest.raises(ValueError) as error:
        UNetConfig.from_dict(SD21 | bad)
    for field, value in bad.items():
        value = tuple(value) if isinstance(value, list) else value
        assert f"\n  {field} = {value!r}: " in str(error.value)
    assert str(error.value).count("\n") == len(bad)


@pytest.mark.parametrize(
    "field, bad",
    [
        ("layers_per_block", {"layers_per_block": [1, 2]}),
        ("up_block_types", {"up_block_types": ["UpBlock2D"]}),
        ("sample_size", {"sample_size": [64, 64, 64]}),
        ("norm_num_groups", {"norm_num_groups": 48}),
        ("attention_head_dim", {"attention_head_dim": 400}),
        ("freq_shift", {"freq_shift": 160}),
        (
            "reverse_transformer_layers_per_block",
            {"transformer_layers_per_block": [1, [1, 2], 1, 1]},
        ),
        (
            "transformer_layers_per_block",
            {
                "transformer_layers_per_block": [1, [1, 2, 3], 1, 1],
                "reverse_transformer_layers_per_block": [1, 1, 1, 1],
            },
        ),
        ("projection_class_embeddings_input_dim", {"class_embed_type": "projection"}),
        (
            "addition_time_embed_dim",
            {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 9},
        ),
        ("class_embeddings_concat", {"class_embeddings_concat": True}),
        ("encoder_hid_dim", {"encoder_hid_dim_type": "text_proj"}),
        ("cross_attention_dim", {"encoder_hid_dim": 8, "cross_attention_dim": [8, 8, 8, 8]}),
    ],
)
def test_fields_that_do_not_fit_together(field, bad):
    with pytest.raises(ValueError, match=rf"^UNetConfig:\n  {field} = .*: "):
        UNetConfig.from_dict(bad)


def test_direct_construction_is_checked_too():
    with pytest.raises(ValueError, match="norm_num_groups = 7"):
        UNetConfig(norm_num_groups=7)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "transformer_layers_per_block": [0, 1, [2, 3], 1],
            "reverse_transformer_layers_per_block": [[1, 1, 1], 1, 2, 0],
            "sample_size": [96, 64],
            "mid_block_type": None,
        },
    ],
)
def test_what_is_written_reads_back_here_and_in_diffusers(changes):
    config = UNetConfig.from_dict(SD21 | changes)
    written = json.loads(json.dumps(config.to_dict()))
    assert UNetConfig.from_dict(written) == config
    assert hash(UNetConfig.from_dict(written)) == hash(config)
    known = set(FIELDS) | {"_class_name"}
    assert set(written) <= known
    # What diffusers would fill in for the fields that are not written means what we do.
    assert UNetConfig.from_dict(FIELDS | written) == config


def test_a_size_of_before_0_9_is_what_pytorchs_pipeline_takes_it_for():
    small = {
        "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
        "cross_attention_dim": 8, "attention_head_dim": 2,
    }  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    for size in (32, 64, 96):
        for version in ("0.2.2", "0.8.1", "0.9.0.dev0", "0.9.0", "0.35.1"):
            note = {"sample_size": size, "_diffusers_version": version}
            unet = UNet2DConditionModel(**small)
            unet.register_to_config(**note)
            parts = {**dict.fromkeys(names), "unet": unet, "scheduler": DDIMScheduler()}
            pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
            assert UNetConfig.from_dict(note).sample_size == pipeline.unet.config.sample_size
