"""Learning the denoiser: what was the noise (or the data, or anything between) in noisy latents?

The autoencoder and the text encoder were learned before and are frozen. What is predicted, at which
levels, how wrong an answer is, and whether the network sees the level at all: each is an argument.
What is predicted, and whether from the level, stands in the scheduler's config, which is saved with
the weights, so that those who sample read what was trained.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from optdiff.denoisers import Scaling, ScalingFn
from optdiff.keys import seed_key
from optdiff.learning.clip import padded, text_encoder
from optdiff.learning.distances import Distance, squared
from optdiff.learning.noise_levels import NoiseLevels, uniform_time
from optdiff.learning.precision import cast
from optdiff.learning.task import Loss, Task
from optdiff.learning.vae import perceived
from optdiff.nn.checkpoint import Pipeline, save
from optdiff.nn.network import Network, network
from optdiff.nn.unet.config import UNetConfig
from optdiff.nn.unet.model import UNet
from optdiff.scheduler_config import read
from optdiff.types import Batch, NoiseSchedule, Stream, expand


class Teachers(NamedTuple):
    """What a denoiser learns with: `vae` makes latents, `text` (a text encoder) context, `blank`
    (1, tokens) are the ids of no caption, and `clip` judges pictures, None unless it must."""

    vae: Network
    text: Network
    blank: Int[Array, "1 n"]
    clip: Network | None = None


def denoising(
    unet: Network,
    teachers: Teachers,
    batch: Batch,
    key: Array,
    *,
    schedule: NoiseSchedule,
    scaling: ScalingFn,
    levels: NoiseLevels = uniform_time,
    distance: Distance = squared,
    perceptual: float = 0.0,
    dropout: float = 0.1,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`distance(F(c_in x, c_noise), (x0 - c_skip x) / c_out)`, x = x0 + sigma n: the network is
    asked for what makes the denoiser `c_skip x + c_out F` right (arXiv 2206.00364, equation 8, of
    unit weight), whichever parameterization the scaling is: the noise itself, for `eps_scaling`.

    Args:
      unet: what learns.
      teachers: frozen.
      batch: `images` in [0, 1], the `ids` of their captions.
      key: draws levels, noise and which captions are dropped.
      schedule: the levels to be trained on.
      scaling: what the network predicts, and sees of the level: see `denoisers`.
      levels: the distribution of sigma.
      distance: between answer and target.
      perceptual: weight of the distance between CLIP's features of the decoded denoised latents
        and of the decoded latents.
      dropout: share of captions that become none, for classifier-free guidance (arXiv 2207.12598).
    """
    level_key, noise_key, drop_key = jax.random.split(key, 3)
    images = (2.0 * batch["images"] - 1.0).astype(jax.tree.leaves(teachers.vae)[0].dtype)
    x0 = jax.lax.stop_gradient(teachers.vae.module().encode(images).mode()).astype(jnp.float32)
    dropped = jax.random.bernoulli(drop_key, dropout, (len(x0), 1))
    ids = jnp.where(dropped, teachers.blank, batch["ids"])
    context = teachers.text.module()(ids).last_hidden_state
    sigma = levels(schedule, level_key, len(x0)).astype(jnp.float32)
    x = x0 + expand(sigma, x0) * jax.random.normal(noise_key, x0.shape, x0.dtype)
    coefficients = scaling(schedule, sigma)
    c = Scaling(*(expand(value, x) for value in coefficients))
    answer = unet.module()(c.c_in * x, coefficients.c_noise, context)
    loss = distance(answer, (x0 - c.c_skip * x) / c.c_out)
    metrics = {"distance": loss}
    if perceptual:
        vae = teachers.vae.module()
        denoised = vae.decode(c.c_skip * x + c.c_out * answer)
        metrics["perceptual"] = perceived(teachers.clip, denoised, vae.decode(x0))
        loss += perceptual * metrics["perceptual"]
    return loss, metrics


def task(
    *,
    data: Callable[..., Stream],
    held_out: Callable[..., Stream],
    config: dict[str, Any],
    tokenizer: Any,
    clip: nnx.Module,
    vae: nnx.Module,
    scheduler: Mapping[str, Any],
    seed: int,
    levels: NoiseLevels = uniform_time,
    distance: Distance = squared,
    perceptual: float = 0.0,
    dropout: float = 0.1,
    dtype: str = "float32",
    scored: int = 2048,
    pictures: Callable[[Pipeline], Any] | None = None,
) -> Task:
    """The denoiser to learn.

    Args:
      data: `data(tokenize=...)` is a stream of images and ids.
      held_out: `held_out(batch=..., tokenize=...)` likewise, of pictures to be scored on.
      config: fields of diffusers' UNet2DConditionModel; channels, size and the context's width
        come from the autoencoder and CLIP.
      tokenizer, clip, vae: learned before; CLIP's text tower is the text encoder.
      scheduler: the `scheduler_config.json` to be saved with the weights. It says which levels are
        trained on, what is predicted and from what: see `scheduler_config.read`.
      seed: of the first weights.
      levels, distance, perceptual, dropout: see `denoising`.
      dtype: what to compute in; weights that learn or are saved are float32.
      scored: held-out images that the loss is measured on.
      pictures: makes pictures of a pipeline, to look at while it learns.
    """
    encoder, precision = text_encoder(clip), jnp.dtype(dtype)
    tokenize = padded(tokenizer, encoder.config.max_position_embeddings)
    blank, judge = jnp.asarray(tokenize([""])), network(clip) if perceptual else None
    teachers = cast(Teachers(network(vae), network(encoder), blank, judge), precision)
    trained = read(scheduler)
    options = {"levels": levels, "distance": distance, "perceptual": perceptual}
    options |= {"schedule": trained.schedule, "scaling": trained.scaling, "dropout": dropout}
    loss = partial(denoising, **options)
    unet = UNet(_geometry(config, vae, encoder), rngs=nnx.Rngs(seed_key(seed)), dtype=precision)
    if scheduler.get("time_conditioning"):  # what everybody expects; diffusers warns of the field
        scheduler = {k: v for k, v in scheduler.items() if k != "time_conditioning"}

    def pipeline(learned: Network) -> Pipeline:
        return Pipeline(learned.module(), vae, (encoder,), (tokenizer,), scheduler)

    return Task(
        params=network(unet),
        frozen=teachers,
        loss=loss,
        stream=data(tokenize=tokenize),
        scores=_scores(loss, teachers, held_out(batch=scored, tokenize=tokenize)),
        pictures=None if pictures is None else lambda learned: pictures(pipeline(learned)),
        save=lambda learned, path: save(path, pipeline(learned)),
    )


def _geometry(config: dict[str, Any], vae: nnx.Module, encoder: nnx.Module) -> UNetConfig:
    """A UNet's config with what the networks around it settle."""
    width, channels = encoder.config.hidden_size, vae.config.latent_channels
    settled = {"in_channels": channels, "out_channels": channels, "cross_attention_dim": width}
    settled["sample_size"] = vae.config.sample_size >> (len(vae.config.block_out_channels) - 1)
    return UNetConfig.from_dict(config | settled)


def _scores(
    loss: Loss, teachers: Teachers, held_out: Stream
) -> Callable[[Network], dict[str, float]]:
    """The loss on a batch that nothing learns from, always with the same noise."""
    measure = jax.jit(loss)

    def scores(learned: Network) -> dict[str, float]:
        batch, _ = held_out.read(held_out.start)
        return {"held_out_loss": float(measure(learned, teachers, batch, jax.random.key(0))[0])}

    return scores
