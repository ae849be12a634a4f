"""The blocks of the UNet: the transformer on image tokens, and the down, mid and up stages.

This file owns how residual blocks and transformers alternate. What the autoencoder has too is in
`layers.py`; conditioning on time, classes and pooled text is in `model.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from optdiff.nn.attention import attention
from optdiff.nn.layers import (
    ACTIVATIONS,
    Conv,
    Downsample,
    GroupNorm,
    ResnetBlock,
    Upsample,
    gelu,
)
from optdiff.nn.linear import Linear, product
from optdiff.nn.unet.config import UNetConfig

Image = Float[Array, "b h w c"]
Resized = Float[Array, "b h2 w2 c2"]
Images = list[Float[Array, "b _ _ _"]]
Tokens = Float[Array, "b n c"]
Time = Float[Array, "b e"]


class Attention(nnx.Module):
    """Multi-head attention of `x` over `context`, or over itself; only the output has a bias."""

    def __init__(
        self, width: int, context_width: int, *, heads: int, head_dim: int, rngs: nnx.Rngs, **types
    ):
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(width, inner, use_bias=False, rngs=rngs, **types)
        self.to_k = Linear(context_width, inner, use_bias=False, rngs=rngs, **types)
        self.to_v = Linear(context_width, inner, use_bias=False, rngs=rngs, **types)
        self.to_out = Linear(inner, width, rngs=rngs, **types)

    def __call__(self, x: Tokens, context: Float[Array, "b m d"] | None = None) -> Tokens:
        context = x if context is None else context
        q, k, v = (
            y.reshape(*y.shape[:2], self.heads, -1)  # (b, n, heads, d)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = attention(q, k, v)
        return self.to_out(out.reshape(*out.shape[:2], -1))


class FeedForward(nnx.Module):
    """Gated feed-forward layer, `(a * gelu(g)) W` with `a, g = x V` (arXiv 2002.05202, GEGLU)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, **types):
        self.proj_in = Linear(width, 8 * width, rngs=rngs, **types)
        self.proj_out = Linear(4 * width, width, rngs=rngs, **types)

    def __call__(self, x: Tokens) -> Tokens:
        kernel, bias = self.proj_in.kernel[...], self.proj_in.bias[...]
        dtype = self.proj_in.dtype or jnp.result_type(x, kernel)
        operands = x.astype(dtype), kernel.astype(dtype), bias.astype(dtype)
        if x.shape[0] * x.shape[1] < 2 * x.shape[2]:  # then the kernel weighs more than what passes
            return self.proj_out(_gated(*operands))
        h = jax.lax.platform_dependent(*operands, cpu=_gated_apart, default=_gated)
        return self.proj_out(h)


def _gated(x: Array, kernel: Array, bias: Array) -> Array:
    value, gate = jnp.split(product(x, kernel) + bias[None, None], 2, -1)
    return value * gelu(gate)


def _gated_apart(x: Array, kernel: Array, bias: Array) -> Array:
    """The same by two products, so that no gradient of their union has to be put together."""
    (value, gate), (shift, lift) = jnp.split(kernel, 2, -1), jnp.split(bias[None, None], 2, -1)
    return (product(x, value) + shift) * gelu(product(x, gate) + lift)


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm and with a skip.

    With `only_cross` the first attention looks at the context too.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        heads: int,
        head_dim: int,
        only_cross: bool = False,
        rngs: nnx.Rngs,
        **types,
    ):
        def norm() -> nnx.LayerNorm:
            # The fast variance, E[x^2] - E[x]^2, cancels where the mean is large.
            return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs, **types)

        shape: dict[str, Any] = {"heads": heads, "head_dim": head_dim, "rngs": rngs, **types}
        self.only_cross = only_cross
        self.norm1 = norm()
        self.attn1 = Attention(width, context_width if only_cross else width, **shape)
        self.norm2 = norm()
        self.attn2 = Attention(width, context_width, **shape)
        self.norm3 = norm()
        self.ff = FeedForward(width, rngs=rngs, **types)

    def __call__(self, x: Tokens, context: Float[Array, "b m d"]) -> Tokens:
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    """Transformer blocks over the pixels of an image, between two projections, with a skip.

    The projections are 1x1 convolutions, or linear layers where the checkpoint says so: the same
    map, stored in another shape.
    """

    def __init__(
        self,
        channels: int,
        context_width: int,
        config: UNetConfig,
        *,
        depth: int,
        heads: int,
        only_cross: bool = False,
        rngs: nnx.Rngs,
        **types,
    ):
        head_dim = channels // heads
        inner = heads * head_dim

        def proj(width: int, out: int) -> nnx.Module:
            if config.use_linear_projection:
                return Linear(width, out, rngs=rngs, **types)
            return Conv(width, out, 1, rngs=rngs, **types)

        self.norm = GroupNorm(
            channels,
            groups=config.norm_num_groups,
            eps=1e-6,  # whatever norm_eps says: the transformers were trained with their own
            param_dtype=types["param_dtype"],
        )
        self.proj_in = proj(channels, inner)
        self.blocks = nnx.List(
            TransformerBlock(
                inner,
                context_width,
                heads=heads,
                head_dim=head_dim,
                only_cross=only_cross,
                rngs=rngs,
                **types,
            )
            for _ in range(depth)
        )
        self.proj_out = proj(inner, channels)

    def __call__(self, x: Image, context: Float[Array, "b m d"]) -> Image:
        h = self.proj_in(self.norm(x))
        image, h = h.shape, h.reshape(h.shape[0], -1, h.shape[-1])  # (b, h*w, inner)
        for block in self.blocks:
            h = block(h, context)
        return x + self.proj_out(h.reshape(image))


def resnet(
    in_channels: int,
    out_channels: int,
    config: UNetConfig,
    *,
    output_scale: float | int = 1,
    **rest,
) -> ResnetBlock:
    """A residual block as this config wants it."""
    return ResnetBlock(
        in_channels,
        out_channels,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        temb_channels=config.time_embed_dim * (2 if config.class_embeddings_concat else 1),
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        output_scale=output_scale,
        act=ACTIVATIONS[config.act_fn],
        **rest,
    )


class DownBlock(nnx.Module):
    """Residual blocks, each followed by a transformer where this stage has any, then downsampling.

    Returns every intermediate image, for the skips; the last one goes on to the next stage.
    """

    def __init__(self, index: int, config: UNetConfig, *, rngs: nnx.Rngs, **types):
        widths = config.block_out_channels
        width, depths = widths[index], config.down_depths[index]
        inputs = (widths[max(index - 1, 0)],) + (width,) * (len(depths) - 1)
        self.resnets = nnx.List(resnet(i, width, config, rngs=rngs, **types) for i in inputs)
        self.attentions = nnx.List(
            Transformer(
                width,
                config.per_block("cross_attention_dim")[index],
                config,
                depth=depth,
                heads=config.heads[index],
                only_cross=config.per_block("only_cross_attention")[index],
                rngs=rngs,
                **types,
            )
            for depth in (depths if config.down_block_types[index].startswith("Cross") else ())
        )
        last = index == len(widths) - 1
        padding = config.downsample_padding
        self.downsample = None if last else Downsample(width, padding=padding, rngs=rngs, **types)

    def __call__(self, x: Image, temb: Time, context: Float[Array, "b m d"]) -> Images:
        images = []
        for i, block in enumerate(self.resnets):
            x = block(x, temb)
            x = self.attentions[i](x, context) if self.attentions else x
            images.append(x)
        return images if self.downsample is None else [*images, self.downsample(x)]


class MidBlock(nnx.Module):
    """A residual block, then a transformer and another one unless `mid_block_type` has none."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs, **types):
        width = config.block_out_channels[-1]
        cross = config.mid_block_type == "UNetMidBlock2DCrossAttn"
        self.resnets = nnx.List(
            resnet(
                width,
                width,
                config,
                output_scale=config.mid_block_scale_factor,
                rngs=rngs,
                **types,
            )
            for _ in range(2 if cross else 1)
        )
        self.attentions = nnx.List(
            Transformer(
                width,
                config.per_block("cross_attention_dim")[-1],
                config,
                depth=config.mid_depth,
                heads=config.heads[-1],
                rngs=rngs,
                **types,
            )
            for _ in range(1 if cross else 0)
        )

    def __call__(self, x: Image, temb: Time, context: Float[Array, "b m d"]) -> Image:
        x = self.resnets[0](x, temb)
        for transformer, block in zip(self.attentions, self.resnets[1:], strict=True):
            x = block(transformer(x, context), temb)
        return x


class UpBlock(nnx.Module):
    """Residual blocks, each on the image and one skip, transformers between, then upsampling."""

    def __init__(self, index: int, config: UNetConfig, *, rngs: nnx.Rngs, **types):
        widths = config.block_out_channels[::-1]
        width, depths = widths[index], config.up_depths[index]
        last = index == len(widths) - 1
        # Skips come from the down stage of this width, the last from the stage before it.
        skips = (width,) * (len(depths) - 1) + (widths[min(index + 1, len(widths) - 1)],)
        inputs = (widths[max(index - 1, 0)],) + (width,) * (len(depths) - 1)
        self.resnets = nnx.List(
            resnet(i + skip, width, config, rngs=rngs, **types)
            for i, skip in zip(inputs, skips, strict=True)
        )
        self.attentions = nnx.List(
            Transformer(
                width,
                config.per_block("cross_attention_dim")[::-1][index],
                config,
                depth=depth,
                heads=config.heads[::-1][index],
                only_cross=config.per_block("only_cross_attention")[::-1][index],
                rngs=rngs,
                **types,
            )
            for depth in (depths if config.up_block_types[index].startswith("Cross") else ())
        )
        self.upsample = None if last else Upsample(width, rngs=rngs, **types)

    def __call__(
        self,
        x: Image,
        skips: Images,
        temb: Time,
        context: Float[Array, "b m d"],
        size: tuple[int, int] | None,
    ) -> Resized:
        for i, block in enumerate(self.resnets):
            x = block(jnp.concatenate([x, skips[-1 - i]], -1), temb)
            x = self.attentions[i](x, context) if self.attentions else x
        return x if self.upsample is None else self.upsample(x, size)
