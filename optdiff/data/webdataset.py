"""Tar shards of images and captions in the WebDataset layout, as LAION has it.

Members of one name before its first dot are one example: `000001.jpg` and `000001.txt`, or
`000001.json` with a caption in it. A shard is listed from its headers when its turn comes, and then
images are read one by one from where they lie, so never more of it is in memory than captions and a
batch. That needs plain tar files on a disk: no compression, no pipes.
"""

import glob
import os
import re
import tarfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

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

IMAGES = ("jpg", "jpeg", "png", "webp")
"""Endings of images; of several, the first in this order is read."""

TEXTS = ("txt", "json")
"""Endings of captions, likewise."""

TEXT_BYTES = 2**20
"""What is longer than this is no caption, and no header of tar."""

SHARDS = 10**6
"""More shards than this are not named by one pattern."""


def webdataset(
    shards: str | Path | Sequence[str | Path],
    *,
    field: str = "caption",
    mixed: int = 4,
    broken: Broken = warnings.warn,
    **options: Any,
) -> Stream:
    """A stream of the images and captions in tar shards, each once an epoch.

    Shards come in a random order, `mixed` of them at a time, and their examples are shuffled; the
    order depends on seed and epoch alone. Examples without image or caption, and the one in which a
    shard is cut off, are left out and told to `broken` in one message a shard; what becomes of
    images that do not decode is in `image_text_stream`.

    Args:
      shards: paths of tar files, one or several, or patterns such as "laion/*.tar" and, as
        WebDataset writes them, "laion/{00000..00012}.tar".
      field: where a `.json` has the caption, if there is no `.txt`.
      mixed: how many shards are listed, and shuffled as one, at a time.
      broken: hears of what cannot be used; by default it warns. If it raises, nothing more is read.
      **options: `size`, `batch`, `seed`, `tokenize`, `host`, `hosts` and `threads`, as for
        `image_text_stream`.

    Returns:
      A stream of `images` (b, size, size, 3) in [0, 1] and `ids` (b, tokens).

    Raises:
      FileNotFoundError: if there is no shard, or not all of them.
      ValueError: if a batch does not divide among the hosts. When reading: if there is not one
        example in all shards.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (40, 30)).save(f"{folder}/0.png")
    ...     _ = Path(folder, "0.txt").write_text("a night without stars")
    ...     with tarfile.open(f"{folder}/000.tar", "w") as tar:
    ...         for name in ("0.png", "0.txt"):
    ...             tar.add(f"{folder}/{name}", name)
    ...     stream = webdataset(f"{folder}/*.tar", size=8, batch=2)
    ...     batch, position = stream.read(stream.start)
    >>> batch["images"].shape, position
    ((2, 8, 8, 3), {'epoch': 2, 'part': 0, 'taken': 0})
    """
    listing = partial(_examples, field=field, broken=broken)
    return image_text_stream(shard_paths(shards), listing, mixed=mixed, broken=broken, **options)


def shard_captions(
    shards: str | Path | Sequence[str | Path],
    *,
    field: str = "caption",
    broken: Broken = warnings.warn,
) -> Iterator[str]:
    """The captions that `webdataset` reads with the images: what a tokenizer learns from.

    Args:
      shards, field, broken: as for `webdataset`.

    Returns:
      Captions, shard by shard; a shard is read when its turn comes.

    Raises:
      FileNotFoundError: if there is no shard, or not all of them.
      ValueError: at the end, if there was not one example in all shards.
    """
    paths = shard_paths(shards)

    def read() -> Iterator[str]:
        known = False
        for path in paths:
            for example in _examples(path, field, broken):
                known = True
                yield example.caption
        if not known:
            raise ValueError(f"not one example with a caption in {shards}")

    return read()


def shard_paths(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    """The tar files that `webdataset` reads.

    Raises:
      FileNotFoundError: if there is no shard, or not all of them.
    """
    names = [str(shards)] if isinstance(shards, str | Path) else [str(shard) for shard in shards]
    paths, missing = [], []
    for name in names:
        # A file of that very name first: brackets and braces may be part of it.
        for one in [name] if os.path.isfile(name) else _spelt_out(name):
            here = [one] if os.path.isfile(one) else sorted(filter(os.path.isfile, glob.glob(one)))
            paths += map(Path, here)
            missing += [] if here else [one]
    if missing or not paths:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(f"no such shard: {', '.join(missing[:5])}{more}")
    return paths


def _spelt_out(pattern: str) -> list[str]:
    """A pattern's `{000..012}` and `{a,b}` one by one, as a shell does it; other braces stay.

    >>> _spelt_out("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    names, later = [""], pattern
    while (braces := re.search(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}", later)) is not None:
        choices, numbers = braces[1].split(","), braces[1].split("..")
        if len(numbers) == 2 and len(choices) == 1:
            first, last = map(int, numbers)
            width = max(map(len, numbers)) if any(n[0] == "0" for n in numbers) else 0
            step = 1 if first <= last else -1
            if abs(last - first) >= SHARDS:
                raise ValueError(f"{pattern}: {abs(last - first) + 1} shards, at most {SHARDS}")
            choices = [f"{n:0{width}}" for n in range(first, last + step, step)]
        if len(names) * len(choices) > SHARDS:
            raise ValueError(f"{pattern}: more than {SHARDS} shards")
        names = [f"{name}{later[: braces.start()]}{choice}" for name in names for choice in choices]
        later = later[braces.end() :]
    return [name + later for name in names]


Place = tuple[int, int]
"""First byte and number of bytes."""


def _examples(shard: Path, field: str, broken: Broken) -> list[Example]:
    """The examples of a shard in its order, those that are whole."""
    examples = []
    with open(shard, "rb") as file:
        members, faults, tear = _members(file)
        for key, places in members.items():
            if key in faults:
                continue
            image = next((places[ending] for ending in IMAGES if ending in places), None)
            caption = _caption(file, places, field)
            if image is None or caption is None:
                faults[key] = "no image" if image is None else "no caption"
            else:
                examples.append(Example(f"{shard}: {key}", caption, shard, *image))
    if faults:
        named = [f"{key} ({fault})" for key, fault in faults.items()]
        broken(left_out(shard, named, len(members)))
    if tear is not None:
        broken(f"{shard}: {tear}")
    return examples


class _Whole:
    """A file as `tarfile` may read it: it asks for as many bytes as a header claims, in some
    versions of Python for a negative number, or for ever at the end."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.tell = file.tell

    def seek(self, place: int) -> int:
        if not 0 <= place < 2**63:
            raise tarfile.ReadError(f"byte {place} is in no file")
        return self._file.seek(place)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= TEXT_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._file.read(size)
        if len(data) < size:
            raise tarfile.ReadError("the file ends")
        return data


def _members(file: BinaryIO) -> tuple[dict[str, dict[str, Place]], dict[str, str], str | None]:
    """Where members lie, by key and ending; the faults of keys; and that of the whole shard."""
    members: dict[str, dict[str, Place]] = defaultdict(dict)
    faults: dict[str, str] = {}
    length, end = os.fstat(file.fileno()).st_size, 0
    # Damaged headers raise errors of all kinds; what is lost is seen from where the members lie.
    with suppress(Exception), tarfile.open(fileobj=_Whole(file), mode="r:") as tar:  # type: ignore
        while (member := tar.next()) is not None:
            if member.size < 0 or tar.offset <= end:
                break  # it leads back to where we were
            end = tar.offset
            folder, name = os.path.split(member.name)
            stem, _, ending = name.partition(".")
            if not (member.isreg() and stem and ending):
                continue
            key, ending = os.path.join(folder, stem), ending.lower()
            if ending in members[key]:
                faults[key] = f"two members .{ending}"
            if member.offset_data + member.size > length:
                faults[key] = f"cut off in its .{ending}"
            members[key][ending] = (member.offset_data, member.size)
    # A header that makes no sense ends the file for Python, silently. The real end is zeros, or
    # nothing at all after a whole member, as many tools leave it.
    if 0 < length == end:
        return members, faults, None
    end = min(end, length)
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE):
        return members, faults, None
    return (
        members,
        faults,
        (f"no plain tar file from byte {end} of {length} on; what followed is lost"),
    )


def _caption(file: BinaryIO, places: Mapping[str, Place], field: str) -> str | None:
    """What the members of an example say of it, if anything."""
    for ending in TEXTS:
        start, size = places.get(ending, (0, 0))
        if not 0 < size <= TEXT_BYTES:
            continue
        file.seek(start)
        try:
            words = utf8(file.read(size)).decode("utf-8")
            if ending == "json":
                described = parse(words)
                words = described.get(field) if isinstance(described, dict) else None
        except ValueError:  # neither text nor JSON
            continue
        if (caption := caption_of(words)) is not None:
            return caption
    return None
