"""Learning the judge: which digit, in which ink, on what paper.

It learns from strokes that the generator never saw, and the generator's from others: what it says
of generated images is nobody's echo.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from optdiff.keys import seed_key
from optdiff.learning.task import Task
from optdiff.nn.checkpoint import save_module
from optdiff.nn.judge.model import Judge, JudgeConfig
from optdiff.nn.network import Network, network
from optdiff.types import Batch, Stream

QUESTIONS = ("digit", "ink", "paper")
"""What the judge answers, and the first attributes of a captioned digit."""


def classification(
    judge: Network, frozen: None, batch: Batch, key: Array, *, noise: float = 0.05
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Cross-entropy of the three answers, summed.

    Args:
      judge: what learns.
      frozen: nothing.
      batch: `images` in [0, 1] and their `attributes`.
      key: draws the noise.
      noise: images are seen under Gaussian noise of up to this standard deviation, so that a
        judgement does not hang on traces that only a camera, or only a decoder, leaves.
    """
    level_key, noise_key = jax.random.split(key)
    images = batch["images"]
    level = jax.random.uniform(level_key, (len(images), 1, 1, 1), maxval=noise)
    verdict = judge.module()(images + level * jax.random.normal(noise_key, images.shape))
    losses, right = [], {}
    for place, name in enumerate(QUESTIONS):
        logits, answer = getattr(verdict, name), batch["attributes"][:, place]
        losses.append(optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean())
        right[name] = jnp.mean(jnp.argmax(logits, -1) == answer)
    return sum(losses), right


def task(
    *,
    data: Callable[..., Stream],
    held_out: Callable[..., Stream],
    config: dict[str, Any],
    seed: int,
    noise: float = 0.05,
    dtype: str = "float32",
    scored: int = 4096,
) -> Task:
    """The judge to learn.

    Args:
      data: `data()` is a stream of captioned digits.
      held_out: `held_out(batch=...)` likewise, of pictures to be scored on.
      config: fields of `JudgeConfig`.
      seed: of the first weights.
      noise: see `classification`.
      dtype: unused; runs give it to all tasks, but the judge computes in float32 whatever the
        device does best, for its features define the metrics.
      scored: held-out images that scores are measured on.

    Raises:
      ValueError: if the data's batches have no `attributes`.
    """
    del dtype
    geometry = JudgeConfig.from_dict(config)
    stream = data()
    if "attributes" not in stream.read(stream.start)[0]:
        raise ValueError(
            "a judge learns which digit, ink and paper images show, and nothing tells of these "
            "images: data=captioned_digits does"
        )
    unseen = held_out(batch=scored)

    def scores(judge: Network) -> dict[str, float]:
        batch, _ = unseen.read(unseen.start)
        answers = judged(judge, batch["images"])
        return {f"{k}_accuracy": v for k, v in accuracies(answers, batch["attributes"]).items()}

    def save(judge: Network, path: Path) -> None:
        save_module(path, judge.module())

    return Task(
        params=network(Judge(geometry, rngs=nnx.Rngs(seed_key(seed)))),
        frozen=None,
        loss=partial(classification, noise=noise),
        stream=stream,
        scores=scores,
        pictures=None,
        save=save,
    )


@jax.jit
def _judged(judge: Network, images: Array) -> tuple[Array, ...]:
    verdict = judge.module()(images)
    return tuple(jnp.argmax(getattr(verdict, name), -1) for name in QUESTIONS)


def judged(judge: Network, images: Array, at_once: int = 512) -> Int[np.ndarray, "b 3"]:
    """The judge's answers to the three questions, (b, 3)."""
    parts = [
        np.stack(_judged(judge, images[i : i + at_once]), -1)
        for i in range(0, len(images), at_once)
    ]
    return np.concatenate(parts)


def accuracies(answers: Int[np.ndarray, "b 3"], attributes: Array) -> dict[str, float]:
    """The share of right answers to each question."""
    right = answers == np.asarray(attributes)[:, : len(QUESTIONS)]
    return dict(zip(QUESTIONS, right.mean(0).tolist(), strict=True))
