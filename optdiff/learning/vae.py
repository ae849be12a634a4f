"""Learning the autoencoder: few numbers that a picture can be made of again.

The scale of its latents is measured when it is done, so that those who learn on them find unit
variance.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from optdiff.keys import seed_key
from optdiff.learning.distances import Distance, absolute
from optdiff.learning.task import Task
from optdiff.nn.checkpoint import save_module
from optdiff.nn.clip.images import to_clip
from optdiff.nn.network import Network, network
from optdiff.nn.vae.config import VAEConfig
from optdiff.nn.vae.model import VAE
from optdiff.types import Batch, Stream


def autoencoding(
    vae: Network,
    clip: Network | None,
    batch: Batch,
    key: Array,
    *,
    distance: Distance = absolute,
    kl: float = 1e-4,
    perceptual: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`distance(x, D(z)) + kl KL(N(m, s^2) || N(0, 1))` with `z ~ N(m, s^2)` (arXiv 2112.10752,
    equation 25 without its adversary), both averaged over their numbers; s^2 and m of the encoder.

    Args:
      vae: what learns; its latents are not scaled yet.
      clip: for the perceptual term, whose features are compared.
      batch: `images` in [0, 1].
      key: draws z.
      distance: between images in [-1, 1].
      kl: weight of the divergence. Small: it keeps latents near the origin, and nothing samples it.
      perceptual: weight of the squared distance between CLIP's features of both images.
    """
    module, images = vae.module(), 2.0 * batch["images"] - 1.0
    posterior = module.encode(images)
    mean, std = posterior.mean, posterior.std
    again = module.decode(mean + std * jax.random.normal(key, mean.shape, mean.dtype))
    rebuilt = distance(again, images)
    divergence = jnp.mean(mean**2 + std**2 - 1.0 - 2.0 * jnp.log(std)) / 2.0
    loss = rebuilt + kl * divergence
    psnr = _psnr(again, images)
    metrics = {"distance": rebuilt, "kl": divergence, "std": std.mean(), "psnr": psnr}
    if perceptual:
        metrics["perceptual"] = perceived(clip, again, images)
        loss += perceptual * metrics["perceptual"]
    return loss, metrics


def perceived(
    clip: Network, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]
) -> Float[Array, ""]:
    """Mean squared distance between what CLIP's vision tower makes of images in [-1, 1]: all of its
    hidden states, each token scaled to unit length (arXiv 1801.03924, equation 1, our features).
    """
    vision = clip.module().vision
    states = (vision(to_clip(image / 2.0 + 0.5)).hidden_states for image in (a, b))

    def unit(x):
        return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)

    apart = [jnp.mean(jnp.sum((unit(x) - unit(y)) ** 2, -1)) for x, y in zip(*states, strict=True)]
    return sum(apart) / len(apart)


def task(
    *,
    data: Callable[..., Stream],
    held_out: Callable[..., Stream],
    config: dict[str, Any],
    seed: int,
    clip: nnx.Module | None = None,
    distance: Distance = absolute,
    kl: float = 1e-4,
    perceptual: float = 0.0,
    dtype: str = "float32",
    scored: int = 1024,
) -> Task:
    """The autoencoder to learn.

    Args:
      data: `data()` is a stream of images, of which `seed`, `batch`, `host` and `hosts` make
        another.
      held_out: `held_out(batch=...)` is one of images to be scored on.
      config: fields of diffusers' AutoencoderKL; the scaling factor is measured at the end.
      seed: of the first weights.
      clip: learned before; needed for the perceptual term only.
      distance, kl, perceptual: see `autoencoding`.
      dtype: what to compute in; weights are float32.
      scored: images that scores and the latents' scale are measured on.
    """
    if perceptual and clip is None:
        raise ValueError(f"perceptual = {perceptual}, but there is no CLIP whose features to take")
    geometry = VAEConfig.from_dict(config | {"scaling_factor": 1.0})
    vae = VAE(geometry, rngs=nnx.Rngs(seed_key(seed)), dtype=jnp.dtype(dtype))
    unseen = held_out(batch=scored)

    def scores(learned: Network) -> dict[str, float]:
        images = _first(unseen)
        again, latents = _rebuild(learned, images)
        return {
            "psnr": float(_psnr(again, 2.0 * images - 1.0)),
            "latent_std": float(jnp.std(latents)),
            "compression": images.size / latents.size,
        }

    def pictures(learned: Network) -> np.ndarray:
        images = _first(unseen)[:32]
        again = jnp.clip(_rebuild(learned, images)[0] / 2.0 + 0.5, 0.0, 1.0)
        return np.stack([images, again], 1).reshape(-1, *images.shape[1:])

    def save(learned: Network, path: Path) -> None:
        # As the generator will see them, and all of them, whichever process this is.
        _, latents = _rebuild(learned, _first(data(batch=scored, seed=seed + 1, host=0, hosts=1)))
        module, scale = learned.module(), round(float(1.0 / jnp.std(latents)), 6)
        module.config = dataclasses.replace(geometry, scaling_factor=scale)
        save_module(path, module)

    return Task(
        params=network(vae),
        frozen=None if clip is None else network(clip),
        loss=partial(autoencoding, distance=distance, kl=kl, perceptual=perceptual),
        stream=data(),
        scores=scores,
        pictures=pictures,
        save=save,
    )


def _first(stream: Stream) -> Float[Array | np.ndarray, "b h w c"]:
    """The images of a stream's first batch."""
    return stream.read(stream.start)[0]["images"]


@jax.jit
def _rebuild(vae: Network, images: Array) -> tuple[Array, Array]:
    module = vae.module()
    latents = module.encode(2.0 * images - 1.0).mode()
    return module.decode(latents), latents


def _psnr(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """`10 log10(4 / mse)` of images in [-1, 1] (a is clipped to it), averaged over images."""
    mse = jnp.mean((jnp.clip(a, -1.0, 1.0) - b) ** 2, (1, 2, 3))
    return jnp.mean(10.0 * jnp.log10(4.0 / mse))
