"""PyTorch's side of the networks' benchmark: the same parts by diffusers and transformers.

Variants: `eager`, `channels_last` (NHWC in memory) and `compile` (that and `torch.compile`).
"""

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import diffusers
import torch
import transformers
from _side import Work, serve

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def prepare(job: dict[str, Any]) -> Work:
    """The part that the job asks for, compiled when it is first called."""
    torch.set_grad_enabled(False)
    dtype = getattr(torch, job["dtype"] or ("bfloat16" if CUDA else "float32"))
    call = waiting(PARTS[job["part"]](job, job["geometry"], dtype))
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    peak = torch.cuda.max_memory_allocated if CUDA else None
    return Work(call, partial(matmul, dtype, 8192 if CUDA else 4096), peak=peak)


def clip(job, geometry, dtype):
    nets = []
    for text in geometry["text"]:
        config = transformers.CLIPTextConfig(**text)
        nets.append(transformers.CLIPTextModelWithProjection(config).to(DEVICE, dtype).eval())
        if job["variant"] == "compile":
            nets[-1].compile()
    ids = torch.ones((job["batch"], 77), dtype=torch.long, device=DEVICE)
    return lambda: [net(ids, output_hidden_states=True) for net in nets]


def unet(job, geometry, dtype, passes=1):
    x, t, context, added = inputs(passes * job["batch"], job, dtype)
    net = fresh(diffusers.UNet2DConditionModel, geometry["unet"], job, dtype)
    if job["variant"] == "compile":
        net.compile()
    return lambda: net(x, t, context, added_cond_kwargs=added)


def vae(job, geometry, dtype):
    x, *_ = inputs(job["batch"], job, dtype)
    net = fresh(diffusers.AutoencoderKL, geometry["vae"], job, dtype)
    if job["variant"] == "compile":
        net.decoder.compile()
    return lambda: net.decode(x)


def image(job, geometry, dtype):
    """From encoded prompts to pixels: guided DDIM steps, then the decoder."""
    _, _, context, added = inputs(job["batch"], job, dtype)
    parts = {
        "unet": fresh(diffusers.UNet2DConditionModel, geometry["unet"], job, dtype),
        "vae": fresh(diffusers.AutoencoderKL, geometry["vae"], job, dtype),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            timestep_spacing="trailing", clip_sample=False,
        ),
    }  # fmt: skip
    if job["variant"] == "compile":
        parts["unet"].compile()
        parts["vae"].decoder.compile()
    absent = dict.fromkeys(("text_encoder", "tokenizer"))
    embeds = {"prompt_embeds": context, "negative_prompt_embeds": context}
    if added is None:
        absent |= {"safety_checker": None, "feature_extractor": None}
        pipe = diffusers.StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    else:
        absent |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        pipe = diffusers.StableDiffusionXLPipeline(**parts, **absent, add_watermarker=False)
        pooled = added["text_embeds"]
        embeds |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": pooled}
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": job["steps"], "guidance_scale": 7.5, "output_type": "pt"}
    return lambda: pipe(**embeds, **asked)


PARTS = {"clip": clip, "unet": unet, "guided": partial(unet, passes=2), "vae": vae, "image": image}


def inputs(batch: int, job: dict[str, Any], dtype: torch.dtype):
    """Latents, timesteps, text and added condition for so many samples."""
    config = job["geometry"]["unet"]

    def normal(*shape):
        return torch.randn(batch, *shape, dtype=dtype, device=DEVICE)

    x = normal(4, *job["geometry"]["latents"])
    if job["variant"] != "eager":
        x = x.contiguous(memory_format=torch.channels_last)
    added = None
    if config.get("addition_embed_type"):
        text = normal(job["geometry"]["text"][-1]["projection_dim"])
        added = {"text_embeds": text, "time_ids": torch.full((batch, 6), 1024.0, device=DEVICE)}
    t = torch.full((batch,), 500, device=DEVICE)
    return x, t, normal(77, config["cross_attention_dim"]), added


def fresh(kind: Any, raw: dict[str, Any], job: dict[str, Any], dtype: torch.dtype):
    """A network of this class and geometry with random weights that keep signals finite."""
    with torch.device("meta"):
        net = kind.from_config(raw).to(dtype).eval()
    net = net.to_empty(device=DEVICE)
    if job["variant"] != "eager":
        net = net.to(memory_format=torch.channels_last)
    for p in net.parameters():
        p.fill_(1.0) if p.ndim < 2 else p.normal_(std=p[0].numel() ** -0.5)
    return net


def matmul(dtype: torch.dtype, n: int) -> float:
    """FLOP/s of an n by n product, the best of a few."""
    a, times = torch.randn(n, n, dtype=dtype, device=DEVICE), []
    for _ in range(4):
        began = perf_counter()
        a @ a
        if CUDA:
            torch.cuda.synchronize()
        times.append(perf_counter() - began)
    return 2 * n**3 / min(times)


def waiting(piece: Callable[[], Any]) -> Callable[[], None]:
    """The same call, which returns when it is done."""

    def call() -> None:
        piece()
        if CUDA:
            torch.cuda.synchronize()

    return call


if __name__ == "__main__":
    serve(prepare)
