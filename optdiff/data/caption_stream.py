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
from jaxtyping import Int

from optdiff.data.captioned_digits import SIDE, Attributes, Who, draw, render, strokes
from optdiff.data.captions import HELD_OUT, TRAINED, captions, tells
from optdiff.types import Batch, Keys, Stream

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
      tokenize: makes ids of captions; without it there are none in the batch.
      host, hosts: which share of every batch this process reads.

    Returns:
      A stream of `images` (b, side, side, 3) in [0, 1], `attributes` (b, 6) in the order of
      `Attributes`, and `ids` (b, tokens).

    Raises:
      ValueError: if a batch does not divide among the hosts.

    >>> stream = captioned_digits(batch=4, who="judge")
    >>> batch, position = stream.read(stream.start)
    >>> batch["images"].shape, batch["attributes"].shape, position
    ((4, 32, 32, 3), (4, 6), 4)
    """
    if batch % hosts:
        raise ValueError(f"a batch of {batch} does not divide among {hosts} hosts")
    share = batch // hosts
    root, ink = jax.random.key(seed), jnp.asarray(strokes(who))
    known = HELD_OUT if held_out else TRAINED
    templates = np.array([t for t in known if tells(t) >= set(telling)])

    def read(position: int) -> tuple[Batch, int]:
        keys = _keys(root, position + share * host + jnp.arange(share))
        images, attributes, words = _examples(keys, ink, held_out, side, len(templates))
        examples: dict[str, Any] = {"images": images, "attributes": jnp.stack(attributes, -1)}
        if tokenize is not None:
            shown = Attributes(*(np.asarray(values) for values in attributes))
            examples["ids"] = tokenize(captions(shown, templates[np.asarray(words)]))
        return examples, position + batch

    return Stream(0, read)


_keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


@partial(jax.jit, static_argnames=("held_out", "side", "templates"))
def _examples(keys: Keys, ink, held_out: bool, side: int, templates: int):
    attribute_keys, picture_keys, word_keys = jax.vmap(
        lambda key: jax.random.split(key, 3), out_axes=1
    )(keys)
    attributes = draw(attribute_keys, held_out)
    words = jax.vmap(lambda key: jax.random.randint(key, (), 0, templates))(word_keys)
    return render(picture_keys, attributes, ink, side), attributes, words
