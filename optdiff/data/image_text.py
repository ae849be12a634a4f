"""Images with captions from files, as a stream: order, decoding, and what becomes of broken ones.

This file owns what folders and shards have in common: in which order examples come, which of them
are whose, how an image becomes an array. Where examples lie is in `image_folder.py` and
`webdataset.py`.
"""

import codecs
import io
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from optdiff.data.caption_stream import Tokenize
from optdiff.images import upright
from optdiff.keys import checked_seed
from optdiff.types import Batch, Stream

Broken = Callable[[str], object]
"""Hears of what cannot be used, with its name and why. If it raises, nothing more is read."""

IMAGE_BYTES = 2**28
"""An image file larger than this is left out: nobody draws so much, and memory has an end."""

# Names in a message of examples left out, the others are counted; and letters of one of them.
_NAMED, _LETTERS = 5, 200


class Example(NamedTuple):
    """An image somewhere in a file, and what is said of it."""

    name: str
    caption: str
    file: Path
    start: int = 0
    size: int = -1  # bytes; -1 is to the end of the file


def image_text_stream(
    sources: Sequence[Path],
    examples: Callable[[Path], list[Example]],
    *,
    size: int,
    batch: int,
    seed: int = 0,
    tokenize: Tokenize | None = None,
    host: int = 0,
    hosts: int = 1,
    mixed: int = 1,
    threads: int = 8,
    broken: Broken = warnings.warn,
) -> Stream:
    """An endless stream of images with captions, each once an epoch.

    An epoch takes the sources in an order of its own, `mixed` of them at a time, and their examples
    in random order. The order depends on seed and epoch, and on nothing else: all hosts together
    read the same batches however many they are, and each host reads the images of its own rows.
    A position is the epoch, the part of it (`mixed` sources) and how many examples were taken of
    that, the same on all hosts.

    An image that does not decode is told to `broken`, and another one of its batch takes its place
    for this once: every host keeps its number of rows, without asking the others.

    Args:
      sources: files or folders.
      examples: what is in one of them.
      size: height and width of the images; larger sides are cropped around the middle.
      batch: examples in a batch of all hosts together.
      seed: another seed, another order.
      tokenize: makes ids of captions; without it there are none in the batch.
      host, hosts: which share of every batch this process reads.
      mixed: how many sources are listed, and shuffled as one, at a time.
      threads: images decoded at the same time.
      broken: hears of images that do not decode; by default it warns.

    Returns:
      A stream of `images` (b, size, size, 3) in [0, 1] and `ids` (b, tokens).

    Raises:
      ValueError: if a batch does not divide among the hosts, or there is no source. When reading:
        if there is no example at all, no image of a share decodes, or the position is not of this
        data.
    """
    if batch % hosts:
        raise ValueError(f"a batch of {batch} does not divide among {hosts} hosts")
    if not sources:
        raise ValueError("there is not one file or folder to read from")
    # NumPy joins the words of a list: a large seed must not read like a small one and its epoch.
    seed = checked_seed(seed)
    words = [seed] if seed < 2**32 else [seed % 2**32, 2**32 - 1, seed >> 32]
    share, parts = batch // hosts, -(-len(sources) // mixed)
    examples = lru_cache(maxsize=2 * mixed)(examples)
    pool = ThreadPoolExecutor(threads)

    @lru_cache(maxsize=2)
    def part(epoch: int, number: int) -> list[Example]:
        order = np.random.default_rng([*words, epoch]).permutation(len(sources))
        here = [
            example
            for place in order[number * mixed : (number + 1) * mixed]
            for example in examples(sources[place])
        ]
        shuffle = np.random.default_rng([*words, epoch, number])
        return [here[place] for place in shuffle.permutation(len(here))]

    def read(position: dict[str, int]) -> tuple[Batch, dict[str, int]]:
        rows, position = _take(part, parts, position, batch)
        rows = rows[share * host : share * (host + 1)]
        loaded = list(pool.map(partial(_load, size=size), rows))
        images, whose = _mend(loaded, rows, broken)
        content: dict[str, np.ndarray] = {"images": images.astype(np.float32) / np.float32(255)}
        if tokenize is not None:
            content["ids"] = tokenize([rows[place].caption for place in whose])
        return content, position

    return Stream({"epoch": 0, "part": 0, "taken": 0}, read)


def _take(
    part: Callable[[int, int], list[Example]], parts: int, position: dict[str, int], count: int
) -> tuple[list[Example], dict[str, int]]:
    """The next examples from a position on, and the position after them."""
    epoch, number, taken = (position[name] for name in ("epoch", "part", "taken"))
    rows: list[Example] = []
    barren = 0
    while len(rows) < count:
        here = part(epoch, number) if number < parts else []
        if number >= parts or taken > len(here):
            raise ValueError(f"position {position} is not of this data, which is shorter there")
        fresh = here[taken : taken + count - len(rows)]
        rows, taken = rows + fresh, taken + len(fresh)
        barren = 0 if fresh else barren + 1
        if barren > 2 * parts:  # the end of one epoch, and all of the next
            raise ValueError("there is not one example in all of the data")
        if taken == len(here):
            epoch, number, taken = epoch + (number + 1) // parts, (number + 1) % parts, 0
    return rows, {"epoch": epoch, "part": number, "taken": taken}


def _load(example: Example, size: int) -> UInt8[np.ndarray, "{size} {size} 3"] | Exception:
    """The image, or why there is none."""
    try:
        with open(example.file, "rb") as file:
            whole = os.fstat(file.fileno()).st_size
            if (whole if example.size < 0 else example.size) > IMAGE_BYTES:
                raise ValueError(f"larger than {IMAGE_BYTES} bytes")
            file.seek(example.start)
            return decode(file.read(example.size), size)
    except Exception as error:  # decoders raise everything from SyntaxError to struct.error
        return error


def _mend(
    loaded: Sequence[np.ndarray | Exception], rows: Sequence[Example], broken: Broken
) -> tuple[UInt8[np.ndarray, "b h w 3"], list[int]]:
    """All images, others in place of those that are broken; and of which row each is."""
    whole = [place for place, image in enumerate(loaded) if isinstance(image, np.ndarray)]
    whose = list(range(len(rows)))
    for place, image in enumerate(loaded):
        if isinstance(image, np.ndarray):
            continue
        fault = f"{_shown(rows[place].name)}: {image or type(image).__name__}"
        if not whole:
            raise ValueError(f"none of {len(rows)} images can be read, the first: {fault}")
        broken(f"{fault}; another image of its batch takes its place")
        whose[place] = whole[place % len(whole)]
    return np.stack([loaded[place] for place in whose]), whose


def decode(data: bytes, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """An image from the bytes of a file: upright, RGB on white, its middle square, scaled.

    Args:
      data: JPEG, PNG, WebP or what else Pillow reads.
      size: height and width to scale the largest square in the middle to.

    Returns:
      (size, size, 3), in 0..255.

    Raises:
      Exception: of many kinds, from Pillow, if the data are no image or not all of it.
      ValueError: if they are numbers of which none is known to be white: fractions, or such as 16
        bits do not hold.

    >>> file = io.BytesIO()
    >>> Image.new("L", (40, 30), 255).save(file, "png")
    >>> decode(file.getvalue(), 8).shape
    (8, 8, 3)
    """
    with Image.open(io.BytesIO(data)) as opened:
        # A JPEG can be decoded at a fraction of its size, in a fraction of the time: a sixth from
        # 512 to 64. Twice what is wanted leaves the scaling to the filter below.
        opened.draft(None, (2 * size, 2 * size))
        image = upright(opened)
    side = min(image.size)
    left, top = ((whole - side) // 2 for whole in image.size)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box))


def utf8(data: bytes) -> bytes:
    """Text without the byte order mark that Windows puts before it, UTF-16 written as UTF-8.

    >>> utf8("caf\u00e9".encode("utf-16")).decode(), utf8(codecs.BOM_UTF8 + b"cup")
    ('caf\u00e9', b'cup')
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def parse(text: str | bytes) -> Any:
    """JSON, of any depth that can be read.

    Raises:
      ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def caption_of(value: Any) -> str | None:
    """A caption without the blanks around it; None for what is no text, is blank, or holds half a
    character (JSON can write one, and no tokenizer takes it)."""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        return None
    return value.strip() or None


def _shown(name: str) -> str:
    """A name from a file as a message shows it: on one line, its end left out where it is long."""
    plain = name if name.isprintable() else repr(name)[1:-1]
    return plain if len(plain) <= _LETTERS else f"{plain[: _LETTERS - 3]}..."


def left_out(where: Path, faults: Sequence[str], total: int) -> str:
    """What to say of examples that cannot be used.

    >>> left_out(Path("0.tar"), ["000007 (no caption)"], 100)
    '0.tar: 1 of 100 examples left out: 000007 (no caption)'
    """
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    named = ", ".join(map(_shown, faults[:_NAMED]))
    return f"{where}: {len(faults)} of {total} examples left out: {named}{more}"
