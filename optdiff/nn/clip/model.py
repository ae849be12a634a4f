"""CLIP (arXiv 2103.00020): the text encoder, the vision encoder, and both with a temperature.

This file owns what goes into the transformer of `transformer.py` and what is read off it. Token
ids come from `tokenizer.py`, foreign tensor names from `weights.py`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from optdiff.nn.clip.config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from optdiff.nn.clip.transformer import Layer, LayerNorm
from optdiff.nn.layers import Dtype
from optdiff.nn.linear import Linear

# Files before transformers 4.31 gave this id, which no sequence ends with.
LEGACY_EOS = 2


class Encoding(NamedTuple):
    """What a tower says about its input.

    Attributes:
      last_hidden_state: (b, n, width), after the final norm for text, before any for images.
      hidden_states: what went into each layer, then what left the last one, none of it normed;
        `hidden_states[-2]` is the penultimate layer's output.
      pooled: (b, width), one normed token: the end of the text, or the class token.
      projected: (b, projection_dim), or None for a tower without projection.
    """

    last_hidden_state: Float[Array, "b n d"]
    hidden_states: tuple[Float[Array, "b n d"], ...]
    pooled: Float[Array, "b d"]
    projected: Float[Array, "b p"] | None


class Similarity(NamedTuple):
    """How well images and texts agree.

    Attributes:
      image_features: (images, p), of unit length.
      text_features: (texts, p), of unit length.
      logits: (images, texts), their cosines times the temperature; its transpose is per text.
    """

    image_features: Float[Array, "i p"]
    text_features: Float[Array, "t p"]
    logits: Float[Array, "i t"]


class TextEncoder(nnx.Module):
    """CLIP's text tower (arXiv 2103.00020, sec. 2.4): token ids to an `Encoding`.

    Args:
      config: the geometry.
      dtype: what to compute in; the parameters' type if None.
      param_dtype: what to store.
      rngs: random keys for the initial parameters.

    >>> import jax
    >>> def encode(ids):
    ...     return TextEncoder(CLIPTextConfig(num_hidden_layers=1), rngs=nnx.Rngs(0))(ids)
    >>> jax.eval_shape(encode, jnp.array([[49406, 320, 49407]])).last_hidden_state.shape
    (1, 3, 512)
    """

    def __init__(
        self,
        config: CLIPTextConfig,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width, factor = config.hidden_size, config.initializer_factor
        normal = nnx.initializers.normal
        self.config, self.dtype = config, dtype
        self.token_embedding = nnx.Param(
            normal(0.02 * factor)(rngs.params(), (config.vocab_size, width), param_dtype)
        )
        self.position_embedding = nnx.Param(
            normal(0.02 * factor)(
                rngs.params(), (config.max_position_embeddings, width), param_dtype
            )
        )
        self.layers = nnx.List(Layer(config, **types) for _ in range(config.num_hidden_layers))
        self.final_norm = LayerNorm(width, eps=config.layer_norm_eps, param_dtype=param_dtype)
        self.projection = _projection(config, **types)

    def __call__(self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None) -> Encoding:
        """Encode token ids.

        Args:
          ids: (b, n) from `tokenize`, n at most `max_position_embeddings`. An id outside the
            vocabulary encodes to NaN.
          mask: (b, n), False for tokens that no other may look at; None for Stable Diffusion,
            whose padding is looked at.

        Returns:
          The `Encoding`; `pooled` is the final norm of the token that ends the text (of the first
          token where none does).

        Raises:
          ValueError: for more tokens than there are positions.
        """
        n, positions = ids.shape[1], self.config.max_position_embeddings
        if n > positions:
            raise ValueError(f"{n} tokens, but this text encoder has {positions} positions")
        dtype = self.dtype or self.token_embedding.dtype
        # jnp.take fills what is out of range with NaN, where indexing would clamp.
        x = jnp.take(self.token_embedding[...], ids, axis=0).astype(dtype)
        states = [x + self.position_embedding[...][None, :n].astype(dtype)]
        keys = None if mask is None else mask[:, None, None]  # (b, 1, 1, n)
        for layer in self.layers:
            states.append(layer(states[-1], mask=keys, causal=True))
        last = self.final_norm(states[-1])
        legacy = self.config.eos_token_id == LEGACY_EOS
        end = jnp.argmax(ids if legacy else ids == self.config.eos_token_id, -1)  # (b,)
        pooled = jnp.take_along_axis(last, end[:, None, None], 1)[:, 0]
        projected = None if self.projection is None else self.projection(pooled)
        return Encoding(last, tuple(states), pooled, projected)


class VisionEncoder(nnx.Module):
    """CLIP's vision tower, a ViT (arXiv 2010.11929, eq. 1 to 4): images to an `Encoding`.

    Args:
      config: the geometry.
      dtype: what to compute in; the parameters' type if None.
      param_dtype: what to store.
      rngs: random keys for the initial parameters.

    >>> import jax
    >>> def encode(images):
    ...     return VisionEncoder(CLIPVisionConfig(num_hidden_layers=1), rngs=nnx.Rngs(0))(images)
    >>> jax.eval_shape(encode, jnp.zeros((1, 224, 224, 3))).last_hidden_state.shape
    (1, 50, 768)
    """

    def __init__(
        self,
        config: CLIPVisionConfig,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        norm: dict[str, Any] = {"eps": config.layer_norm_eps, "param_dtype": param_dtype}
        width, patch, factor = config.hidden_size, config.patch_size, config.initializer_factor
        spread = nnx.initializers.normal(config.initializer_range * factor)
        self.config, self.dtype = config, dtype
        self.class_embedding = nnx.Param(
            nnx.initializers.normal(width**-0.5 * factor)(rngs.params(), (width,), param_dtype)
        )
        self.patch_embedding = nnx.Conv(
            config.num_channels, width, (patch, patch), strides=(patch, patch),
            padding="VALID", use_bias=False, kernel_init=spread, **types,
        )  # fmt: skip
        tokens = (config.image_size // patch) ** 2 + 1
        self.position_embedding = nnx.Param(spread(rngs.params(), (tokens, width), param_dtype))
        self.pre_norm = LayerNorm(width, **norm)
        self.layers = nnx.List(Layer(config, **types) for _ in range(config.num_hidden_layers))
        self.post_norm = LayerNorm(width, **norm)
        self.projection = _projection(config, **types)

    def __call__(self, images: Float[Array, "b h w c"]) -> Encoding:
        """Encode images.

        Args:
          images: (b, image_size, image_size, num_channels), normalized as the checkpoint's
            `preprocessor_config.json` says.

        Returns:
          The `Encoding`, whose first token is the class token.

        Raises:
          ValueError: for images of another size.
        """
        side = self.config.image_size
        if images.shape[1:3] != (side, side):
            raise ValueError(
                f"images of {images.shape[1]}x{images.shape[2]}, but this vision encoder takes "
                f"{side}x{side}: resize them first"
            )
        dtype = self.dtype or self.class_embedding.dtype
        patches = self.patch_embedding(images.astype(dtype))
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...], (len(images), 1, patches.shape[-1]))
        x = jnp.concatenate([first.astype(dtype), patches], 1)
        x = x + self.position_embedding[...][None].astype(dtype)
        states = [self.pre_norm(x)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        pooled = self.post_norm(states[-1][:, 0])
        projected = None if self.projection is None else self.projection(pooled)
        return Encoding(states[-1], tuple(states), pooled, projected)


class CLIP(nnx.Module):
    """Both towers and a learned temperature: do a text and an image belong together?

    `logits = exp(logit_scale) * cos(image, text)` (arXiv 2103.00020, fig. 3).

    Args:
      config: the geometry.
      dtype: what to compute in; the parameters' type if None.
      param_dtype: what to store.
      rngs: random keys for the initial parameters.
    """

    def __init__(
        self,
        config: CLIPConfig,
        *,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.text = TextEncoder(config.text, **types)
        self.vision = VisionEncoder(config.vision, **types)
        self.logit_scale = nnx.Param(jnp.asarray(config.logit_scale_init_value, param_dtype))

    def text_features(
        self, ids: Int[Array, "t n"], mask: Bool[Array, "t n"] | None = None
    ) -> Float[Array, "t p"]:
        """Texts on the unit sphere, (texts, projection_dim), in float32 at least."""
        return _unit(self.text(ids, mask).projected)

    def image_features(self, images: Float[Array, "i h w c"]) -> Float[Array, "i p"]:
        """Images on the unit sphere, (images, projection_dim), in float32 at least."""
        return _unit(self.vision(images).projected)

    def __call__(
        self,
        ids: Int[Array, "t n"],
        images: Float[Array, "i h w c"],
        mask: Bool[Array, "t n"] | None = None,
    ) -> Similarity:
        """The features of texts and images and how well each pair agrees."""
        text, image = self.text_features(ids, mask), self.image_features(images)
        scale = jnp.exp(self.logit_scale[...].astype(text.dtype))
        return Similarity(image, text, scale * (image @ text.T))


def _projection(config: CLIPTextConfig | CLIPVisionConfig, **types: Any) -> Linear | None:
    if not config.with_projection:
        return None
    normal = nnx.initializers.normal(config.hidden_size**-0.5 * config.initializer_factor)
    return Linear(
        config.hidden_size, config.projection_dim, use_bias=False, kernel_init=normal, **types
    )


def _unit(x: Float[Array, "b p"]) -> Float[Array, "b p"]:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
