"""What other files around Stable Diffusion are, so that they are refused by their name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READ = "optdiff reads text to image by Stable Diffusion 1.x, 2.x and XL"

_TENSORS = {
    "a LoRA, changes to a checkpoint": (".lora", "lora_up.", "lora_down.", "hada_w1", "lokr_w1"),
    "a ControlNet": ("controlnet_cond_embedding.", "input_hint_block."),
    "an IP-Adapter": ("ip_adapter.", "image_proj."),
    "Stable Diffusion 3": ("joint_blocks.",),
    "Flux": ("double_blocks.", "single_transformer_blocks."),
    "a depth checkpoint": ("depth_model.",),
}
_CHANNELS = {9: "an inpainting checkpoint", 5: "a depth checkpoint", 8: "an editing checkpoint"}
"""Of those that look at a picture beside the noise, what the first layer reads."""

_CLASSES = {
    "StableDiffusion3": "Stable Diffusion 3",
    "SD3": "Stable Diffusion 3",
    "Flux": "Flux",
    "ControlNet": "a ControlNet",
    "Inpaint": _CHANNELS[9],
    "Depth2Img": _CHANNELS[5],
    "InstructPix2Pix": _CHANNELS[8],
}
_FILES = {
    "pytorch_lora_weights.safetensors": "a LoRA, changes to a checkpoint",
    "adapter_config.json": "a LoRA, changes to a checkpoint",
    "learned_embeds.safetensors": "a textual inversion, words of one's own",
}


_WIDTHS = (768, 1024, 1280)
"""Of the text encoders that words are written for."""


def by_tensors(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a single file is by its tensors' names and shapes, None if nothing known here.

    >>> by_tensors({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (768, 4)})
    'a LoRA, changes to a checkpoint'
    """
    for kind, marks in _TENSORS.items():
        if any(mark in name for name in shapes for mark in marks):
            return kind
    if shapes and len(shapes) <= 2 and {*shapes} <= {"emb_params", "clip_g", "clip_l"}:
        return "a textual inversion, words of one's own"
    if len(shapes) == 1 and len(shape := next(iter(shapes.values()))) < 3 and shape[-1] in _WIDTHS:
        return "a textual inversion, words of one's own"
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight", ())
    return by_channels(first[1]) if len(first) == 4 else None


def by_channels(channels: int) -> str | None:
    """What a network that reads so many channels is for, if not for text alone.

    >>> by_channels(9)
    'an inpainting checkpoint'
    """
    return _CHANNELS.get(channels)


def by_folder(root: Path) -> str | None:
    """What a folder is by its description, None if nothing known here."""
    for name, kind in _FILES.items():
        if (root / name).is_file() and not (root / "model_index.json").is_file():
            return kind
    for name in ("model_index.json", "config.json"):
        described = _json(root / name)
        for mark, kind in _CLASSES.items():
            if mark in str(described.get("_class_name")):
                return kind
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
