"""Stable Diffusion as a problem: a checkpoint's parts, its prompts encoded, its noise understood.

This file owns how the parts of a published pipeline work together. Reading the files is `nn`'s
business; what the assembled problem does is in `text_to_image.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from optdiff.denoisers import Guided
from optdiff.nn.checkpoint import Pipeline, load
from optdiff.nn.clip.tokenizer import tokenize
from optdiff.nn.network import network
from optdiff.nn.unsupported import READ, by_channels
from optdiff.problems.text_to_image import TextToImage
from optdiff.scheduler_config import SchedulerConfig, read
from optdiff.types import Cond


def stable_diffusion(
    path: str | Path,
    *,
    prompts: str | Sequence[str] = "",
    negative: str | None = None,
    guidance: int | float | None = 7.5,
    height: int | None = None,
    width: int | None = None,
    dtype: str = "float32",
    variant: str | None = None,
    revision: str | None = None,
    like: str | Path | None = None,
) -> TextToImage | Guided:
    """A checkpoint of Stable Diffusion 1.x, 2.x or XL, or of their geometry, as a problem.

    Args:
      path: a folder in the diffusers layout, a hub repository `owner/name`, or a single file.
      dtype: of all weights, such as "bfloat16".
      variant, revision, like: as for `optdiff.nn.checkpoint.load`.
      prompts, negative, guidance, height, width: as for `from_pipeline`.

    Returns:
      The problem, under guidance unless `guidance` is None.

    Raises:
      CheckpointError: if the files cannot be trusted or understood.
      ValueError: as for `from_pipeline`.

    >>> stable_diffusion("stable-diffusion-v1-5/stable-diffusion-v1-5", prompts="a red cube",
    ...     dtype="bfloat16")  # doctest: +SKIP
    """
    pipeline = load(path, dtype=jnp.dtype(dtype), variant=variant, revision=revision, like=like)
    return from_pipeline(
        pipeline,
        prompts=prompts,
        negative=negative,
        guidance=guidance,
        height=height,
        width=width,
    )


def from_pipeline(
    pipeline: Pipeline,
    *,
    prompts: str | Sequence[str] = "",
    negative: str | None = None,
    guidance: int | float | None = 7.5,
    height: int | None = None,
    width: int | None = None,
) -> TextToImage | Guided:
    """Assemble a loaded pipeline into a problem. Its text encoders are no longer needed after it.

    Args:
      pipeline: from `optdiff.nn.checkpoint.load`.
      prompts: what `condition` draws from, encoded here.
      negative: what guidance leads away from; None is the checkpoint's own idea of no prompt.
      guidance: classifier-free guidance scale, or None for none, at half the cost.
      height, width: of images in pixels; by default those the network was trained on.

    Raises:
      ValueError: for sizes that are not whole latents, or a pipeline that does something else.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise ValueError("at least one prompt is needed; an empty one is one")
    _check(pipeline)
    size = _size(pipeline, height, width)
    config = pipeline.unet.config
    scheduler = _scheduler(pipeline)
    factor = _pixels_per_latent(pipeline)
    problem = TextToImage(
        network(pipeline.unet),
        network(pipeline.vae),
        encode_prompts(pipeline, prompts, size),
        scheduler.schedule,
        scheduler.scaling,
        (size[0] // factor, size[1] // factor, config.in_channels),
        scheduler,
    )
    if guidance is None:
        return problem
    uncond = encode_prompts(pipeline, [negative or ""], size)
    if (
        negative is None
        and _is_xl(pipeline)
        and pipeline.settings.get("force_zeros_for_empty_prompt", True)
    ):
        blank = jax.tree.map(jnp.zeros_like, uncond)
        blank["added"]["time_ids"] = uncond["added"]["time_ids"]
        uncond = blank
    return Guided(problem, float(guidance), jax.tree.map(lambda leaf: leaf[0], uncond))


def encode_prompts(pipeline: Pipeline, prompts: Sequence[str], size: tuple[int, int]) -> Cond:
    """What the network sees of each prompt, in the words of `TextToImage.prompts`.

    Of one text encoder it sees the last states (SD 1.x, 2.x). Of SDXL's the penultimate states,
    side by side, and the last one's projection beside the image's size (arXiv 2307.01952, sections
    2.1 and 2.2).

    Args:
      pipeline: holds the tokenizers and text encoders.
      prompts: any number; too long ones are cut off with a warning.
      size: (height, width) of the image in pixels.
    """
    pairs = zip(pipeline.tokenizers, pipeline.text_encoders, strict=True)
    encoders = [(t, e) for t, e in pairs if e is not None]
    # One at a time, so that a prompt's encoding does not depend on its company, in one program.
    encodings = [[_encode(*encoder, prompt) for encoder in encoders] for prompt in prompts]
    if not _is_xl(pipeline):
        return {"context": jnp.concatenate([last for [(last, _, _)] in encodings])}
    context = [jnp.concatenate([states for _, states, _ in each], -1) for each in encodings]
    pooled = [each[-1][2] for each in encodings]
    time_ids = jnp.array([*size, 0, 0, *size], jnp.float32)  # original size, crop corner, target
    added = {
        "text_embeds": jnp.concatenate(pooled),
        "time_ids": jnp.tile(time_ids[None], (len(prompts), 1)),
    }
    return {"context": jnp.concatenate(context), "added": added}


def _encode(
    tokenizer: Any, encoder: nnx.Module, prompt: str
) -> tuple[Float[Array, "1 n d"], Float[Array, "1 n d"], Float[Array, "1 p"] | None]:
    ids = tokenize(tokenizer, prompt, encoder.config.max_position_embeddings)
    return _read(encoder, jnp.asarray(ids))


@jax.jit
def _read(encoder, ids):
    encoding = encoder(ids)
    return encoding.last_hidden_state, encoding.hidden_states[-2], encoding.projected


def _is_xl(pipeline: Pipeline) -> bool:
    return pipeline.unet.config.addition_embed_type == "text_time"


def _scheduler(pipeline: Pipeline) -> SchedulerConfig:
    if pipeline.settings.get("_class_name") != "StableDiffusionPipeline":
        return read(pipeline.scheduler)
    # Old files say otherwise and do not mean it: diffusers' pipeline overrules them, too.
    return read(pipeline.scheduler, overrules={"steps_offset": 1, "clip_sample": False})


def _check(pipeline: Pipeline) -> None:
    """Refuse pipelines that take more than text, or whose parts do not fit together."""
    unet, latents = pipeline.unet.config, pipeline.vae.config.latent_channels
    encoders = [e for e in pipeline.text_encoders if e is not None]
    faults = [
        f"unet: {name} = {getattr(unet, name)}, but the autoencoder has {latents} channels"
        for name in ("in_channels", "out_channels")
        if getattr(unet, name) != latents
    ]
    if kind := by_channels(unet.in_channels):
        faults.append(f"it is {kind}, which is not supported yet; {READ}")
    if unet.time_cond_proj_dim is not None:
        faults.append(f"unet: time_cond_proj_dim = {unet.time_cond_proj_dim}: distilled guidance")
    if unet.has_classes:
        faults.append(f"unet: class_embed_type = {unet.class_embed_type!r}: classes, not text")
    if pipeline.settings.get("requires_aesthetics_score"):
        faults.append("requires_aesthetics_score = True: a refiner, which begins with an image")
    if not encoders or (len(encoders) > 1 and not _is_xl(pipeline)):
        faults.append(f"{len(encoders)} text encoders for a network that wants one")
    if _is_xl(pipeline) and encoders:
        width = 6 * unet.addition_time_embed_dim + (encoders[-1].config.projection_dim or 0)
        if not encoders[-1].config.with_projection:
            faults.append("the last text encoder has no projection, which the network wants")
        elif unet.projection_class_embeddings_input_dim != width:
            wanted = unet.projection_class_embeddings_input_dim
            faults.append(
                f"unet: projection_class_embeddings_input_dim = {wanted}, but the pooled text and "
                f"six numbers of size make {width}"
            )
    if faults:
        raise ValueError("this pipeline is not plain text to image:\n  " + "\n  ".join(faults))


def _pixels_per_latent(pipeline: Pipeline) -> int:
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def _size(pipeline: Pipeline, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in pixels, whole latents each."""
    factor, trained = _pixels_per_latent(pipeline), pipeline.unet.config.sample_size
    sides = trained if isinstance(trained, tuple) else (trained, trained)
    size = []
    for name, asked, side in zip(("height", "width"), (height, width), sides, strict=True):
        if asked is None and side is None:
            raise ValueError(f"the unet's config has no sample_size, so {name} must be given")
        pixels = side * factor if asked is None else asked
        if pixels < factor or pixels % factor:
            raise ValueError(f"{name} = {pixels} pixels must be a positive multiple of {factor}")
        size.append(pixels)
    return size[0], size[1]
