"""Learning CLIP: two towers and a temperature, so that a picture finds its caption among others."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
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
from optdiff.nn.clip.config import CLIPConfig
from optdiff.nn.clip.images import preprocessor, to_clip
from optdiff.nn.clip.model import CLIP, TextEncoder
from optdiff.nn.network import Network, network
from optdiff.nn.tensorfile import write_json
from optdiff.types import Batch, Stream

MOST_SCALE = 100.0
"""The temperature's limit, as in arXiv 2103.00020, section 2.5."""

CANDIDATES = 64
"""How many captions a picture has to find its own among, in `scores`."""


def contrastive(
    clip: Network, frozen: None, batch: Batch, key: Array
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Symmetric cross-entropy of who belongs to whom (arXiv 2103.00020, figure 3).

    Args:
      clip: what learns.
      frozen: nothing.
      batch: `images` in [0, 1] and the `ids` of their captions.
      key: unused; nothing is drawn.
    """
    answer = clip.module()(batch["ids"], to_clip(batch["images"]))
    scale = jnp.minimum(jnp.exp(clip.weights["logit_scale"]), MOST_SCALE)
    logits = scale * answer.image_features @ answer.text_features.T
    own = jnp.arange(len(logits))
    loss = optax.softmax_cross_entropy_with_integer_labels
    both = (loss(logits, own).mean() + loss(logits.T, own).mean()) / 2.0
    return both, {"retrieval": jnp.mean(jnp.argmax(logits, -1) == own), "scale": scale}


def task(
    *,
    data: Callable[..., Stream],
    held_out: Callable[..., Stream],
    config: dict[str, Any],
    tokenizer: Any,
    seed: int,
    dtype: str = "float32",
    scored: int = 64,
) -> Task:
    """CLIP to learn.

    Args:
      data: `data(tokenize=...)` is a stream of images and ids.
      held_out: `held_out(batch=..., tokenize=...)` likewise, of pictures to be scored on.
      config: what a `config.json` of transformers' CLIPModel holds; the vocabulary's size
        and special ids come from the tokenizer.
      tokenizer: from `optdiff.nn.clip.bpe` or a checkpoint.
      seed: of the first weights.
      dtype: what to compute in; weights are float32.
      scored: sets of `CANDIDATES` held-out pictures that scores are measured on.
    """
    geometry = CLIPConfig.from_dict(_with_words(config, tokenizer))
    tokenize = padded(tokenizer, geometry.text.max_position_embeddings)
    clip = CLIP(geometry, rngs=nnx.Rngs(seed_key(seed)), dtype=jnp.dtype(dtype))
    unseen = held_out(batch=16 * CANDIDATES, tokenize=tokenize)

    def scores(learned: Network) -> dict[str, float]:
        position, shares = unseen.start, []
        for _ in range(scored):
            if len(shares) >= scored:
                break
            batch, position = unseen.read(position)
            image, text = features(learned, batch["images"], batch["ids"])
            # Apart by digit, ink and paper; where they are not known, by the caption itself.
            about = batch["attributes"][:, :3] if "attributes" in batch else batch["ids"]
            for chosen in sets_apart(np.asarray(about), CANDIDATES):
                best = np.argmax(image[chosen] @ text[chosen].T, -1)
                shares.append(np.mean(best == np.arange(CANDIDATES)))
        if not shares:  # never so many captions that differ
            return {}
        return {f"retrieval_among_{CANDIDATES}": float(np.mean(shares[:scored]))}

    def save(learned: Network, path: Path) -> None:
        save_module(path, learned.module())
        write_json(path / "preprocessor_config.json", preprocessor(geometry.vision.image_size))

    return Task(
        params=network(clip),
        frozen=None,
        loss=contrastive,
        stream=data(tokenize=tokenize),
        scores=scores,
        pictures=None,
        save=save,
    )


def padded(tokenizer: Any, length: int) -> Callable[[Sequence[str]], Int[np.ndarray, "b n"]]:
    """What makes ids (texts, length) of texts as `tokenize` does, in a hundredth of its time: many
    at once, in native code, and without a look at what was cut off.

    It pads by a copy of its own, which nothing changes later: a thread reads ahead by it while
    others use the tokenizer, whose padding transformers switches as each call wants it.
    """
    fast = copy.deepcopy(tokenizer.backend_tokenizer)
    fast.enable_truncation(length)
    fast.enable_padding(length=length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)

    def ids(texts: Sequence[str]) -> Int[np.ndarray, "b n"]:
        return np.array([encoding.ids for encoding in fast.encode_batch(list(texts))], np.int32)

    return ids


def _with_words(config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A CLIP's config with what the tokenizer settles of its text tower."""
    settled = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return config | {"text_config": config["text_config"] | settled}


@jax.jit
def features(
    clip: Network, images: Float[Array, "b h w c"], ids: Array
) -> tuple[Float[Array, "b p"], Float[Array, "b p"]]:
    """Images (in [0, 1]) and texts on the unit sphere."""
    answer = clip.module()(ids, to_clip(images))
    return answer.image_features, answer.text_features


def sets_apart(about: Int[np.ndarray, "b n"], size: int) -> list[Int[np.ndarray, "_"]]:
    """Places of examples, in sets of `size` of which no two have the same row in `about`."""
    sets: list[dict[tuple, int]] = [{}]
    for place, key in enumerate(map(tuple, about.tolist())):
        if len(sets[-1]) == size:
            sets.append({})
        sets[-1].setdefault(key, place)
    return [np.array(list(chosen.values())) for chosen in sets if len(chosen) == size]


def text_encoder(clip: CLIP) -> TextEncoder:
    """The text tower of a CLIP as a generator takes it: its weights, shared, without projection."""
    tower = nnx.clone(clip.text)
    tower.projection = None
    tower.config = dataclasses.replace(clip.text.config, with_projection=False)
    return tower
