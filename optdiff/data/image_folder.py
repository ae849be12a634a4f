"""A folder of images with captions in `metadata.jsonl`, as Hugging Face's imagefolder has it."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optdiff.data.image_text import (
    Broken,
    Example,
    caption_of,
    image_text_stream,
    left_out,
    parse,
    utf8,
)
from optdiff.types import Stream

METADATA = "metadata.jsonl"


def image_folder(
    path: str | Path,
    *,
    file: str = "file_name",
    text: str = "text",
    broken: Broken = warnings.warn,
    **options: Any,
) -> Stream:
    """A stream of a folder's images and captions, shuffled anew each epoch.

    Each line of `metadata.jsonl` names an image, relative to the folder, and says its caption:
    `{"file_name": "0001.png", "text": "a red seven"}`. Lines that cannot be read, that have no
    caption or whose image is not there are left out, and told to `broken` in one message; what
    becomes of images that do not decode is in `image_text_stream`.

    Args:
      path: the folder.
      file, text: the columns of the image's name and of the caption.
      broken: hears of what cannot be used; by default it warns. If it raises, nothing is read.
      **options: `size`, `batch`, `seed`, `tokenize`, `host`, `hosts` and `threads`, as for
        `image_text_stream`.

    Returns:
      A stream of `images` (b, size, size, 3) in [0, 1] and `ids` (b, tokens).

    Raises:
      FileNotFoundError: if there is no `metadata.jsonl`.
      ValueError: if no line of it can be used, or a batch does not divide among the hosts.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (40, 30)).save(f"{folder}/0.png")
    ...     row = '{"file_name": "0.png", "text": "a night without stars"}'
    ...     _ = Path(folder, METADATA).write_text(row)
    ...     stream = image_folder(folder, size=8, batch=2)
    ...     batch, position = stream.read(stream.start)
    >>> batch["images"].shape, position
    ((2, 8, 8, 3), {'epoch': 2, 'part': 0, 'taken': 0})
    """
    examples = _examples(Path(path) / METADATA, file, text, broken)
    return image_text_stream([Path(path)], lambda _: examples, broken=broken, **options)


def folder_captions(
    path: str | Path, *, file: str = "file_name", text: str = "text", broken: Broken = warnings.warn
) -> list[str]:
    """The captions that `image_folder` reads with the images, in the order of their lines: what a
    tokenizer learns from. Arguments and errors are those of `image_folder`.
    """
    return [example.caption for example in _examples(Path(path) / METADATA, file, text, broken)]


def folder_files(path: str | Path, *, file: str = "file_name", text: str = "text") -> list[Path]:
    """The files that `image_folder` reads: `metadata.jsonl` and the images that it takes from it.
    Arguments and errors are those of `image_folder`.
    """
    metadata = Path(path) / METADATA
    examples = _examples(metadata, file, text, broken=lambda fault: None)
    return [metadata, *(example.file for example in examples)]


def _examples(metadata: Path, file: str, text: str, broken: Broken) -> list[Example]:
    """What can be used of the lines; of the others `broken` hears."""
    if not metadata.is_file():
        raise FileNotFoundError(
            f"no {METADATA} in {metadata.parent}: each line is to name an image and its caption, "
            f'as in {{"{file}": "0001.png", "{text}": "a red seven"}}'
        )
    lines = list(_lines(metadata, file, text))
    faults = [line for line in lines if isinstance(line, str)]
    examples = [line for line in lines if isinstance(line, Example)]
    if faults:
        broken(left_out(metadata, faults, len(lines)))
    if not examples:
        raise ValueError(f"{metadata}: not one image with a caption")
    return examples


def _lines(metadata: Path, file: str, text: str) -> Iterator[Example | str]:
    """The example on each line, or its fault."""
    for number, line in enumerate(utf8(metadata.read_bytes()).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except ValueError as error:
            yield f"line {number} ({error})"
            continue
        name, words = (row.get(c) if isinstance(row, dict) else None for c in (file, text))
        caption = caption_of(words)
        if not isinstance(name, str):
            yield f"line {number} (no {file!r})"
        elif caption is None:
            yield f"line {number} (no {text!r})"
        elif not os.path.isfile(metadata.parent / name):  # False also of a name that cannot be
            yield f"line {number} (there is no {name!r})"
        else:
            image = metadata.parent / name
            yield Example(str(image), caption, image)
