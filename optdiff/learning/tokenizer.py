"""Learning a tokenizer from the captions that everything else learns from."""

import jax
import numpy as np

from optdiff.data.captioned_digits import Attributes, draw
from optdiff.data.captions import TRAINED, captions
from optdiff.nn.clip.bpe import train_tokenizer


def task(*, texts: int, vocab_size: int, length: int, seed: int = 0):
    """A CLIP tokenizer, learned from so many captions of digits; see `train_tokenizer`.

    Args:
      texts: captions, drawn like those that are learned from.
      vocab_size: the most entries.
      length: ids that a text encoder has positions for.
      seed: of the captions.

    >>> tokenizer = task(texts=500, vocab_size=600, length=16)
    >>> tokenizer.model_max_length
    16
    """
    shown = draw(jax.random.split(jax.random.key(seed), texts))
    templates = np.random.default_rng(seed).choice(TRAINED, texts)
    words = captions(Attributes(*(np.asarray(values) for values in shown)), templates)
    return train_tokenizer(words, vocab_size=vocab_size, length=length)
