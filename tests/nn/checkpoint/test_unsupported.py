"""Files of other kinds are refused by their name, in one sentence, whatever else they lack."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from optdiff.nn.checkpoint import load
from optdiff.nn.tensorfile import CheckpointError

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
LORA = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"


@pytest.mark.parametrize(
    "name, shape, kind",
    [  # as kohya, PEFT, A1111, lllyasviel and Black Forest Labs publish them
        (LORA, (4, 320, 1, 1), "a LoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", (4, 320), "a LoRA"),
        ("emb_params", (2, 768), "a textual inversion"),
        ("<a-thing>", (768,), "a textual inversion"),
        ("clip_g", (1, 1280), "a textual inversion"),
        ("control_model.input_hint_block.0.weight", (16, 3, 3, 3), "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", (16, 3, 3, 3), "a ControlNet"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (8, 8), "Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", (8, 8), "Flux"),
        (FIRST, (320, 9, 3, 3), "an inpainting checkpoint"),
        (FIRST, (320, 5, 3, 3), "a depth checkpoint"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, shape, kind):
    save_file({name: np.zeros(shape, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"this is .*{kind}.*, which is not supported yet"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "file, content, kind",
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "Flux"),
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "inpainting"),
        ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "inpainting"),
        ("model_index.json", {"_class_name": "StableDiffusionDepth2ImgPipeline"}, "depth"),
        ("config.json", {"_class_name": "ControlNetModel"}, "a ControlNet"),
        ("config.json", {"_class_name": "FluxTransformer2DModel"}, "Flux"),
        ("adapter_config.json", {}, "a LoRA"),
        ("learned_embeds.safetensors", {}, "a textual inversion"),
    ],
)
def test_a_folder_of_another_kind_is_named(tmp_path, file, content, kind):
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"this is .*{kind}.*, which is not supported yet"):
        load(tmp_path)
