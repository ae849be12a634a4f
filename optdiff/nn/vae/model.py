"""The autoencoder of latent diffusion (AutoencoderKL, arXiv 2112.10752): images to latents, back.

This file owns the encoder, the decoder and the posterior. Layers shared with the UNet are in
`nn/layers.py`, attention in `nn/attention.py`, foreign tensor names in `weights.py`.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from optdiff.nn.attention import attention
from optdiff.nn.layers import (
    ACTIVATIONS,
    Downsample,
    Dtype,
    GroupNorm,
    ResnetBlock,
    Upsample,
    conv,
)
from optdiff.nn.linear import Linear
from optdiff.nn.vae.config import DOWN_BLOCKS, UP_BLOCKS, VAEConfig
from optdiff.types import Keys

# Every norm in the autoencoder uses this one; the UNet's differ.
EPS = 1e-6


class Posterior(NamedTuple):
    """q(latent given image), a diagonal Gaussian in scaled units: what a diffusion model sees."""

    mean: Float[Array, "b h w c"]
    std: Float[Array, "b h w c"]

    def mode(self) -> Float[Array, "b h w c"]:
        """The likeliest latents."""
        return self.mean

    def sample(self, keys: Keys) -> Float[Array, "b h w c"]:
        """`mean + std * n`, n ~ N(0, I) from one key per sample, so a batch changes no sample.

        >>> certain = Posterior(jnp.ones((2, 1, 1, 4)), jnp.zeros((2, 1, 1, 4)))
        >>> float(certain.sample(jax.random.split(jax.random.key(0), 2)).sum())
        8.0
        """
        shape, dtype = self.mean.shape[1:], self.mean.dtype
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
        return self.mean + self.std * noise


class PixelAttention(nnx.Module):
    """Self-attention over pixels with one head as wide as the features, and a residual."""

    def __init__(
        self, channels: int, *, groups: int, dtype: Dtype | None, param_dtype: Dtype, rngs: nnx.Rngs
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = GroupNorm(channels, groups=groups, eps=EPS, param_dtype=param_dtype)
        self.q = Linear(channels, channels, **types)
        self.k = Linear(channels, channels, **types)
        self.v = Linear(channels, channels, **types)
        self.out = Linear(channels, channels, **types)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, 1, c)  # one head
        y = attention(self.q(y), self.k(y), self.v(y))
        return x + self.out(y).reshape(x.shape)


class Stage(nnx.Module):
    """Residual blocks at one width, each followed by attention if asked, then `resize` if any.

    Encoder and decoder blocks and the one in the middle are all this; they differ in `resize`.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        attend: tuple[bool, ...],
        resize: Downsample | Upsample | None,
        *,
        config: VAEConfig,
        dtype: Dtype | None,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = {
            "groups": config.norm_num_groups,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        act = ACTIVATIONS[config.act_fn]
        self.resnets = nnx.List(
            ResnetBlock(i, o, eps=EPS, act=act, **common) for i, o in itertools.pairwise(widths)
        )
        self.attentions = nnx.List(
            PixelAttention(width, **common) if yes else None
            for width, yes in zip(widths[1:], attend, strict=True)
        )
        self.resize = resize

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            x = resnet(x)
            x = x if attend is None else attend(x)
        return x if self.resize is None else self.resize(x)


class Encoder(nnx.Module):
    """Images to features at `2^(levels - 1)` times fewer pixels a side, twice the latents wide."""

    def __init__(
        self, config: VAEConfig, *, dtype: Dtype | None, param_dtype: Dtype, rngs: nnx.Rngs
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths, depth = config.block_out_channels, config.layers_per_block
        last = widths[-1]
        self.conv_in = conv(config.in_channels, widths[0], 3, **types)
        self.down = nnx.List(
            Stage(
                (before, *(width,) * depth),
                (DOWN_BLOCKS[kind],) * depth,
                # One zero below and to the right only, as the checkpoints were trained.
                Downsample(width, padding=0, **types) if level < len(widths) - 1 else None,
                config=config,
                **types,
            )
            for level, (before, width, kind) in enumerate(
                zip((widths[0], *widths), widths, config.down_block_types, strict=False)
            )
        )
        attend = (config.mid_block_add_attention, False)
        self.mid = Stage((last,) * 3, attend, None, config=config, **types)
        self.norm_out = GroupNorm(
            last, groups=config.norm_num_groups, eps=EPS, param_dtype=param_dtype
        )
        self.conv_out = conv(last, 2 * config.latent_channels, 3, **types)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(nnx.silu(self.norm_out(self.mid(x))))


class Decoder(nnx.Module):
    """Latents to images: the encoder's mirror, one residual block more at every width."""

    def __init__(
        self, config: VAEConfig, *, dtype: Dtype | None, param_dtype: Dtype, rngs: nnx.Rngs
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths, depth = config.block_out_channels[::-1], config.layers_per_block + 1
        self.conv_in = conv(config.latent_channels, widths[0], 3, **types)
        attend = (config.mid_block_add_attention, False)
        self.mid = Stage((widths[0],) * 3, attend, None, config=config, **types)
        self.up = nnx.List(
            Stage(
                (before, *(width,) * depth),
                (UP_BLOCKS[kind],) * depth,
                Upsample(width, **types) if level < len(widths) - 1 else None,
                config=config,
                **types,
            )
            for level, (before, width, kind) in enumerate(
                zip((widths[0], *widths), widths, config.up_block_types, strict=False)
            )
        )
        self.norm_out = GroupNorm(
            widths[-1], groups=config.norm_num_groups, eps=EPS, param_dtype=param_dtype
        )
        self.conv_out = conv(widths[-1], config.out_channels, 3, **types)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x = self.mid(self.conv_in(x))
        for stage in self.up:
            x = stage(x)
        return self.conv_out(nnx.silu(self.norm_out(x)))


class VAE(nnx.Module):
    """AutoencoderKL: `encode` images to a posterior over scaled latents, `decode` them back.

    Scaled latents, `(z - shift_factor) * scaling_factor`, are what diffusion models are trained
    on: about unit variance. Images lie in [-1, 1].

    Args:
      config: the geometry.
      dtype: what to compute in; the parameters' type if None, and float32 for float16 parameters
        under `force_upcast`.
      param_dtype: what to store.
      rngs: random keys for the initial parameters.

    >>> def there_and_back(images):
    ...     vae = VAE(VAEConfig(), rngs=nnx.Rngs(0))
    ...     return vae.decode(vae.encode(images).mode())
    >>> jax.eval_shape(there_and_back, jnp.zeros((1, 8, 8, 3))).shape
    (1, 8, 8, 3)
    """

    def __init__(
        self,
        config: VAEConfig,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        wide, narrow = 2 * config.latent_channels, config.latent_channels
        self.config, self.dtype = config, dtype
        self.encoder = Encoder(config, **types)
        self.decoder = Decoder(config, **types)
        self.quant_conv = conv(wide, wide, 1, **types) if config.use_quant_conv else None
        self.post_quant_conv = (
            conv(narrow, narrow, 1, **types) if config.use_post_quant_conv else None
        )

    def moments(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Mean and log-variance of the unscaled latents, side by side in the channels.

        A side of the image need not be a multiple of anything: each strided convolution
        takes n pixels to floor(n / 2).
        """
        x = self.encoder(images.astype(self._compute_dtype()))
        return x if self.quant_conv is None else self.quant_conv(x)

    def encode(self, images: Float[Array, "b h w c"]) -> Posterior:
        """The posterior over scaled latents (arXiv 2112.10752, sec. 3.1), in float32 at least.

        Args:
          images: (b, h, w, in_channels) in [-1, 1].

        Returns:
          Posterior with mean and standard deviation (b, h / f, w / f, latent_channels).
        """
        moments = self.moments(images)
        moments = moments.astype(jnp.promote_types(moments.dtype, jnp.float32))
        mean, log_var = jnp.split(moments, 2, -1)
        # The range that training clipped to; float32 would overflow far outside it.
        std = jnp.exp(0.5 * jnp.clip(log_var, -30.0, 20.0))
        shift, scale = self._normalization()
        return Posterior((mean - shift) * scale, std * scale)

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """Images from scaled latents.

        Args:
          latents: (b, h, w, latent_channels), scaled.

        Returns:
          Images (b, f * h, f * w, out_channels) of the type of `latents`, about [-1, 1], unclipped.
        """
        shift, scale = self._normalization()
        z = (latents / scale + shift).astype(self._compute_dtype())
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder(z).astype(latents.dtype)

    def _normalization(self) -> tuple[Any, Any]:
        """What is taken from z, and what it is multiplied by then: numbers, or one a channel."""
        c = self.config
        if c.latents_mean is None or c.latents_std is None:
            return c.shift_factor or 0.0, c.scaling_factor
        mean, std = (np.reshape(v, (1, 1, 1, -1)) for v in (c.latents_mean, c.latents_std))
        return mean, c.scaling_factor / std

    def _compute_dtype(self) -> Dtype:
        stored = self.encoder.conv_in.kernel.dtype
        upcast = stored == jnp.float16 and self.config.force_upcast
        return self.dtype or (jnp.float32 if upcast else stored)
