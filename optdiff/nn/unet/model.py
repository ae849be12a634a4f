"""The conditional UNet of Stable Diffusion 1.x, 2.x, XL and their small relatives.

This file owns the conditioning on time, classes and pooled text, and how the stages are joined;
the stages are in `blocks.py`, the fields of the config in `config.py`, the names that a checkpoint
gives the weights in `weights.py`. What x and t mean to a sampler is the denoiser's business.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from optdiff.nn.layers import (
    ACTIVATIONS,
    Conv,
    Dtype,
    GroupNorm,
    timestep_embedding,
)
from optdiff.nn.linear import Linear
from optdiff.nn.unet.blocks import DownBlock, MidBlock, UpBlock
from optdiff.nn.unet.config import UNetConfig


class TimeMLP(nnx.Module):
    """Two linear layers with an activation between and, where asked for, one after.

    `condition_dim` adds a bias-free projection of a second vector (a guidance embedding, say) to
    the input.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        act: str = "silu",
        post_act: str | None = None,
        condition_dim: int | None = None,
        rngs: nnx.Rngs,
        **types,
    ):
        self.linear_1 = Linear(in_dim, out_dim, rngs=rngs, **types)
        self.linear_2 = Linear(out_dim, out_dim, rngs=rngs, **types)
        self.cond_proj = (
            None
            if condition_dim is None
            else Linear(condition_dim, in_dim, use_bias=False, rngs=rngs, **types)
        )
        self.act = ACTIVATIONS[act]
        self.post_act = None if post_act is None else ACTIVATIONS[post_act]

    def __call__(
        self, x: Float[Array, "b i"], condition: Float[Array, "b j"] | None = None
    ) -> Float[Array, "b o"]:
        x = x if condition is None else x + self.cond_proj(condition)
        x = self.linear_2(self.act(self.linear_1(x)))
        return x if self.post_act is None else self.post_act(x)


def _class_embedding(config: UNetConfig, *, rngs: nnx.Rngs, **types) -> nnx.Module | None:
    """The module that turns class labels into a vector of the time embedding's width."""
    width, dim = config.time_embed_dim, config.projection_class_embeddings_input_dim
    match config.class_embed_type:
        case "timestep":
            time = config.block_out_channels[0]
            return TimeMLP(time, width, act=config.act_fn, rngs=rngs, **types)
        case "projection":
            return TimeMLP(dim, width, rngs=rngs, **types)
        case "simple_projection":
            return Linear(dim, width, rngs=rngs, **types)
        case None if config.num_class_embeds is not None:
            return nnx.Embed(config.num_class_embeds, width, rngs=rngs, **types)
    return None


class UNet(nnx.Module):
    """Predicts noise (or v, or x0: what it was trained for) from noisy latents.

    Args:
      config: the geometry.
      rngs: random keys for the initial parameters.
      dtype: what to compute in; norms, softmax and time embeddings stay in float32 at least.
      param_dtype: what to store.

    Use `graphdef, params = nnx.split(unet)` once and `nnx.merge(graphdef, params)` inside
    `jax.jit`, so that the weights are arguments of the program.

    >>> config = UNetConfig(block_out_channels=(32, 64), cross_attention_dim=16, layers_per_block=1,
    ...     down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    ...     up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    >>> import jax
    >>> def predict(latents, timestep, tokens):
    ...     return UNet(config, rngs=nnx.Rngs(0))(latents, timestep, tokens)
    >>> inputs = jnp.ones((2, 8, 8, 4)), jnp.array(999), jnp.ones((2, 7, 16))
    >>> jax.eval_shape(predict, *inputs).shape
    (2, 8, 8, 4)
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype = jnp.float32,
        param_dtype: Dtype = jnp.float32,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
        widths = config.block_out_channels
        self.config, self.dtype = config, dtype
        self.conv_in = Conv(
            config.in_channels, widths[0], config.conv_in_kernel, rngs=rngs, **types
        )
        self.time_embedding = TimeMLP(
            widths[0],
            config.time_embed_dim,
            act=config.act_fn,
            post_act=config.timestep_post_act,
            condition_dim=config.time_cond_proj_dim,
            rngs=rngs,
            **types,
        )
        self.class_embedding = _class_embedding(config, rngs=rngs, **types)
        self.add_embedding = (
            TimeMLP(
                config.projection_class_embeddings_input_dim,
                config.time_embed_dim,
                rngs=rngs,
                **types,
            )
            if config.addition_embed_type == "text_time"
            else None
        )
        self.encoder_hid_proj = (
            None
            if config.encoder_hid_dim is None
            else Linear(config.encoder_hid_dim, config.cross_attention_dim, rngs=rngs, **types)
        )
        stages = range(len(widths))
        self.down_blocks = nnx.List(DownBlock(i, config, rngs=rngs, **types) for i in stages)
        self.mid_block = (
            None if config.mid_block_type is None else MidBlock(config, rngs=rngs, **types)
        )
        self.up_blocks = nnx.List(UpBlock(i, config, rngs=rngs, **types) for i in stages)
        self.conv_norm_out = GroupNorm(
            widths[0], groups=config.norm_num_groups, eps=config.norm_eps, param_dtype=param_dtype
        )
        self.conv_out = Conv(
            widths[0], config.out_channels, config.conv_out_kernel, rngs=rngs, **types
        )

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        t: Float[Array, ""] | Float[Array, "b"] | Int[Array, ""] | Int[Array, "b"],
        context: Float[Array, "b tokens d"],
        *,
        added: Mapping[str, Array] | None = None,
        class_labels: Float[Array, "b ..."] | Int[Array, "b"] | None = None,
        timestep_cond: Float[Array, "b j"] | None = None,
    ) -> Float[Array, "b h w c2"]:
        """Evaluate the network.

        Args:
          x: noisy latents (b, h, w, in_channels); any height and width.
          t: the model's timestep, for all or one per sample; fractions allowed.
          context: what cross-attention looks at, text states (b, tokens, d).
          added: SDXL's added conditioning, `text_embeds` (b, d) and `time_ids` (b, n).
          class_labels: integers, timesteps or vectors, as `class_embed_type` wants them.
          timestep_cond: a vector added to the time embedding's input (b, time_cond_proj_dim).

        Returns:
          (b, h, w, out_channels), of the type of `x`.

        Raises:
          ValueError: conditioning that this config wants is missing, or it does not want it.
        """
        temb = self._embed_time(x.shape[0], t, added, class_labels, timestep_cond)
        context = context.astype(self.dtype)
        context = context if self.encoder_hid_proj is None else self.encoder_hid_proj(context)
        h = 2 * x - 1 if self.config.center_input_sample else x
        h = self.conv_in(h.astype(self.dtype))
        skips = [h]
        for block in self.down_blocks:
            images = block(h, temb, context)
            h = images[-1]
            skips += images
        h = h if self.mid_block is None else self.mid_block(h, temb, context)
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, mine = skips[:-count], skips[-count:]
            # An odd size came down rounded; only the next skip remembers what to go back to.
            size = skips[-1].shape[1:3] if skips else None
            h = block(h, mine, temb, context, size)
        h = self.conv_out(ACTIVATIONS[self.config.act_fn](self.conv_norm_out(h)))
        return h.astype(x.dtype)

    def _embed_time(
        self,
        batch: int,
        t: Array,
        added: Mapping[str, Array] | None,
        class_labels: Array | None,
        timestep_cond: Array | None,
    ) -> Float[Array, "b e"]:
        """All that the residual blocks are conditioned on, in one vector a sample."""
        self._check_conditions(added, class_labels, timestep_cond)
        config = self.config
        time = self._waves(jnp.broadcast_to(t, (batch,)), config.block_out_channels[0])
        temb = self.time_embedding(time, timestep_cond)
        if class_labels is not None:
            label = self._embed_class(class_labels)
            concat = config.class_embeddings_concat
            temb = jnp.concatenate([temb, label], -1) if concat else temb + label
        if added is not None:
            ids = self._waves(added["time_ids"].reshape(-1), config.addition_time_embed_dim)
            text = added["text_embeds"].astype(self.dtype)
            joined = jnp.concatenate([text, ids.reshape(batch, -1)], -1)
            temb = temb + self.add_embedding(joined)
        act = config.time_embedding_act_fn
        return temb if act is None else ACTIVATIONS[act](temb)

    def _check_conditions(
        self,
        added: Mapping[str, Array] | None,
        class_labels: Array | None,
        timestep_cond: Array | None,
    ) -> None:
        """Refuse conditioning that the config does not want, and the lack of what it wants."""
        config = self.config
        for name, value, wanted, field in (
            ("added", added, self.add_embedding is not None, "addition_embed_type"),
            ("class_labels", class_labels, config.has_classes, "class_embed_type"),
        ):
            if (value is not None) != wanted:
                raise ValueError(
                    f"unet: {name} is {'missing' if wanted else 'given'}, but the config has "
                    f"{field} = {getattr(config, field)!r}"
                )
        if added is not None and set(added) != {"text_embeds", "time_ids"}:
            raise ValueError(
                f"unet: added must hold text_embeds and time_ids, but holds {sorted(added)}"
            )
        if timestep_cond is not None and config.time_cond_proj_dim is None:
            raise ValueError("unet: timestep_cond is given, but time_cond_proj_dim is not set")

    def _waves(self, t: Float[Array, "n"] | Int[Array, "n"], dim: int) -> Float[Array, "n d"]:
        """Sines and cosines of numbers, in float32, then in the network's type."""
        flip, shift = self.config.flip_sin_to_cos, self.config.freq_shift
        waves = timestep_embedding(
            t.astype(jnp.float32), dim, flip_sin_to_cos=flip, freq_shift=shift
        )
        return waves.astype(self.dtype)

    def _embed_class(self, labels: Array) -> Float[Array, "b e"]:
        """Class labels, in whatever form the config wants them, as a vector a sample."""
        if self.config.class_embed_type == "timestep":
            labels = self._waves(labels, self.config.block_out_channels[0])
        if self.class_embedding is not None:
            labels = self.class_embedding(labels)
        return labels.astype(self.dtype)
