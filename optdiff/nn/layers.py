"""Layers that the UNet and the autoencoder share: group norm, convolutions, the residual block.

This file owns what both networks compute in the same way, NHWC throughout. What only one of them
has lives in its `model.py`, attention in `attention.py`, foreign weight names in `weights.py`.
Modules take `dtype` (what they compute in) and `param_dtype` (what they store). Statistics are
taken in float32 at least, whatever `dtype` is.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from optdiff.nn.convolution import convolve, upsample_convolve
from optdiff.nn.linear import Linear

Dtype = Any
"""A JAX float type such as `jnp.float32` or `jnp.bfloat16`."""


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x Phi(x)`, Phi the normal distribution function (arXiv 1606.08415, sec. 2), in float32 at
    least.

    As PyTorch computes it, `x (1 + erf(x / sqrt 2)) / 2`: by erfc, as JAX does, the tail has more
    digits than any sum it enters, and takes twice the time on a CPU.

    >>> round(float(gelu(jnp.array(1.0))), 4)
    0.8413
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nnx.silu,
    "swish": nnx.silu,
    "mish": lambda x: x * jnp.tanh(nnx.softplus(x)),
    "gelu": gelu,
    "relu": nnx.relu,
}
"""Activations by the name that a checkpoint's `act_fn` gives them."""


def group_norm(
    x: Float[Array, "b *space c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    *,
    groups: int,
    eps: float,
) -> Float[Array, "b *space c"]:
    """Normalize each group of channels of each sample over space (arXiv 1803.08494, eq. 1).

    `y = (x - mean_g) / sqrt(var_g + eps) * scale + bias`, in float32 at least. Moments are taken
    per channel first and combined per group after, `var_g = mean_c(var_c + (mean_c - mean_g)^2)`,
    which keeps channels the innermost axis: about twice as fast on a CPU as reducing over a split
    axis, and no difference of large squares is ever taken.

    Args:
      x: features (b, ..., c).
      scale: (c,).
      bias: (c,).
      groups: how many groups the channels fall into; divides c.
      eps: added to the variance.

    Returns:
      Features of the shape and type of `x`.

    >>> group_norm(jnp.ones((1, 4, 4, 8)), jnp.ones(8), jnp.zeros(8), groups=2, eps=1e-5).shape
    (1, 4, 4, 8)
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    flat = x.reshape(x.shape[0], -1, x.shape[-1]).astype(dtype)  # (b, pixels, c)

    def per_group(moment: Array) -> Array:  # (b, 1, c) -> (b, 1, c), the mean over each group
        split = moment.reshape(x.shape[0], 1, groups, -1)
        return jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape).reshape(moment.shape)

    mean_c = flat.mean(1, keepdims=True)
    var_c = jnp.square(flat - mean_c).mean(1, keepdims=True)
    mean = per_group(mean_c)
    var = per_group(var_c + jnp.square(mean_c - mean))
    gain = jax.lax.rsqrt(var + eps) * scale.astype(dtype)[None, None]
    out = (flat - mean) * gain + bias.astype(dtype)[None, None]
    return out.astype(x.dtype).reshape(x.shape)


class GroupNorm(nnx.Module):
    """`group_norm` with its parameters `scale` and `bias`, both (channels,)."""

    def __init__(self, channels: int, *, groups: int, eps: float, param_dtype: Dtype = jnp.float32):
        if channels % groups:
            raise ValueError(
                f"group norm: {channels} channels do not split into {groups} groups; "
                "check norm_num_groups against the block widths"
            )
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        return group_norm(x, self.scale[...], self.bias[...], groups=self.groups, eps=self.eps)


class Conv(nnx.Module):
    """`convolve` with its parameters, kernel (size, size, in, out) and bias (out,).

    Args:
      in_channels: channels of the input.
      out_channels: channels of the output.
      size: height and width of the kernel.
      stride: step in both directions.
      padding: zeros (before, after) in both directions; `(size - 1) // 2` on both sides if None.
      dtype: what to compute in; the promoted type of input and parameters if None.
      param_dtype: what to store.
      rngs: keys for the initial kernel.

    >>> Conv(3, 8, 3, rngs=nnx.Rngs(0))(jnp.ones((1, 5, 4, 3))).shape
    (1, 5, 4, 8)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: tuple[int, int] | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, in_channels, out_channels)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros(out_channels, param_dtype))
        self.stride, self.dtype = stride, dtype
        self.padding = ((size - 1) // 2,) * 2 if padding is None else padding

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.apply(partial(convolve, stride=self.stride, padding=self.padding), x)

    def apply(self, product: Callable[[Array, Array], Array], x: Array) -> Array:
        """`product(x, kernel) + bias`, in the type that is computed in."""
        kernel, bias = self.kernel[...], self.bias[...]
        dtype = self.dtype or jnp.result_type(x, kernel)
        return product(x.astype(dtype), kernel.astype(dtype)) + bias.astype(dtype)[None, None, None]


conv = Conv


class Downsample(nnx.Module):
    """Halve height and width by a strided 3x3 convolution.

    `padding=1` pads one zero all round (UNet); `padding=0` pads one zero below and to the right
    only (autoencoder), as the checkpoints were trained.
    """

    def __init__(self, channels: int, *, padding: int = 1, rngs: nnx.Rngs, **types: Any):
        pad = (padding, padding) if padding else (0, 1)
        self.conv = Conv(channels, channels, 3, stride=2, padding=pad, rngs=rngs, **types)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


def nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Resize by the nearest neighbour, `out[i] = x[floor(i * h / h2)]`.

    >>> nearest(jnp.arange(2.0).reshape(1, 1, 2, 1), (1, 3)).ravel().tolist()
    [0.0, 0.0, 1.0]
    """
    for axis, out in zip((1, 2), size, strict=True):
        if out != x.shape[axis]:
            x = jnp.take(x, np.arange(out) * x.shape[axis] // out, axis)
    return x


class Upsample(nnx.Module):
    """Nearest-neighbour upsampling, by two unless a size is given, then a 3x3 convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs, **types: Any):
        self.conv = Conv(channels, channels, 3, rngs=rngs, **types)

    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        if size in (None, (2 * x.shape[1], 2 * x.shape[2])):
            return self.conv.apply(upsample_convolve, x)
        return self.conv(nearest(x, size))


class ResnetBlock(nnx.Module):
    """Residual block: norm, act, conv, add or modulate by the time embedding, norm, act, conv.

    `out = (shortcut(x) + h) / output_scale`. The time embedding enters between the convolutions:
    added before the second norm, or, with `scale_shift`, as `norm(h) * (1 + scale) + shift` after
    it. Without `temb_channels` there is none (autoencoder).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        temb_channels: int | None = None,
        scale_shift: bool = False,
        output_scale: float | int = 1,
        act: Callable[[Array], Array] = nnx.silu,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm: dict[str, Any] = {"groups": groups, "eps": eps, "param_dtype": param_dtype}
        shortcut = in_channels != out_channels
        width = out_channels * (2 if scale_shift else 1)
        self.norm1 = GroupNorm(in_channels, **norm)
        self.conv1 = Conv(in_channels, out_channels, 3, **types)
        timed = temb_channels is not None
        self.time_emb_proj = Linear(temb_channels, width, **types) if timed else None
        self.norm2 = GroupNorm(out_channels, **norm)
        self.conv2 = Conv(out_channels, out_channels, 3, **types)
        self.conv_shortcut = Conv(in_channels, out_channels, 1, **types) if shortcut else None
        self.act, self.scale_shift, self.output_scale = act, scale_shift, output_scale

    def __call__(
        self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"] | None = None
    ) -> Float[Array, "b h w c2"]:
        h = self.conv1(self.act(self.norm1(x)))
        shift = None if self.time_emb_proj is None else self.time_emb_proj(self.act(temb))
        if shift is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = jnp.split(shift[:, None, None], 2, -1)  # (b, 1, 1, c2) each
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + shift[:, None, None])
        h = self.conv2(self.act(h))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return (x + h) / self.output_scale


def timestep_embedding(
    t: Float[Array, "b"], dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float | int = 0
) -> Float[Array, "b {dim}"]:
    """Sines and cosines of `t * 10000^(-i / (dim/2 - freq_shift))` (arXiv 1706.03762, sec. 3.5).

    Args:
      t: training timesteps (b,), fractions allowed.
      dim: width of the embedding; an odd one ends in a zero.
      flip_sin_to_cos: cosines first.
      freq_shift: shifts the spacing of the frequencies.

    Returns:
      (b, dim) in float32: a t near 1000 leaves bfloat16 no digits for the sine.

    >>> timestep_embedding(jnp.array([0.0]), 4).tolist()
    [[1.0, 1.0, 0.0, 0.0]]
    """
    half = dim // 2
    # The exponents are rounded to float32 on purpose: that is what checkpoints were trained with.
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32)
    exponent = exponent / np.float32(half - freq_shift)
    freqs = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = t.astype(jnp.float32)[:, None] * freqs[None]
    parts = (
        [jnp.cos(angle), jnp.sin(angle)] if flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
    )
    return jnp.pad(jnp.concatenate(parts, -1), ((0, 0), (0, dim % 2)))
