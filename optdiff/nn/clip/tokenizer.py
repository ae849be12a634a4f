"""Prompts to token ids, by transformers' CLIP tokenizer and a checkpoint's own files.

This file owns the checks around it. transformers is imported when the first tokenizer is loaded,
because that takes seconds; torch is not needed.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from optdiff.nn.tensorfile import read_json

_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
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
      ValueError: if the files are damaged, or those of another kind of tokenizer.
    """
    folder = Path(folder)
    if not any(all((folder / name).is_file() for name in names) for names in _FILES):
        wanted = " or ".join(" and ".join(names) for names in _FILES)
        raise FileNotFoundError(f"no tokenizer in {folder}: expected {wanted}")
    # transformers takes apart what it reads as it goes, with errors of all kinds.
    names = (*_SETTINGS, "tokenizer.json", "vocab.json")
    files = {name: read_json(folder / name) for name in names if (folder / name).is_file()}
    kind = files.get("tokenizer_config.json", {}).get("tokenizer_class")
    if kind not in (None, *_CLASSES):
        raise ValueError(
            f"{folder}/tokenizer_config.json: tokenizer_class is {kind!r}, expected {_CLASSES[0]!r}"
        )
    _check_ids(folder / "vocab.json", files.get("vocab.json", {}))

    # Without torch it warns of models, which nobody here asks it for.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        sides = {tokenizer.padding_side, tokenizer.truncation_side}
        ids = tokenizer("a", verbose=False).input_ids
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder}: no tokenizer that can be read ({reason[:200]})") from error
    if tokenizer.pad_token_id is None or sides != {"right"}:
        raise ValueError(
            f"{folder}: prompts are padded and cut at their end, this tokenizer does not"
        )
    if ids[0] != tokenizer.bos_token_id or ids[-1] != tokenizer.eos_token_id:
        raise ValueError(f"{folder}: a tokenizer that puts no start and end around a prompt")
    return tokenizer


def _check_ids(path: Path, vocabulary: Mapping[str, Any]) -> None:
    ids = list(vocabulary.values())
    wrong = [token for token, i in vocabulary.items() if type(i) is not int or not 0 <= i < 2**31]
    if wrong or len(set(ids)) < len(ids):
        raise ValueError(f"{path}: ids must be different natural numbers, as they are not of "
                         f"{wrong[:1] or 'two tokens'}")  # fmt: skip


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
