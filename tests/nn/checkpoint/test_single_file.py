"""The original single-file layout of SD 1.x, with diffusers' converters as the second reader."""

import itertools

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file
from same_weights import assert_same

from optdiff.nn import single_file
from optdiff.nn.checkpoint import load
from optdiff.nn.families import FAMILIES
from optdiff.nn.tensorfile import CheckpointError, read_json

LEVELS = {"layers": [1, 2, 3], "attention": [(True, False), (False, True), (True, True, True)]}


def original(folder):
    """The tensors of a diffusers folder under their original names, as CompVis had them."""
    tensors = {}
    for part, prefix in single_file.PREFIXES.items():
        [weights] = (folder / part).glob("*[el].safetensors")
        config = read_json(folder / part / "config.json")
        family = FAMILIES[config.get("_class_name", "CLIPTextModel")]
        geometry = family.config(config)
        ours = family.names(geometry)
        theirs = single_file.names(part, family, geometry)
        state = {family.canonical(name): tensor for name, tensor in load_file(weights).items()}
        for path, (name, _) in ours.items():
            there, layout = theirs[path]
            ones = (1, 1) if layout == "conv1x1" else ()
            tensors[prefix + there] = state[name].reshape(*state[name].shape, *ones)
    return tensors


TRAINING = {
    "betas": torch.ones(9),
    "alphas_cumprod": torch.ones(9),
    "sqrt_recipm1_alphas_cumprod": torch.ones(9),
    "posterior_mean_coef1": torch.ones(9),
    "model_ema.decay": torch.ones(()),
    "model_ema.num_updates": torch.ones((), dtype=torch.int32),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
    "first_stage_model.loss.logvar": torch.ones(()),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
}


@pytest.fixture(scope="module")
def file(sd15, tmp_path_factory):
    """The SD 1.5 folder as a single file, with what training left in the published ones."""
    path = tmp_path_factory.mktemp("single") / "v1-5.safetensors"
    save_file(original(sd15) | TRAINING, path)
    return path


def test_a_single_file_is_the_folder_and_diffusers_agrees(file, sd15, tmp_path):
    assert_same(load(file, like=sd15), load(sd15))
    bare = tmp_path / "bare.safetensors"  # diffusers takes the running average for the weights
    save_file(original(sd15), bare)
    theirs = StableDiffusionPipeline.from_single_file(
        bare, config=str(sd15), local_files_only=True, torch_dtype=torch.float32
    )
    folder = StableDiffusionPipeline.from_pretrained(sd15, local_files_only=True)
    for name, part in folder.components.items():
        if isinstance(part, torch.nn.Module):
            state = theirs.components[name].state_dict()
            assert state.keys() == part.state_dict().keys()
            assert all(torch.equal(t, state[key]) for key, t in part.state_dict().items()), name


@pytest.mark.parametrize(("layers", "attention"), [*itertools.product(*LEVELS.values())])
def test_the_unets_names_are_those_that_diffusers_converts(layers, attention):
    fields = {
        "block_out_channels": [8] * len(attention),
        "norm_num_groups": 2,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attention[::-1]],
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**fields)
    config = FAMILIES["UNet2DConditionModel"].config(fields)
    marks = {name: torch.tensor(i) for i, name in enumerate(unet.state_dict())}
    named = {
        f"model.diffusion_model.{single_file.unet_name(name, config)}": mark
        for name, mark in marks.items()
    }
    assert len(named) == len(marks)
    assert convert_ldm_unet_checkpoint(named, dict(unet.config)) == marks


def test_a_file_without_its_description_says_what_to_pass(file):
    with pytest.raises(CheckpointError, match="pass like=FOLDER"):
        load(file)


def test_a_description_beside_a_folder_is_refused(sd15):
    with pytest.raises(CheckpointError, match="like"):
        load(sd15, like=sd15)


def test_what_does_not_fit_is_one_error_for_all_parts(sd15, tmp_path):
    tensors = original(sd15) | {"control_model.weight": torch.ones(2)}
    del tensors["model.diffusion_model.out.2.bias"]
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    key = "first_stage_model.decoder.mid.attn_1.q.weight"
    tensors[key] = tensors[key][:, :, 0]
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "broken.safetensors", like=sd15)
    for line in [
        "unexpected: control_model.weight (2,) in broken.safetensors",
        "missing: out.2.bias",
        "missing: text_model.final_layer_norm.bias",
        f"mis-shaped: {key} is (32, 32, 1), expected (32, 32, 1, 1)",
    ]:
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("cond_stage_model.model.transformer.resblocks.0.ln_1.bias", "SD 2.x"),
        ("conditioner.embedders.1.model.ln_final.weight", "SDXL"),
    ],
)
def test_other_generations_are_refused_by_name(name, generation, sd15, tmp_path):
    save_file({name: torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=f"single file of {generation}"):
        load(tmp_path / "other.safetensors", like=sd15)


def test_a_pickled_file_is_refused(tmp_path, sd15):
    torch.save({"state_dict": {}}, tmp_path / "v1-4.ckpt")
    with pytest.raises(CheckpointError, match="pickled"):
        load(tmp_path / "v1-4.ckpt", like=sd15)


def test_a_second_text_encoder_is_in_no_single_file(file, sdxl):
    with pytest.raises(CheckpointError, match="no text_encoder_2"):
        load(file, like=sdxl)
