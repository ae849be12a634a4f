"""Make a small Stable Diffusion folder with PyTorch: real layout, real classes, random weights.

    python tests/nn/stable_diffusion_folder.py FOLDER [--kind sd15|sd21|sdxl] [--seed 0]
        [--variant fp16] [--max-shard-size 200KB]

Every parameter is drawn anew, those that start at zero too, so that no mistake hides behind a
zero. What is tested with such a folder is left to the tests. Needs torch, diffusers, transformers.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["a", "red", "yellow", "blue", "cube", "sphere", "photo", "of", "the", "on", "astronaut"]

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE, in the order of CLIP's vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def make_tokenizer(folder: Path, pad: str = END) -> CLIPTokenizer:
    """A CLIP tokenizer that knows each of `WORDS` as one token, and its files as published."""
    folder.mkdir(parents=True, exist_ok=True)
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            if pair not in merges:
                merges.append(pair)
            parts[:2] = ["".join(parts[:2])]
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges] + [START, END]
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
        "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad,
    }  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(size: int, *, eos: int, act: str, project: bool = False, width: int = 32):
    """A CLIP text encoder; eos = 2 asks for the pooling rule of the first published checkpoints."""
    config = CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=77, hidden_act=act, projection_dim=24,
        bos_token_id=0, eos_token_id=eos, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if project else CLIPTextModel)(config)


def make_vae(scaling_factor: float = 0.18215) -> AutoencoderKL:
    """An autoencoder that halves height and width once."""
    return AutoencoderKL(
        block_out_channels=(16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32, scaling_factor=scaling_factor,
    )  # fmt: skip


def make_unet(**changes) -> UNet2DConditionModel:
    """A two-level conditional UNet with SD 1.x's choices, unless changed."""
    return UNet2DConditionModel(
        **{
            "block_out_channels": (32, 64),
            "layers_per_block": 2,
            "sample_size": 16,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "norm_num_groups": 8,
        }
        | changes
    )


def sd15(tokenizers: Path) -> DiffusionPipeline:
    """SD 1.5 in small: quick_gelu text encoder, convolutions around attention, epsilon."""
    tokenizer = make_tokenizer(tokenizers / "tokenizer")
    return StableDiffusionPipeline(
        unet=make_unet(),
        vae=make_vae(),
        text_encoder=make_text_encoder(len(tokenizer), eos=2, act="quick_gelu"),
        tokenizer=tokenizer,
        scheduler=PNDMScheduler(
            **BETAS, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd21(tokenizers: Path) -> DiffusionPipeline:
    """SD 2.1 in small: v-prediction, linear projections, head counts by level, gelu, pad "!"."""
    tokenizer = make_tokenizer(tokenizers / "tokenizer", pad="!")
    eos = tokenizer.convert_tokens_to_ids(END)
    return StableDiffusionPipeline(
        unet=make_unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        vae=make_vae(),
        text_encoder=make_text_encoder(len(tokenizer), eos=eos, act="gelu"),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            **BETAS, set_alpha_to_one=False, steps_offset=1, clip_sample=False,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl(tokenizers: Path) -> DiffusionPipeline:
    """SDXL in small: two text encoders, added conditioning, two transformer layers below."""
    tokenizer, tokenizer_2 = (
        make_tokenizer(tokenizers / "tokenizer"),
        make_tokenizer(tokenizers / "tokenizer_2", "!"),
    )
    eos = tokenizer.convert_tokens_to_ids(END)
    return StableDiffusionXLPipeline(
        unet=make_unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True, attention_head_dim=(2, 4), cross_attention_dim=32 + 48,
            transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
        vae=make_vae(scaling_factor=0.13025),
        text_encoder=make_text_encoder(len(tokenizer), eos=2, act="quick_gelu"),
        text_encoder_2=make_text_encoder(
            len(tokenizer), eos=eos, act="gelu", project=True, width=48
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler(
            **BETAS, timestep_spacing="leading", steps_offset=1, interpolation_type="linear"
        ),
        add_watermarker=False,
    )  # fmt: skip


KINDS = {"sd15": sd15, "sd21": sd21, "sdxl": sdxl}


def redraw(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draw every parameter anew: matrices keep the scale of their input, gains stay around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            fresh = noise * (1.0 if "embedding.weight" in name else parameter[0].numel() ** -0.5)
        else:
            fresh = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        parameter.data.copy_(fresh)
    return model.eval()


def make(folder: Path, kind: str = "sd15", *, seed: int = 0) -> DiffusionPipeline:
    """The PyTorch pipeline with random weights; only the tokenizers' files are in `folder`."""
    pipeline = KINDS[kind](folder)
    for i, part in enumerate(pipeline.components.values()):
        if isinstance(part, torch.nn.Module):
            redraw(part, 100 * seed + i)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(
    folder: Path,
    kind: str = "sd15",
    *,
    seed: int = 0,
    variant: str | None = None,
    max_shard_size: str = "10GB",
) -> Path:
    """Write a whole Stable Diffusion folder; a second call with a variant adds it beside the first.

    Args:
      folder: where to write; must not be in use for something else.
      kind: a key of `KINDS`.
      seed: the same seed gives the same weights, in every variant.
      variant: "fp16" writes half-precision weights under that name, None plain float32.
      max_shard_size: models larger than this are written as shards with an index.

    Returns:
      `folder`.
    """
    pipeline = make(folder, kind, seed=seed)
    if variant == "fp16":
        pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    for extra in folder.glob("tokenizer*/tokenizer.json"):
        extra.unlink()  # published folders have vocab.json and merges.txt, which stay
    for config in folder.glob("text_encoder*/config.json"):
        # transformers takes its type from here, whatever the variant; published files say float32.
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="sd15")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variant", choices=["fp16"])
    parser.add_argument("--max-shard-size", default="10GB")
    options = vars(parser.parse_args())
    print(write(options.pop("folder"), **options))


if __name__ == "__main__":
    main()
