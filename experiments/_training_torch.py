"""PyTorch's side of the training benchmark: the losses of the presets and their step, by PyTorch,
diffusers and transformers.

Variants: `eager`, `channels_last` (NHWC in memory) and `compile` (that and `torch.compile`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
import transformers
from _network_torch import CUDA, DEVICE, waiting
from _side import Work, medians, serve
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

Drawn = dict[str, torch.Tensor]


class Task(NamedTuple):
    """A network to learn, as `optdiff.learning.task` has it.

    Attributes:
      net: what learns.
      draw: what is random about a step.
      loss: of what was drawn, on the batch.
      teach: what frozen networks say, as a part of the loss; None where there are none.
    """

    net: torch.nn.Module
    draw: Callable[[], Drawn]
    loss: Callable[[Drawn], torch.Tensor]
    teach: Callable[[Drawn], Any] | None = None


def prepare(job: dict[str, Any]) -> Work:
    """The step of the stage that the job asks for, with the networks and batch in the folder."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # of a GPU's products, as jax has it
    torch.compiler.config.force_disable_caches = True  # so that the first call compiles
    pieces = {name: waiting(piece) for name, piece in programs(job).items()}
    versions = [f"{kit.__name__} {kit.__version__}" for kit in (torch, diffusers, transformers)]
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    return Work(
        pieces["step"],
        facts=lambda: {
            "pieces": medians(pieces, job["repeats"]),
            "batch": job["config"]["batch"],
            "versions": f"{', '.join(versions)} ({torch.get_num_threads()} threads)",
        },
        peak=torch.cuda.max_memory_allocated if CUDA else None,
    )


def programs(job: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The step, last, and before it the pieces that say where its time goes."""
    task = PARTS[job["config"]["stage"]](job)
    loss, teach = task.loss, task.teach
    if job["variant"] == "compile":
        loss, teach = torch.compile(loss), teach and torch.compile(teach)
    update = updating(task.net, job["config"])

    def gradient():
        task.net.zero_grad()
        loss(task.draw()).backward()

    def step():
        gradient()
        update()

    pieces = {
        "loss": lambda: loss(task.draw()), "gradient": gradient, "update": update, "step": step,
    }  # fmt: skip
    return {"teachers": lambda: teach(task.draw()), **pieces} if teach else pieces


def updating(net: torch.nn.Module, config: dict[str, Any]) -> Callable[[], None]:
    """Clipping, AdamW and EMA, each in the fastest way that PyTorch has for many tensors."""
    params, options = list(net.parameters()), config["optimizer"]
    average = [param.detach().clone() for param in params]
    averaging = get_ema_multi_avg_fn(config["ema_decay"])
    optimizer = torch.optim.AdamW(
        params, lr=config["rate"], betas=(0.9, options["b2"]), weight_decay=options["weight_decay"],
        fused=True,
    )  # fmt: skip

    def update():
        if config["clip"] is not None:
            torch.nn.utils.clip_grad_norm_(params, config["clip"], foreach=True)
        optimizer.step()
        averaging(average, params, None)

    return update


def unet(job: dict[str, Any]) -> Task:
    """v-prediction (arXiv 2202.00512, appendix D) of latents, given what captions say."""
    batch, options = inputs(job), job["config"]["task"]
    images, size = 2.0 * batch["images"] - 1.0, len(batch["images"])
    net = loaded(diffusers.UNet2DConditionModel, "unet", job).train()
    vae = loaded(diffusers.AutoencoderKL, "vae", job)
    text = loaded(transformers.CLIPTextModel, "text_encoder", job)
    shape = (size, net.config.in_channels, *[net.config.sample_size] * 2)
    scheduler = diffusers.DDIMScheduler.from_config(options["scheduler"])
    levels = ((1.0 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().to(DEVICE)

    def draw():
        t = torch.randint(len(levels), (size,), device=DEVICE)
        dropped = torch.rand(size, 1, device=DEVICE) < options["dropout"]
        noise = torch.randn(shape, device=DEVICE)
        return {"t": t, "sigma": levels[t], "noise": noise, "dropped": dropped}

    @torch.no_grad()
    def teach(drawn):
        latents = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
        ids = torch.where(drawn["dropped"], batch["blank"], batch["ids"])
        return latents, text(ids).last_hidden_state

    def loss(drawn):
        x0, context = teach(drawn)
        sigma, noise = drawn["sigma"][:, None, None, None], drawn["noise"]
        alpha = (1.0 + sigma**2).rsqrt()
        with mixed(job):
            answer = net(alpha * (x0 + sigma * noise), drawn["t"], context).sample
        return functional.mse_loss(answer.float(), alpha * (noise - sigma * x0))

    return Task(net, draw, loss, teach)


def vae(job: dict[str, Any]) -> Task:
    """Absolute error and a small divergence (arXiv 2112.10752, equation 25 without adversary)."""
    images = 2.0 * inputs(job)["images"] - 1.0
    net = loaded(diffusers.AutoencoderKL, "vae", job).train()
    scale, factor = net.config.scaling_factor, 2 ** (len(net.config.block_out_channels) - 1)
    shape = (len(images), net.config.latent_channels, *(n // factor for n in images.shape[2:]))

    def draw():
        return {"noise": torch.randn(shape, device=DEVICE)}

    def loss(drawn):
        with mixed(job):
            posterior = net.encode(images).latent_dist
            mean, std = scale * posterior.mean, scale * posterior.std
            again = net.decode((mean + std * drawn["noise"]) / scale).sample
        mean, std = mean.float(), std.float()
        divergence = (mean**2 + std**2 - 1.0 - 2.0 * std.log()).mean() / 2.0
        return functional.l1_loss(again.float(), images) + job["config"]["task"]["kl"] * divergence

    return Task(net, draw, loss)


def clip(job: dict[str, Any]) -> Task:
    """Who belongs to whom (arXiv 2103.00020, figure 3)."""
    batch = inputs(job)
    images = 2.0 * batch["images"] - 1.0
    net = loaded(transformers.CLIPModel, "clip", job).train()
    own = torch.arange(len(images), device=DEVICE)

    def loss(drawn):
        with mixed(job):
            answer = net(input_ids=batch["ids"], pixel_values=images)
        scale = net.logit_scale.exp().clamp(max=100.0)
        logits = scale * answer.image_embeds.float() @ answer.text_embeds.float().T
        both = functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)
        return both / 2.0

    return Task(net, dict, loss)


PARTS = {"unet": unet, "vae": vae, "clip": clip}


def inputs(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The batch, images as (b, c, h, w)."""
    with np.load(Path(job["folder"], "batch.npz")) as arrays:
        batch = {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()}
    images = batch["images"].permute(0, 3, 1, 2).contiguous()
    if job["variant"] != "eager":
        images = images.contiguous(memory_format=torch.channels_last)
    return batch | {"images": images}


def loaded(kind: Any, name: str, job: dict[str, Any]) -> torch.nn.Module:
    """The network of this class in the job's folder."""
    net = kind.from_pretrained(Path(job["folder"], name)).to(DEVICE).eval()
    return net if job["variant"] == "eager" else net.to(memory_format=torch.channels_last)


def mixed(job: dict[str, Any]) -> torch.autocast:
    """Products in the type that is asked for, weights in float32."""
    name = job["config"]["dtype"]
    dtype = ("bfloat16" if CUDA else "float32") if name == "auto" else name
    return torch.autocast(DEVICE.type, getattr(torch, dtype), enabled=dtype != "float32")


if __name__ == "__main__":
    serve(prepare)
