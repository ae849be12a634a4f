"""What files hold that changes nothing is left out and told; PyTorch's libraries read it, too."""

import json
import shutil
import warnings
from pathlib import Path

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from same_weights import arrays, assert_same, modules
from test_single_file import original

from optdiff.nn.checkpoint import load, load_module
from optdiff.nn.tensorfile import CheckpointError

UNET = "unet/diffusion_pytorch_model"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copy(sd15, tmp_path):
    return Path(shutil.copytree(sd15, tmp_path / "copy"))


@pytest.fixture(scope="module")
def whole(sd15):
    return load(sd15)


def warned(work):
    """What the work gives, and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    return result, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


@pytest.mark.slow  # for diffusers' import
def test_averaged_weights_are_read_as_diffusers_writes_them(sd15, tmp_path):
    from diffusers.training_utils import EMAModel

    unet = diffusers.UNet2DConditionModel.from_pretrained(sd15 / "unet", use_safetensors=True)
    average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    average.save_pretrained(tmp_path / "unet_ema")
    ours, (message,) = warned(lambda: load_module(tmp_path / "unet_ema"))
    for name in ("decay = 0.9999", "power = ", "inv_gamma = 1.0"):
        assert name in message
    for path, array in arrays(load_module(sd15 / "unet")).items():
        np.testing.assert_array_equal(arrays(ours)[path], array)


def test_fields_and_notes_without_an_effect_are_left_out_and_told(copy, whole, sd15):
    edit(copy / "unet" / "config.json", dropout=0.1, windowed_attention=None, decay=0.9999)
    edit(copy / "vae" / "config.json", windowed_attention=None)
    edit(copy / "text_encoder" / "config.json", attention_dropout=0.1, windowed_attention=None)
    edit(copy / "model_index.json", _ignore_files=["unet/old.safetensors"], _name_or_path="here")
    ours, messages = warned(lambda: load(copy))
    assert_same(ours, whole)
    assert "_ignore_files" not in ours.settings and ours.settings["_name_or_path"] == "here"
    start = "left out, as nothing here depends on it: "
    assert sorted(message.replace(start, "") for message in messages) == [
        "CLIPTextConfig: attention_dropout = 0.1, windowed_attention = None",
        "UNetConfig: dropout = 0.1, windowed_attention = None, decay = 0.9999",
        "VAEConfig: windowed_attention = None",
    ]
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        copy, local_files_only=True, use_safetensors=True
    )
    assert not any(theirs.components[part].training for part in ("unet", "vae", "text_encoder"))
    for key, tensor in load_file(sd15 / f"{UNET}.safetensors").items():
        assert torch.equal(tensor, theirs.unet.state_dict()[key])
    edit(copy / "unet" / "config.json", windowed_attention=False)
    with pytest.raises(CheckpointError, match="windowed_attention = False: not a known field"):
        load(copy)


def test_a_variant_of_one_part_goes_with_the_plain_others(copy, whole, monkeypatch):
    """As in SD 1.4, whose `non_ema` weights are the UNet's alone."""
    tensors = {name: tensor + 1 for name, tensor in load_file(copy / f"{UNET}.safetensors").items()}
    save_file(tensors, copy / f"{UNET}.non_ema.safetensors")
    asked = []

    def snapshot(repo, *, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    ours, (message,) = warned(lambda: load("owner/name", variant="non_ema"))
    assert "no non_ema weights of vae, text_encoder" in message
    theirs = diffusers.DiffusionPipeline.from_pretrained(
        copy, variant="non_ema", local_files_only=True, use_safetensors=True
    )
    bias = theirs.unet.conv_in.bias.detach().numpy()
    np.testing.assert_array_equal(arrays(ours.unet)["conv_in.bias"], bias)
    for name in ("vae", "text_encoder_0"):
        for path, array in arrays(modules(ours)[name]).items():
            np.testing.assert_array_equal(array, arrays(modules(whole)[name])[path])
    needed, plain = asked
    assert "vae/diffusion_pytorch_model.safetensors" not in needed
    assert "vae/diffusion_pytorch_model.safetensors" in plain
    assert not any(pattern.startswith("unet") for pattern in plain)


def test_a_text_encoder_is_read_out_of_a_whole_clip(copy, whole, sd15):
    """Its projection, the vision tower and the temperature are beside it, as in OpenAI's file."""
    path = copy / "text_encoder" / "model.safetensors"
    others = {
        "logit_scale": torch.ones(()),
        "text_projection.weight": torch.ones(24, 32),
        "visual_projection.weight": torch.ones(24, 8),
        "vision_model.pre_layrnorm.weight": torch.ones(8),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    save_file(load_file(path) | others, path, metadata={"format": "pt"})
    ours, (message,) = warned(lambda: load_module(copy / "text_encoder"))
    assert "logit_scale" in message and "position_ids" not in message
    for name, array in arrays(whole.text_encoders[0]).items():
        np.testing.assert_array_equal(arrays(ours)[name], array)
    theirs, before = (
        transformers.CLIPTextModel.from_pretrained(f / "text_encoder") for f in (copy, sd15)
    )
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[key])
    save_file(load_file(path) | {"text_model.lora.down": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected: text_model\.lora\.down"):
        load_module(copy / "text_encoder")


def test_a_single_file_with_what_merging_and_training_left_in_it(sd15, whole, tmp_path):
    others = {
        "global_step": torch.ones((), dtype=torch.int64),
        "cond_stage_model.logit_scale": torch.ones(()),
        "cond_stage_model.transformer.logit_scale": torch.ones(()),
        "cond_stage_model.transformer.text_projection.weight": torch.ones(24, 32),
        "cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None],
    }
    tensors = original(sd15) | others
    flat = [name for name in tensors if ".attn_1." in name and tensors[name].ndim == 4]
    assert len(flat) == 8
    tensors |= {name: tensors[name][:, :, 0, 0].contiguous() for name in flat}
    save_file(tensors, tmp_path / "merged.safetensors")
    ours, messages = warned(lambda: load(tmp_path / "merged.safetensors", like=sd15))
    assert len(messages) == 2 and "global_step" in messages[0] and "text_proj" in messages[1]
    assert_same(ours, whole)
    theirs = diffusers.StableDiffusionPipeline.from_single_file(
        tmp_path / "merged.safetensors", config=str(sd15), local_files_only=True
    )
    before = diffusers.AutoencoderKL.from_pretrained(sd15 / "vae", use_safetensors=True)
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, theirs.vae.state_dict()[key])


# What is no checkpoint: one line.


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tokenizer": [None, None]}, "tokenizer is missing, which text_encoder needs"),
        ({"tokenizer": None}, "tokenizer = None is no part"),
        ({"unet": None}, "unet = None is no part"),
        ({"tokenizer": "gone"}, "tokenizer is missing, which text_encoder needs"),
    ],
)
def test_an_index_that_lacks_what_is_needed(changes, match, tmp_path):
    index = {
        part: ["diffusers", "Class"]
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    } | changes
    left = {part: entry for part, entry in index.items() if entry != "gone"}
    (tmp_path / "model_index.json").write_text(json.dumps(left))
    with pytest.raises(CheckpointError, match=match):
        load(tmp_path)


def test_a_padding_beyond_the_table_of_words_is_refused(copy):
    """PyTorch raises an IndexError at the first prompt; JAX reads the last row without a word."""
    edit(copy / "tokenizer" / "tokenizer_config.json", pad_token="<|nothing|>")
    with pytest.raises(CheckpointError, match=r"vocab_size = \d+, but its tokenizer's pad_token"):
        load(copy)


def test_a_description_that_is_no_folder(sd15, tmp_path):
    save_file(original(sd15), tmp_path / "v1-5.safetensors")
    (tmp_path / "v1-inference.yaml").write_text("model: {}")
    with pytest.raises(CheckpointError, match=r"like=.*yaml: a file; it must be a folder"):
        load(tmp_path / "v1-5.safetensors", like=tmp_path / "v1-inference.yaml")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "layers_per_block", 10**9),
        ("unet", "transformer_layers_per_block", [10**6, 10**6]),
        ("vae", "layers_per_block", 10**9),
        ("text_encoder", "num_hidden_layers", 2**31 - 1),
    ],
)
def test_more_layers_than_tensors_are_refused_before_any_is_built(
    part, field, value, copy, monkeypatch
):
    from optdiff.nn import checkpoint

    edit(copy / part / "config.json", **{field: value})
    monkeypatch.setattr(checkpoint, "draft", lambda *_: pytest.fail("built"))
    with pytest.raises(CheckpointError, match=r"config\.json: describes a network of \d{7,} ten"):
        load_module(copy / part)


@pytest.mark.parametrize("value", [2**31, 10**30, -1, 1e308, float("nan"), [10**9] * 2, "8"])
def test_sizes_beyond_bounds_are_refused_by_name(value, copy):
    edit(copy / "vae" / "config.json", latent_channels=value)
    with pytest.raises(CheckpointError, match=r"latent_channels = .*: must be a positive integer"):
        load_module(copy / "vae")


def test_a_list_of_what_does_not_fit_has_an_end(copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({f"spare.{i}": torch.ones(0) for i in range(1000)}, path)
    with pytest.raises(CheckpointError) as error:
        load_module(copy / "vae")
    assert str(error.value).count("\n") == 51 and "\n  and 1" in str(error.value)
