"""A CLIP tokenizer of one's own: byte pairs learnt from captions, in the published layout.

This file owns the learning. How text is cut into words (NFC, lower case, runs of letters, single
digits) is transformers' `CLIPTokenizer`, so that what is learnt fits what reads it. Files and ids
are in `tokenizer.py`.
"""

import json
from collections.abc import Iterable
from typing import Any

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
SMALLEST = 2 * 256 + 2
"""Entries without which some text would have no ids: each byte, within a word and at the end of
one, and the two tokens around a prompt."""


def byte_letters() -> list[str]:
    """The 256 letters that byte-level BPE writes bytes with, "!" first, as in CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    return [chr(c) for c in printable + others]


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 1024, length: int = 77) -> Any:
    """Learn a CLIP tokenizer: merge the most frequent pair, again and again (arXiv 1508.07909).

    The vocabulary has the order of CLIP's: 256 bytes, the same at the end of a word, what was
    merged, start, end. So any text has ids, and the end is the largest of them, which is what the
    older checkpoints' text encoders look for. The same texts give the same vocabulary, in any
    order: pairs that are equally frequent go by their place in it.

    Args:
      texts: captions to learn from; how often a word comes counts.
      vocab_size: the most entries, at least 514. There are fewer when every word of the texts is
        one token before that.
      length: the tokenizer's `model_max_length`, the ids that the text encoder has positions for.

    Returns:
      A `transformers.CLIPTokenizer` that pads with its end token; `len` is the vocabulary's size.

    Raises:
      ValueError: if `vocab_size` has no room for the bytes, or the texts have nothing to merge.

    >>> tokenizer = train_tokenizer(["a red seven", "a red 7"], length=8)
    >>> tokenizer.tokenize("A red seven!")
    ['a</w>', 'red</w>', 'seven</w>', '!</w>']
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer  # takes seconds, and reading needs none of this file

    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size={vocab_size}: at least {SMALLEST}, or some text would have no ids"
        )
    letters = byte_letters()
    letters += [letter + END_OF_WORD for letter in letters]
    learner = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    cutter = CLIPTokenizer().backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = cutter.normalizer, cutter.pre_tokenizer
    # As `special_tokens` the letters get their ids before any text is read. Left to the trainer,
    # those at the end of a word are numbered in the order of a hash table, and ties go by number.
    trainer = BpeTrainer(
        vocab_size=vocab_size - 2,
        special_tokens=letters,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    if vocab_size > SMALLEST and not merges:
        raise ValueError("no word of two letters in the texts: there is nothing to learn")
    tokens = [*letters, *dict.fromkeys("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=length
    )
