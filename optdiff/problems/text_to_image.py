"""Text-to-image in latents: a conditional network, an autoencoder, and prompts already encoded.

This file owns what the parts mean to a sampler: conditions, priors, denoising and decoding. Where
the parts come from is left to others, `stable_diffusion.py` for published checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from optdiff.denoisers import ScalingFn, precondition
from optdiff.keys import CONDITION
from optdiff.nn.network import Network
from optdiff.scheduler_config import SchedulerConfig
from optdiff.types import Cond, Keys, NoiseSchedule, Samples, Sigma, expand

PIXELS_AT_ONCE = 2**20
"""What the autoencoder works on at a time: four images of 512 x 512."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["unet", "vae", "prompts"],
    meta_fields=["schedule", "scaling", "shape", "scheduler"],
)
@dataclass(frozen=True)
class TextToImage:
    """Latent diffusion (arXiv 2112.10752) as a problem. Images are in [0, 1].

    A condition is a dict of arrays with the batch first: `context` (b, tokens, d), what the
    network's cross-attention looks at, and whatever else the network takes by keyword, such as
    SDXL's `added`. It has no reference set: metrics that compare with one do not apply.

    Attributes:
      unet: called as `unet(z, t, context, **rest of the condition)`.
      vae: `encode(images).mode()` and `decode(latents)`, with images in [-1, 1].
      prompts: conditions to draw from, with the prompts first.
      schedule: the noise that the network was trained on.
      scaling: what it predicts, one of the scalings of `denoisers`.
      shape: of a sample, (height, width, channels).
      scheduler: what a checkpoint's scheduler file says, for those who step as it does; None where
        there is none.
    """

    unet: Network
    vae: Network
    prompts: Cond
    schedule: NoiseSchedule
    scaling: ScalingFn
    shape: tuple[int, int, int]
    scheduler: SchedulerConfig | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        latents = jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)
        h, w = jax.eval_shape(_decode, self.vae, latents).shape[1:3]
        return h, w

    def condition(self, keys: Keys) -> Cond:
        """One of the prompts for each sample."""
        return drawn(self.prompts, keys)

    def from_noise(self, noise: Samples, sigma: Sigma) -> Samples:
        """Where sampling starts from unit noise: `sqrt(1 + sigma^2) n`, the marginal of data of
        unit variance, which latents are scaled to have. To a variance-preserving network it is n:
        these are the `latents` that diffusers' pipelines take."""
        return (expand(jnp.sqrt(1.0 + sigma**2), noise) * noise).astype(noise.dtype)

    def prior(self, keys: Keys, sigma: Sigma, cond: Cond = None) -> Samples:
        """`from_noise` of normal noise in float32."""
        draw = jax.vmap(lambda key: jax.random.normal(key, self.shape, jnp.float32))
        return self.from_noise(draw(keys), sigma)

    def denoise(self, x: Samples, sigma: Sigma, cond: Cond = None) -> Samples:
        """The network's estimate of the latents without noise."""
        if cond is None:
            raise ValueError("text-to-image needs a condition per sample, but cond is None")
        unet = self.unet.module()

        def call(z, t, cond):
            rest = {name: value for name, value in cond.items() if name != "context"}
            return unet(z, t, cond["context"], **rest)

        return precondition(call, self.scaling, self.schedule)(x, sigma, cond)

    def encode(self, images: Float[Array, "b h w c"]) -> Samples:
        """The likeliest latents of images (b, h, w, 3) in [0, 1]."""
        return in_batches(partial(_encode, self.vae), images, images.shape[1:3])

    def decode(self, x0: Samples) -> Float[Array, "b h w c"]:
        """Images (b, h, w, 3) in [0, 1] from latents, a few at a time; NaN for no number."""
        pixels = jax.eval_shape(_decode, self.vae, x0[:1]).shape[1:3]
        return in_batches(partial(_decode, self.vae), x0, pixels)

    def reference(self, keys: Keys, cond: Cond = None) -> Samples:
        raise ValueError(
            "a text-to-image problem has no reference set; choose metrics that ask for none, "
            "such as metrics=stable_diffusion"
        )


def drawn(prompts: Cond, keys: Keys) -> Cond:
    """One of the prompts, a pytree with the prompts first, for each key, whatever its company.

    >>> drawn({"ids": jnp.ones((3, 7))}, jax.random.split(jax.random.key(0), 5))["ids"].shape
    (5, 7)
    """
    count = len(jax.tree.leaves(prompts)[0])
    draw = jax.vmap(
        lambda key: jax.random.randint(jax.random.fold_in(key, CONDITION), (), 0, count)
    )
    rows = draw(keys)
    return jax.tree.map(lambda leaf: leaf[rows], prompts)


def slerp(
    a: Float[Array, "1 ..."], b: Float[Array, "1 ..."], fraction: Float[Array, "n"]
) -> Float[Array, "n ..."]:
    """Along the great circle from a to b (Shoemake 1985), which keeps the length of noise:
    `sin((1 - f) w) / sin(w) a + sin(f w) / sin(w) b`, w the angle between them.

    Where they point the same way, and opposite ways, the path is straight.

    Args:
      a, b: one sample each, (1, ...).
      fraction: (n,), 0 is a and 1 is b.

    Returns:
      (n, ...).

    >>> halfway = slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([0.5]))
    >>> [round(c, 4) for c in halfway[0].tolist()]
    [0.7071, 0.7071]
    """
    # Sums over thousands of squares overflow float16, and lose all precision in bfloat16.
    wide = jnp.promote_types(a.dtype, jnp.float32)
    fraction, c, d = fraction.astype(wide), a.astype(wide), b.astype(wide)
    lengths = jnp.linalg.norm(c) * jnp.linalg.norm(d)
    cosine = jnp.vdot(c, d) / jnp.where(lengths > 0, lengths, 1.0)
    straight = jnp.abs(cosine) > 0.9995
    angle = jnp.arccos(jnp.where(straight, 0.0, cosine))
    begin = jnp.where(straight, 1.0 - fraction, jnp.sin((1.0 - fraction) * angle) / jnp.sin(angle))
    end = jnp.where(straight, fraction, jnp.sin(fraction * angle) / jnp.sin(angle))
    return (expand(begin, c) * c + expand(end, d) * d).astype(a.dtype)


def in_batches(
    work: Callable[[Samples], PyTree[Array]], x: Samples, size: tuple[int, int]
) -> PyTree[Array]:
    """Do the work on as many samples at a time as memory bears, all of one shape.

    Args:
      work: from samples (k, ...) to a pytree of arrays with the samples first.
      x: (b, ...).
      size: height and width of the images that it is work on.

    >>> in_batches(lambda x: {"twice": 2 * x}, jnp.ones((3, 1)), (1024, 512))["twice"].shape
    (3, 1)
    """
    at_once = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
    if len(x) <= at_once:
        return work(x)
    done = []
    for first in range(0, len(x), at_once):
        batch = x[first : first + at_once]
        short = at_once - len(batch)
        padded = jnp.pad(batch, [(0, short)] + [(0, 0)] * (x.ndim - 1)) if short else batch
        done.append(jax.tree.map(lambda leaf: leaf[: len(batch)], work(padded)))  # noqa: B023
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *done)


@jax.jit
def _encode(vae: Network, images: Samples) -> Samples:
    return vae.module().encode(2.0 * images - 1.0).mode()


@jax.jit
def _decode(vae: Network, latents: Samples) -> Samples:
    images = vae.module().decode(latents) / 2.0 + 0.5
    # Infinity is no white: in float16 it says that the decoder's numbers were too large.
    return jnp.where(jnp.isfinite(images), jnp.clip(images, 0.0, 1.0), jnp.nan)
