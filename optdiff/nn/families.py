"""Which class in a checkpoint is which of our networks: the one table that knows all of them.

How a network is built is in its `model.py`, what its tensors are called in its `weights.py`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from optdiff.nn.assign import Family
from optdiff.nn.clip import weights as clip_weights
from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from optdiff.nn.clip.model import CLIP, TextEncoder, VisionEncoder
from optdiff.nn.judge import model as judge
from optdiff.nn.unet import weights as unet_weights
from optdiff.nn.unet.config import UNetConfig
from optdiff.nn.unet.model import UNet
from optdiff.nn.vae import weights as vae_weights
from optdiff.nn.vae.config import VAEConfig
from optdiff.nn.vae.model import VAE

# A table of names is made by tracing the network: once for each geometry is enough.
_clip_names = cache(clip_weights.names)

_TEXT = Family(
    library="transformers",
    config=CLIPTextConfig.from_dict,
    build=lambda config, dtype, rngs: TextEncoder(config, param_dtype=dtype, rngs=rngs),
    names=_clip_names,
    canonical=clip_weights.canonical,
    spare=clip_weights.SPARE_TEXT,
)
_VISION = Family(
    library="transformers",
    config=CLIPVisionConfig.from_dict,
    build=lambda config, dtype, rngs: VisionEncoder(config, param_dtype=dtype, rngs=rngs),
    names=_clip_names,
    canonical=clip_weights.vision_canonical,
    spare=clip_weights.SPARE_VISION,
)
FAMILIES = {
    "UNet2DConditionModel": Family(
        library="diffusers",
        config=UNetConfig.from_dict,
        build=lambda config, dtype, rngs: UNet(config, dtype=dtype, param_dtype=dtype, rngs=rngs),
        names=cache(unet_weights.names),
        canonical=lambda name: name,
    ),
    "AutoencoderKL": Family(
        library="diffusers",
        config=VAEConfig.from_dict,
        # Without a type of its own it computes in float32 where its config forces that.
        build=lambda config, dtype, rngs: VAE(config, param_dtype=dtype, rngs=rngs),
        names=cache(vae_weights.names),
        canonical=vae_weights.canonical,
    ),
    "CLIPTextModel": _TEXT,
    "CLIPTextModelWithProjection": _TEXT,
    "CLIPVisionModel": _VISION,
    "CLIPVisionModelWithProjection": _VISION,
    "CLIPModel": Family(
        library="transformers",
        config=CLIPConfig.from_dict,
        build=lambda config, dtype, rngs: CLIP(config, param_dtype=dtype, rngs=rngs),
        names=_clip_names,
        canonical=clip_weights.canonical,
    ),
    judge.CLASS_NAME: Family(
        library="diffusers",  # whose names its files take
        config=judge.JudgeConfig.from_dict,
        build=lambda config, dtype, rngs: judge.Judge(config, param_dtype=dtype, rngs=rngs),
        names=cache(judge.names),
        canonical=lambda name: name,
    ),
}
"""Every network that can be loaded, by its class in diffusers, in transformers, or here."""


def class_name_of(described: Mapping[str, Any]) -> str | None:
    """The class that a `config.json` of diffusers or of transformers names."""
    return described.get("_class_name") or next(iter(described.get("architectures") or []), None)
