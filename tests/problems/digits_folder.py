"""Make a folder as `optdiff/pretrained/digits` is one, with random weights, by the code that saves.

    python tests/problems/digits_folder.py FOLDER [--full]

`--full` has the geometry of the shipped model, to measure time with; without it all is tiny. What
is tested with such a folder is left to the tests.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from optdiff.data.captioned_digits import Attributes, draw
from optdiff.data.captions import TEMPLATES, captions
from optdiff.nn.abstract import abstract
from optdiff.nn.checkpoint import Pipeline, save, save_module
from optdiff.nn.clip.bpe import train_tokenizer
from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig
from optdiff.nn.clip.model import CLIP, TextEncoder
from optdiff.nn.judge.model import Judge, JudgeConfig
from optdiff.nn.unet.config import UNetConfig
from optdiff.nn.unet.model import UNet
from optdiff.nn.vae.config import VAEConfig
from optdiff.nn.vae.model import VAE

SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction",
}  # fmt: skip

FULL = {  # as in conf/preset/small.yaml
    "unet": (64, 96), "layers": 1, "heads": 4, "vae": (32, 48, 64), "groups": 8, "width": 96,
    "depth": 3, "patch": 4, "judge": (24, 48, 64, 96), "features": 64,
}  # fmt: skip
SMALL = {
    "unet": (32, 32), "layers": 1, "heads": 2, "vae": (16, 16, 32), "groups": 8, "width": 32,
    "depth": 1, "patch": 8, "judge": (8, 8, 16), "features": 12,
}  # fmt: skip


def sentences(count: int = 2000) -> list[str]:
    """Captions to learn a tokenizer from."""
    rng = np.random.default_rng(0)
    shown = draw(jax.random.split(jax.random.key(0), count))
    templates = rng.integers(len(TEMPLATES), size=count)
    return captions(Attributes(*map(np.asarray, shown)), templates)


def redrawn(module: nnx.Module, seed: int) -> nnx.Module:
    """The module with every parameter drawn anew: what starts at zero hides mistakes."""
    graph, state = nnx.split(module)
    rng = np.random.default_rng(seed)

    def fresh(path: Any, leaf: Any) -> Any:
        noise = rng.normal(size=leaf.shape)
        if len(leaf.shape) > 1:
            noise *= np.prod(leaf.shape[:-1]) ** -0.5
        else:  # gains stay around one
            noise = 0.1 * noise + ("bias" not in jax.tree_util.keystr(path))
        return jax.numpy.asarray(noise, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fresh, state))


def write(folder: Path, *, full: bool = False, seed: int = 0) -> Path:
    """Write a whole folder: the diffusers layout, `clip/` and `judge/`.

    Args:
      folder: where; nothing may be there.
      full: the shipped geometry, or the smallest that will do.
      seed: the same seed gives the same weights.

    Returns:
      `folder`.
    """
    size = FULL if full else SMALL
    tokenizer = train_tokenizer(sentences(), vocab_size=700, length=24)
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer), "hidden_size": size["width"],
        "intermediate_size": 4 * size["width"], "num_hidden_layers": size["depth"],
        "num_attention_heads": 4, "max_position_embeddings": 24, "bos_token_id": end - 1,
        "eos_token_id": end, "pad_token_id": end, "projection_dim": size["width"],
    }  # fmt: skip
    vision = {
        "hidden_size": size["width"], "intermediate_size": 4 * size["width"],
        "num_hidden_layers": size["depth"], "num_attention_heads": 4, "image_size": 32,
        "patch_size": size["patch"], "projection_dim": size["width"],
    }  # fmt: skip
    unet = UNetConfig(
        sample_size=8, block_out_channels=size["unet"], layers_per_block=size["layers"],
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=size["width"], attention_head_dim=size["heads"],
        norm_num_groups=size["groups"],
    )  # fmt: skip
    vae = VAEConfig(
        block_out_channels=size["vae"], latent_channels=4, norm_num_groups=size["groups"],
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=32, scaling_factor=0.6,
    )  # fmt: skip
    clip = CLIPConfig.from_dict(
        {"text_config": text, "vision_config": vision, "projection_dim": size["width"]}
    )
    judge = JudgeConfig(widths=size["judge"], features=size["features"])

    def made(build: Any, seed: int) -> nnx.Module:
        return redrawn(abstract(build), seed)

    pipeline = Pipeline(
        unet=made(lambda rngs: UNet(unet, rngs=rngs), seed + 1),
        vae=made(lambda rngs: VAE(vae, rngs=rngs), seed + 2),
        text_encoders=(made(lambda r: TextEncoder(CLIPTextConfig(**text), rngs=r), seed + 3),),
        tokenizers=(tokenizer,),
        scheduler=SCHEDULER,
        settings={"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False},
    )
    save(folder, pipeline)
    save_module(folder / "clip", made(lambda rngs: CLIP(clip, rngs=rngs), seed + 4))
    save_module(folder / "judge", made(lambda rngs: Judge(judge, rngs=rngs), seed + 5))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    print(write(options.folder, full=options.full))


if __name__ == "__main__":
    main()
