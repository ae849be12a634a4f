"""VAEConfig: every field of a diffusers config.json is honoured or refused by name."""

import json

import pytest
from diffusers import AutoencoderKL

from optdiff.nn.vae.config import VAEConfig

PUBLISHED = {  # Stable Diffusion 1.5's vae/config.json
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def test_reads_a_published_file_with_the_defaults_of_diffusers():
    ours = VAEConfig.from_dict(PUBLISHED)
    theirs = AutoencoderKL.from_config(PUBLISHED).config
    for field, value in vars(ours).items():
        theirs_value = theirs[field]
        assert value == (tuple(theirs_value) if isinstance(value, tuple) else theirs_value), field


def test_what_is_written_reads_back_here_and_in_diffusers():
    config = VAEConfig.from_dict(
        PUBLISHED | {"shift_factor": 0.1159, "scaling_factor": 0.3611, "use_quant_conv": False}
    )
    written = json.loads(json.dumps(config.to_dict()))
    assert VAEConfig.from_dict(written) == config
    theirs = AutoencoderKL.from_config(written)
    again = json.loads(theirs.to_json_string())
    assert VAEConfig.from_dict(again) == config


def test_one_error_names_every_field_that_cannot_be_honoured():
    bad = {
        "act_fn": "elu",
        "latents_mean": 0.5,
        "down_block_types": ["DownBlock2D"] * 4,
        "use_quant_conv": None,
        "layers_per_block": "2",
        "dropout": -0.1,
        "_class_name": "AutoencoderTiny",
    }
    with pytest.raises(ValueError, match=r"^VAEConfig:") as error:
        VAEConfig.from_dict(PUBLISHED | bad)
    for field, value in bad.items():
        value = tuple(value) if isinstance(value, list) else value
        assert f"{field} = {value!r}: " in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"block_out_channels": (48,)},
        {"block_out_channels": ()},
        {"up_block_types": ("UpDecoderBlock2D",) * 2},
        {"scaling_factor": 0.0},
        {"latent_channels": 0},
    ],
)
def test_a_geometry_that_does_not_fit_together_is_refused(bad):
    (field,) = bad
    with pytest.raises(ValueError, match=field):
        VAEConfig(**bad)
