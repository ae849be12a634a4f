"""A pipeline's `model_index.json`: which parts it has, of which classes, and what else it says.

This file owns the names of the parts and what an index must hold. The parts themselves are read and
written in `checkpoint.py`.
"""

from pathlib import Path
from typing import Any

from optdiff.nn.tensorfile import CheckpointError, read_json

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
WORDS_OF = dict(zip(TEXT_ENCODERS, TOKENIZERS, strict=True))
MODULES = ("unet", "vae", *TEXT_ENCODERS)
EMPTY = [None, None]  # in model_index.json, a place without a part
# Parts of a published pipeline that take no part in making an image.
_BYSTANDERS = ("safety_checker", "feature_extractor")


def read_index(root: Path) -> tuple[dict[str, str | None], dict[str, Any]]:
    """The class of each part in `model_index.json`, None for an empty place, and the rest of it."""
    path = root / "model_index.json"
    index = read_json(path)
    known = {*MODULES, *TOKENIZERS, "scheduler", *_BYSTANDERS}
    # A name that begins with "_" is diffusers' own note, such as `_ignore_files`, a list of files
    # that its downloads pass over: of a folder as it stands, and not of one that is saved from it.
    index.pop("_ignore_files", None)
    parts = {k: v for k, v in index.items() if (isinstance(v, list) and k[:1] != "_") or k in known}
    problems = [
        f"{part} = {entry!r} is no part of a pipeline here"
        for part, entry in parts.items()
        if entry != EMPTY and not (part in known and _names_a_class(entry))
    ]
    needed = ("unet", "vae", "scheduler")
    problems += [f"{part} is missing" for part in needed if parts.get(part, EMPTY) == EMPTY]
    problems += [
        f"{words} is missing, which {part} needs"
        for part, words in WORDS_OF.items()
        if parts.get(part, EMPTY) != EMPTY and parts.get(words, EMPTY) == EMPTY
    ]
    if problems:
        raise CheckpointError(f"{path}: " + "; ".join(problems))
    return {k: v[1] for k, v in parts.items()}, {k: v for k, v in index.items() if k not in parts}


def _names_a_class(entry: Any) -> bool:
    return isinstance(entry, list) and [type(word) for word in entry] == [str, str]
