"""Whole checkpoints, in and out, against PyTorch's diffusers and transformers."""

import fnmatch
import json
import shutil
import socket
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from same_weights import arrays, assert_same, modules
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from optdiff.nn import checkpoint
from optdiff.nn.checkpoint import load, load_module, save, save_module
from optdiff.nn.hub import locate
from optdiff.nn.tensorfile import CheckpointError

KINDS = ["sd15", "sd21", "sdxl"]


def torch_pipeline(folder, dtype=torch.float32):
    pipeline = DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def image(pipeline):
    generator = torch.Generator().manual_seed(0)
    size = {"height": 16, "width": 16, "num_inference_steps": 2}
    return pipeline("a red cube", **size, output_type="np", generator=generator).images


@pytest.fixture
def copy(sd15, tmp_path):
    """A copy of the SD 1.5 folder to break."""
    return Path(shutil.copytree(sd15, tmp_path / "copy"))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, **changes):
    """Add, replace or (with None) remove tensors; a dot in a name is written as two underscores."""
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path)


# Round trips.


@pytest.mark.parametrize("kind", KINDS)
def test_a_torch_pipeline_comes_back_to_torch_as_it_was(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    ours = load(folder)
    save(tmp_path / "out", ours, shard_bytes=10**9 if kind == "sd15" else 400_000)
    before, after = torch_pipeline(folder), torch_pipeline(tmp_path / "out")
    assert type(before) is type(after)
    for name, part in before.components.items():
        if isinstance(part, torch.nn.Module):
            state = after.components[name].state_dict()
            for key, tensor in part.state_dict().items():
                assert torch.equal(tensor, state[key]), (name, key)
    assert dict(before.scheduler.config) == dict(after.scheduler.config)
    # Torch's own arithmetic depends on where in memory the weights lie, by a few 1e-6.
    np.testing.assert_allclose(image(before), image(after), atol=1e-5)
    again = load(tmp_path / "out")
    assert_same(ours, again)
    assert (again.scheduler, again.settings) == (ours.scheduler, ours.settings)
    text = "a photo of the red cube, ü 7"
    for first, second in zip(ours.tokenizers, again.tokenizers, strict=True):
        assert first(text).input_ids == second(text).input_ids == before.tokenizer(text).input_ids


def test_the_loaded_networks_compute_what_torch_computes(sdxl):
    ours, theirs = load(sdxl), torch_pipeline(sdxl)
    rng = np.random.default_rng(0)
    ids = ours.tokenizers[1](["a red cube", "on the blue sphere"], padding="max_length").input_ids
    with torch.no_grad():
        text = theirs.text_encoder_2(torch.tensor(ids), output_hidden_states=True)
        latents = rng.normal(size=(2, 4, 8, 8)).astype(np.float32)
        images = theirs.vae.decode(torch.tensor(latents)).sample.permute(0, 2, 3, 1).numpy()
    encoding = jax.jit(lambda m, x: m(x))(ours.text_encoders[1], jnp.asarray(ids))
    pairs = [
        (encoding.projected, text.text_embeds.numpy()),
        (encoding.hidden_states[-2], text.hidden_states[-2].numpy()),
    ]
    scaled = latents.transpose(0, 2, 3, 1) * ours.vae.config.scaling_factor
    pairs += [(jax.jit(lambda m, x: m.decode(x))(ours.vae, jnp.asarray(scaled)), images)]
    for mine, reference in pairs:
        error = np.linalg.norm(mine - reference) / np.linalg.norm(reference)
        assert error < 2e-5


@pytest.mark.parametrize("whole", [True, False], ids=["CLIPModel", "vision"])
def test_clip_models_come_back_to_transformers(whole, tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = size | {"num_hidden_layers": 2, "vocab_size": 99}
    vision = size | {"num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    theirs = CLIPModel(config) if whole else CLIPVisionModelWithProjection(config.vision_config)
    theirs.save_pretrained(tmp_path / "in")
    ours = load_module(tmp_path / "in")
    save_module(tmp_path / "out", ours)
    back = type(theirs).from_pretrained(tmp_path / "out", local_files_only=True).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back[name]), name


# Types and variants.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_type_for_the_whole_pipeline_whatever_the_files_have(copy, dtype):
    # The text encoder in float16 beside a UNet in float32, as published repositories have it.
    edit_json(copy / "text_encoder" / "config.json", dtype="float16")
    half = copy / "text_encoder" / "model.fp16.safetensors"
    half.rename(half.with_name("model.safetensors"))
    pipeline = load(copy, dtype=dtype)
    types = {a.dtype for module in modules(pipeline).values() for a in arrays(module).values()}
    assert types == {jnp.dtype(dtype)}
    ids = jnp.asarray([pipeline.tokenizers[0]("a red cube", padding="max_length").input_ids])
    text = pipeline.text_encoders[0](ids).last_hidden_state
    latents = jax.ShapeDtypeStruct((1, 8, 8, 4), dtype)
    noise = jax.eval_shape(lambda u, x, c: u(x, jnp.array(500), c), pipeline.unet, latents, text)
    assert (text.dtype, noise.dtype) == (dtype, dtype)


def test_weights_are_kept_in_a_float_type(sd15):
    with pytest.raises(ValueError, match="dtype=int8"):
        load_module(sd15 / "vae", dtype="int8")


def test_a_variant_is_the_other_files(sd15):
    full, half = load(sd15), load(sd15, variant="fp16")
    for name, module in modules(full).items():
        there = arrays(modules(half)[name])
        for path, array in arrays(module).items():
            np.testing.assert_array_equal(array.astype(np.float16).astype(np.float32), there[path])
    with pytest.raises(CheckpointError, match="variant='fp16'"):
        load(sd15, variant="bf16")


def test_saved_halves_load_in_torch(sd15, tmp_path):
    save(tmp_path / "out", load(sd15, variant="fp16", dtype=jnp.float16))
    pipeline = torch_pipeline(tmp_path / "out", torch.float16)
    theirs = load_file(sd15 / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, theirs[name])


# What does not fit.


def test_all_that_does_not_fit_in_all_parts_is_one_error(copy):
    edit_tensors(
        copy / "unet" / "diffusion_pytorch_model.safetensors",
        conv_in__weight=None,
        conv_in__bias=torch.ones(7),
        lora__up=torch.ones(2),
    )
    edit_tensors(copy / "vae" / "diffusion_pytorch_model.safetensors", quant_conv__bias=None)
    edit_tensors(
        copy / "text_encoder" / "model.safetensors",
        final_layer_norm__bias=None,
        text_model__final_layer_norm__bias=None,
    )
    with pytest.raises(CheckpointError) as error:
        load(copy)
    for line in [
        "unet does not match",
        "missing: conv_in.weight (32, 4, 3, 3)",
        "mis-shaped: conv_in.bias is (7,), expected (32,)",
        "unexpected: lora.up (2,) in diffusion_pytorch_model.safetensors",
        "vae does not match",
        "missing: quant_conv.bias",
        "text_encoder does not match",
        "missing: text_model.final_layer_norm.bias",
    ]:
        assert line in str(error.value)


def test_a_config_that_cannot_be_honoured_names_file_field_and_value(copy):
    edit_json(copy / "unet" / "config.json", dual_cross_attention=True)
    with pytest.raises(
        CheckpointError, match=r"unet/config\.json: (?s:.*)dual_cross_attention = True"
    ):
        load(copy)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "transformer = "),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder = "),
        ({"unet": ["diffusers"]}, r"unet = \['diffusers'\]"),
        ({"unet": [None, None]}, "unet is missing"),
        ({"vae": "AutoencoderKL"}, "vae = 'AutoencoderKL'"),
        ({"text_encoder": "CLIPTextModel"}, "text_encoder = 'CLIPTextModel'"),
        ({"tokenizer": [None, "CLIPTokenizer"]}, "tokenizer = "),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny is not a network"),
    ],
)
def test_a_pipeline_with_parts_of_another_kind_is_refused(copy, changes, told):
    edit_json(copy / "model_index.json", **changes)
    with pytest.raises(CheckpointError, match=told):
        load(copy)


def test_the_safety_checker_is_passed_over(copy):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(copy / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    save(copy.parent / "out", load(copy))
    saved = json.loads((copy.parent / "out" / "model_index.json").read_text())
    assert "safety_checker" not in saved and saved["requires_safety_checker"] is False


def test_a_place_left_empty_stays_empty(sdxl, tmp_path):
    # The SDXL refiner has a second text encoder and no first.
    folder = Path(shutil.copytree(sdxl, tmp_path / "in"))
    nothing = [None, None]
    edit_json(folder / "model_index.json", text_encoder=nothing, tokenizer=nothing)
    refiner = load(folder)
    assert refiner.text_encoders[0] is refiner.tokenizers[0] is None
    save(tmp_path / "out", refiner)
    again = load(tmp_path / "out")
    assert again.text_encoders[0] is None
    assert arrays(again.text_encoders[1]).keys() == arrays(refiner.text_encoders[1]).keys()
    assert not (tmp_path / "out" / "text_encoder").exists()


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model_index.json", r"model_index\.json: no such file"),
        ("unet/config.json", r"unet/config\.json: no such file"),
        ("vae/diffusion_pytorch_model.safetensors", "pass variant='fp16'"),
        ("tokenizer/vocab.json", "no tokenizer in"),
        ("scheduler/scheduler_config.json", r"scheduler_config\.json: no such file"),
    ],
)
def test_a_missing_file_is_named(copy, file, told):
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=told):
        load(copy)


# Saving is all or nothing.


def test_what_exists_is_never_touched(sd15, tmp_path):
    pipeline = load(sd15)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="taken exists"):
        save(tmp_path / "taken", pipeline)
    with pytest.raises(FileExistsError, match=r"thesis\.tex exists"):
        save_module(tmp_path / "taken" / "thesis.tex", pipeline.vae)
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_module(tmp_path / "empty", pipeline.vae)
    save_module(tmp_path / "new" / "deep", pipeline.vae)
    assert load_module(tmp_path / "new" / "deep").config == load_module(tmp_path / "empty").config


def test_a_save_that_fails_leaves_nothing(sd15, tmp_path, monkeypatch):
    pipeline = load(sd15)
    write, calls = checkpoint.write_folder, []

    def disk_full(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("No space left on device")
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_folder", disk_full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "out", pipeline)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


# Local paths and the hub.


class Online(AssertionError):
    pass


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise Online("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return refuse


def test_local_paths_never_touch_the_network(sd15, tmp_path, no_network, monkeypatch):
    load(sd15)
    load_module(str(sd15 / "vae"))
    monkeypatch.chdir(sd15)
    load_module("vae")
    for nowhere in [tmp_path / "no" / "where", tmp_path / "nowhere", "./nowhere", "vae/nowhere"]:
        with pytest.raises(CheckpointError, match="where: no such file or folder"):
            load(nowhere)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(Path("owner/name"))
    with pytest.raises(Online):
        load("owner/name")


WEIGHTS = "diffusion_pytorch_model"
PUBLISHED = {
    ".": "README.md model_index.json v1-5-pruned.ckpt v1-5-pruned.safetensors",
    "feature_extractor": "preprocessor_config.json",
    "safety_checker": "config.json model.safetensors model.fp16.safetensors",
    "scheduler": "scheduler_config.json",
    "text_encoder": "config.json pytorch_model.bin flax_model.msgpack model.safetensors "
    "model.fp16.safetensors",
    "tokenizer": "vocab.json merges.txt tokenizer_config.json special_tokens_map.json",
    "unet": f"config.json {WEIGHTS}.bin model.onnx {WEIGHTS}.non_ema.safetensors "
    f"{WEIGHTS}.safetensors {WEIGHTS}.fp16.safetensors",
    "vae": f"config.json openvino_model.bin {WEIGHTS}.safetensors.index.json "
    f"{WEIGHTS}-00001-of-00002.safetensors {WEIGHTS}-00002-of-00002.safetensors "
    f"{WEIGHTS}.safetensors.index.fp16.json {WEIGHTS}.fp16-00001-of-00001.safetensors",
}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_what_is_needed_is_fetched_from_the_hub(sd15, variant, monkeypatch):
    calls = []

    def snapshot(repo, *, revision, allow_patterns):
        calls.append((repo, revision, allow_patterns))
        return str(sd15)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert_same(load("owner/name", variant=variant, revision="v2"), load(sd15, variant=variant))
    [(repo, revision, patterns)] = calls
    assert (repo, revision) == ("owner/name", "v2")
    files = [
        str(Path(folder) / name) for folder, names in PUBLISHED.items() for name in names.split()
    ]
    fetched = {file for file in files if any(fnmatch.fnmatch(file, p) for p in patterns)}
    described = {f for f in files if f.startswith(("tokenizer/", "scheduler/"))} | {
        *("model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json")
    }
    weights = {
        None: {
            "text_encoder/model.safetensors",
            f"unet/{WEIGHTS}.safetensors",
            f"vae/{WEIGHTS}-00001-of-00002.safetensors",
            f"vae/{WEIGHTS}-00002-of-00002.safetensors",
            f"vae/{WEIGHTS}.safetensors.index.json",
        },
        "fp16": {
            "text_encoder/model.fp16.safetensors",
            f"unet/{WEIGHTS}.fp16.safetensors",
            f"vae/{WEIGHTS}.fp16-00001-of-00001.safetensors",
            f"vae/{WEIGHTS}.safetensors.index.fp16.json",
        },
    }[variant]
    assert fetched == described | weights


def test_offline_a_hub_name_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"owner/name: no such file .* hub did not give it"):
        load("owner/name")


def test_without_huggingface_hub_a_hub_name_is_a_clear_error(sd15, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert locate(sd15, []) == sd15
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        locate("owner/name", [])
