"""Captioned digits as a stream to learn from: pictures, what is said of them, what they show.

Endless, and a function of seed and index: example i is the same in whatever batch, on however many
hosts, before and after a restart.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from optdiff.data.captioned_digits import SIDE, Attributes, Who, draw, render, strokes
from optdiff.data.captions import HELD_OUT, TRAINED, captions, tells
from optdiff.keys import seed_key
from optdiff.types import Batch, Stream

Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "b n"]]
"""Texts to ids, (texts, tokens)."""


def captioned_digits(
    *,
    batch: int,
    seed: int = 0,
    who: Who = "generator",
    held_out: bool = False,
    side: int = SIDE,
    telling: Sequence[str] = (),
    alike: int = 1,
    tokenize: Tokenize | None = None,
    host: int = 0,
    hosts: int = 1,
) -> Stream:
    """A stream of captioned digits; its position is the index of the next example.

    Args:
      batch: examples in a batch of all hosts together.
      seed: another seed, other examples.
      who: whose strokes.
      held_out: show the combinations, and use the templates, that nothing learns from.
      side: height and width of the images in pixels.
      telling: attributes that every caption must tell, such as digit, ink and paper.
      alike: so many examples in a row share ink and paper, so that the digit must tell them apart:
        hard negatives for a contrastive loss (arXiv 2010.04592). Some share the digit, too; of
        held-out combinations, which have one digit to a pair of colours, all of them.
      tokenize: makes ids of captions; without it there are none in the batch.
      host, hosts: which share of every batch this process reads.

    Returns:
      A stream of `images` (b, side, side, 3) in [0, 1], `attributes` (b, 6) in the order of
      `Attributes`, and `ids` (b, tokens).

    Raises:
      ValueError: if a batch does not divide among the hosts, or nobody has these strokes.

    >>> stream = captioned_digits(batch=4, who="judge")
    >>> batch, position = stream.read(stream.start)
    >>> batch["images"].shape, batch["attributes"].shape, position
    ((4, 32, 32, 3), (4, 6), 4)
    """
    if batch % hosts:
        raise ValueError(f"a batch of {batch} does not divide among {hosts} hosts")
    share, ink = batch // hosts, jnp.asarray(strokes(who))
    known = HELD_OUT if held_out else TRAINED
    templates = np.array([t for t in known if tells(t) >= set(telling)])
    # Words are chosen on the host: on an accelerator, they would wait behind whatever it computes.
    cpu, device = jax.local_devices(backend="cpu")[0], jax.local_devices()[0]
    root = jax.device_put(seed_key(seed), cpu)

    def read(position: int) -> tuple[Batch, int]:
        indices = position + share * host + np.arange(share)
        attributes, words, keys = _choices(root, indices, held_out, alike, len(templates))
        shown = Attributes(*(np.asarray(values) for values in attributes))
        images = render(jax.device_put(keys, device), shown, ink, side)
        examples: dict[str, Any] = {"images": images, "attributes": np.stack(shown, -1)}
        if tokenize is not None:
            examples["ids"] = tokenize(captions(shown, templates[np.asarray(words)]))
        return examples, position + batch

    return Stream(0, read)


def digit_captions(count: int, *, seed: int = 0) -> list[str]:
    """Captions drawn like those of the examples that are learned from, for a tokenizer.

    Args:
      count: how many.
      seed: another seed, other captions.

    >>> len(digit_captions(3))
    3
    """
    shown = draw(jax.random.split(seed_key(seed), count))
    templates = np.random.default_rng(seed).choice(TRAINED, count)
    return captions(Attributes(*(np.asarray(values) for values in shown)), templates)


@partial(jax.jit, static_argnames=("held_out", "alike", "templates"))
def _choices(
    root: Key[Array, ""], indices: Int[Array, "b"], held_out: bool, alike: int, templates: int
):
    """Attributes of examples, which of the templates tells them, and the keys of their pictures."""

    def split(indices):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(root, indices)
        return jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)

    attribute_keys, picture_keys, word_keys = split(indices)
    words = jax.vmap(lambda key: jax.random.randint(key, (), 0, templates))(word_keys)
    colours = split(indices - indices % alike)[0] if alike > 1 else None
    return draw(attribute_keys, held_out, colours), words, picture_keys
