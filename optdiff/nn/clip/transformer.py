"""The pre-norm transformer layer that both of CLIP's towers stack (arXiv 2103.00020, sec. 2.4).

This file owns the layer and its norm; the product inside attention is in `nn/attention.py`, what
the towers put around their layers in `model.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from optdiff.nn.attention import attention
from optdiff.nn.clip.config import CLIPTextConfig, CLIPVisionConfig
from optdiff.nn.layers import Dtype, gelu
from optdiff.nn.linear import Linear

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": gelu,
}


class LayerNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias` over channels, in float32 at least."""

    def __init__(self, channels: int, *, eps: float, param_dtype: Dtype):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        scale, bias = (
            jnp.expand_dims(p[...].astype(wide.dtype), range(x.ndim - 1))
            for p in (self.scale, self.bias)
        )
        return (wide * scale + bias).astype(x.dtype)


class Layer(nnx.Module):
    """One pre-norm transformer layer: attention and an MLP, each on the normed input and added."""

    def __init__(
        self,
        config: CLIPTextConfig | CLIPVisionConfig,
        *,
        dtype: Dtype | None,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        width, inner, factor = (
            config.hidden_size,
            config.intermediate_size,
            config.initializer_factor,
        )
        # As CLIP was trained: what is added to the residual stream shrinks with the depth.
        residual = (2 * config.num_hidden_layers) ** -0.5

        def linear(inputs: int, outputs: int, std: float) -> Linear:
            return Linear(
                inputs, outputs, kernel_init=nnx.initializers.normal(std * factor),
                dtype=dtype, param_dtype=param_dtype, rngs=rngs,
            )  # fmt: skip

        norm: dict[str, Any] = {"eps": config.layer_norm_eps, "param_dtype": param_dtype}
        self.heads, self.act = config.num_attention_heads, ACTIVATIONS[config.hidden_act]
        self.norm1 = LayerNorm(width, **norm)
        self.q = linear(width, width, width**-0.5 * residual)
        self.k = linear(width, width, width**-0.5 * residual)
        self.v = linear(width, width, width**-0.5 * residual)
        self.out = linear(width, width, width**-0.5)
        self.norm2 = LayerNorm(width, **norm)
        self.fc1 = linear(width, inner, (2 * width) ** -0.5)
        self.fc2 = linear(inner, width, width**-0.5 * residual)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        mask: Bool[Array, "b2 1 1 n"] | None = None,
        causal: bool = False,
    ) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        q, k, v = (p(y).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        x = x + self.out(attention(q, k, v, mask=mask, causal=causal).reshape(x.shape))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))
