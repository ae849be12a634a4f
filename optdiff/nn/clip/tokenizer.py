"""Prompts to token ids, by transformers' CLIP tokenizer and a checkpoint's own files.

This file owns the checks around it. transformers is imported when the first tokenizer is loaded,
because that takes seconds; torch is not needed.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")


def load_tokenizer(folder: str | Path) -> Any:
    """The CLIP tokenizer of a checkpoint's `tokenizer/` folder; never looks at the network.

    Args:
      folder: holds `vocab.json` and `merges.txt`, or `tokenizer.json`, and as a rule
        `tokenizer_config.json`, which says what pads: SDXL's second tokenizer pads with "!".

    Returns:
      A `transformers.CLIPTokenizer`.

    Raises:
      FileNotFoundError: if the vocabulary is not there (transformers would make up an empty one).
      ValueError: if the files are those of another kind of tokenizer.
    """
    folder = Path(folder)
    if not any(all((folder / name).is_file() for name in names) for names in _FILES):
        wanted = " or ".join(" and ".join(names) for names in _FILES)
        raise FileNotFoundError(f"no tokenizer in {folder}: expected {wanted}")
    config = folder / "tokenizer_config.json"
    kind = (
        json.loads(config.read_text("utf-8")).get("tokenizer_class") if config.is_file() else None
    )
    if kind not in (None, *_CLASSES):
        raise ValueError(f"{config}: tokenizer_class is {kind!r}, expected {_CLASSES[0]!r}")

    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def save_tokenizer(folder: str | Path, tokenizer: Any) -> None:
    """Write a tokenizer as `load_tokenizer`, transformers of any age and diffusers read it.

    Args:
      folder: where to write; made if it is not there.
      tokenizer: a `transformers.CLIPTokenizer`.
    """
    tokenizer.save_pretrained(folder)
    # tokenizer.json alone is enough for transformers 5; earlier ones want the two old files.
    tokenizer.backend_tokenizer.model.save(str(folder))


def tokenize(
    tokenizer: Any, prompts: str | Sequence[str], length: int = 77
) -> Int[np.ndarray, "b n"]:
    """Token ids of prompts: start, words, end, then padding up to `length`.

    Too long a prompt loses its last words, and a warning says which.

    Args:
      tokenizer: from `load_tokenizer`.
      prompts: one or several.
      length: how many ids a prompt becomes; what the text encoder has positions for.

    Returns:
      int32 ids (prompts, length).
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    # Cut and padded here: where transformers does it, each call changes the tokenizer, and other
    # threads that use it get ids of all lengths.
    padded = np.full((len(prompts), length), tokenizer.pad_token_id, np.int32)
    for row, prompt, ids in zip(
        padded, prompts, tokenizer(prompts, verbose=False).input_ids, strict=True
    ):
        fitting = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
        row[: len(fitting)] = fitting
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1])
            warnings.warn(
                f"prompt of {len(ids)} tokens, {length} fit: {lost!r} was cut off {prompt!r}",
                stacklevel=2,
            )
    return padded
