"""Tensors on disk: safetensors files, alone or in shards, read one tensor at a time.

This file owns what makes a set of files one set of named tensors, and every reason to refuse it.
The format itself is the `safetensors` library's business. What the names mean, which layout a
tensor has in memory and which module it belongs to is left to `checkpoint.py`.
"""

import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
FLOATS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
"""The types of numbers that weights may have in a file, and what numpy calls them."""

# Large enough that reading is not slower for it, small enough to stay in a processor's cache.
_CHUNK_BYTES = 2**20
# A header longer than this, a hundred thousand tensors, is none of a network of ours: it would be
# parsed for a minute only to be refused. The format allows a hundred megabytes.
_HEADER_BYTES = 2**24
_JSON_BYTES = 2**26  # the largest are tokenizers and indices, of a few megabytes

_PICKLED = (
    "pickled weights can run code when they are opened. Load them once in torch, from a source "
    "you trust, and `save_pretrained(folder)` of diffusers or transformers writes safetensors"
)
_SHARD_NAME = re.compile(r"\w[\w.+\- ]*\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or understood; says which file, which tensor, and why."""


class Tensor(NamedTuple):
    """A tensor in a file: what the header promises, and how to fetch it.

    Attributes:
      path: the file.
      name: the tensor's, in the file.
      dtype: as the file spells it; only those of `FLOATS` can be read.
      shape: its shape.
      start: where its first byte is in the file.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """The values, in memory of their own."""
        values = np.empty(self.shape, FLOATS[self.dtype])
        self.read_into(values)
        return values

    def read_into(self, out: np.ndarray) -> None:
        """Read the values into `out` and convert them to its type, a megabyte at a time.

        So nothing of the tensor's size is held beside `out`. Nor is the file mapped: pages of a
        mapped file count as memory of the process.

        Args:
          out: an array of the tensor's shape, of any strides and type.

        Raises:
          CheckpointError: the file has become shorter, or cannot be read any more.
        """
        rows = out.reshape(1) if out.ndim == 0 else out
        stored = np.dtype(FLOATS[self.dtype])
        in_row = math.prod(rows.shape[1:])
        step = max(1, _CHUNK_BYTES // max(1, in_row * stored.itemsize))
        buffer = np.empty(min(step, len(rows)) * in_row, stored)
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                for first in range(0, len(rows), step):
                    part = rows[first : first + step]
                    held = buffer[: part.size]
                    if file.readinto(held.view(np.uint8)) < held.nbytes:
                        raise OSError("the file ends within it")
                    # Types first and strides second: numpy is slow at both in one pass.
                    part[...] = held.astype(out.dtype, copy=False).reshape(part.shape)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot read {self.name!r}: {error}") from error


def open_file(path: Path) -> dict[str, Tensor]:
    """Read and check the header of one safetensors file.

    Refused are headers that are too long, are not JSON, leave holes, overlap or point outside the
    file, unknown types, and shapes that do not match their bytes: see the format's own rules in the
    `safetensors` documentation. No tensor is read.

    Args:
      path: a `.safetensors` file.

    Returns:
      The tensors by name.

    Raises:
      CheckpointError: the file is missing, malformed, truncated, or a pickle.
    """
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path}: {_PICKLED}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        length = _header_length(path)
        with safe_open(path, framework="np", backend="pread") as file:
            return _describe(path, length, file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); fetch or write it again"
        ) from error


def _header_length(path: Path) -> int:
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
    if length > _HEADER_BYTES:
        raise OSError(f"header too large: {length} bytes, at most {_HEADER_BYTES}")
    return length


def _describe(path: Path, length: int, file: Any) -> dict[str, Tensor]:
    """The tensors of a file that `safe_open` has seen to be whole."""
    with path.open("rb") as raw:
        raw.seek(8)
        header = json.loads(raw.read(length))
    tensors = {}
    for name in file.keys():  # noqa: SIM118
        described = file.get_slice(name)
        start = 8 + length + header[name]["data_offsets"][0]
        shape = tuple(described.get_shape())
        tensors[name] = Tensor(path, name, described.get_dtype(), shape, start)
    return tensors


def open_folder(folder: Path, stem: str, variant: str | None = None) -> dict[str, Tensor]:
    """Find the weights of one model in its folder, `stem[.variant].safetensors` or its shards.

    Shards are read from the index alone; one that it does not list, left over from another save,
    is left out with a warning. A folder that leaves room for two readings is refused: a single file
    beside an index, and tensors that index and shards do not agree on.

    Args:
      folder: the model's folder.
      stem: `diffusion_pytorch_model` (diffusers) or `model` (transformers).
      variant: the word in the file names, such as `fp16`; None for the plain ones.

    Returns:
      The tensors by name.

    Raises:
      CheckpointError: no such weights, an ambiguous folder, a malformed file.
    """
    single, index = _names(folder, stem, variant)
    if index.is_file() and single.is_file():
        raise CheckpointError(f"{folder}: {single.name} and {index.name} both claim the weights")
    if index.is_file():
        return _open_shards(index, _shards_of(folder, stem, variant))
    if single.is_file():
        return open_file(single)
    raise CheckpointError(f"{single}: no such file{_instead(folder, stem)}")


def holds(folder: Path, stem: str, variant: str | None = None) -> bool:
    """Whether a folder has weights of one model in one variant, whole or not."""
    return any(path.is_file() for path in _names(folder, stem, variant))


def _names(folder: Path, stem: str, variant: str | None) -> tuple[Path, Path]:
    """Where the weights of one model are: in a single file, or where the index says."""
    word = f".{variant}" if variant else ""
    return folder / f"{stem}{word}.safetensors", folder / f"{stem}.safetensors.index{word}.json"


def _instead(folder: Path, stem: str) -> str:
    """What the folder holds where the weights were looked for, as the end of an error."""
    if not folder.is_dir():
        return f"; there is no folder {folder}"
    names = sorted(path.name for path in folder.iterdir() if path.name != "config.json")
    word = re.compile(rf"{re.escape(stem)}(?:\.safetensors\.index)?\.(\w+)\.(?:safetensors|json)")
    variants = sorted({match[1] for name in names if (match := word.fullmatch(name))} - {"index"})
    if variants:
        return f"; the variants here are {', '.join(variants)}: pass variant={variants[0]!r}"
    if pickled := [name for name in names if Path(name).suffix in PICKLES]:
        return f". {pickled[0]} is not read either: {_PICKLED}"
    return f"; the folder holds {', '.join(names) or 'nothing else'}"


def _shards_of(folder: Path, stem: str, variant: str | None) -> set[str]:
    """Files that are shards by name; a variant is written before or after the number."""
    number, stem = r"-\d+-of-\d+", re.escape(stem)
    word = rf"\.{re.escape(variant)}" if variant else ""
    pattern = re.compile(rf"{stem}(?:{word}{number}|{number}{word})\.safetensors")
    return {path.name for path in folder.iterdir() if pattern.fullmatch(path.name)}


def _open_shards(index: Path, present: set[str]) -> dict[str, Tensor]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: no weight_map from tensors to files")
    for tensor, shard in listed.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index}: {tensor!r} is said to be in {shard!r}, which is not the plain name of a "
                "safetensors file beside the index"
            )
    shards = set(listed.values())
    if stale := sorted(present - shards):
        warnings.warn(f"{index}: does not list {', '.join(stale)}, left out", stacklevel=2)
    tensors: dict[str, Tensor] = {}
    problems = []
    for shard in sorted(shards):
        held = open_file(index.parent / shard)
        due = {name for name, file in listed.items() if file == shard}
        problems += [f"{shard} lacks {name!r}" for name in sorted(due - held.keys())]
        problems += [f"{shard} holds {name!r}, unlisted" for name in sorted(held.keys() - due)]
        tensors |= held
    if problems:
        raise CheckpointError(f"{index}: index and shards disagree:\n  " + "\n  ".join(problems))
    return tensors


def write_folder(
    folder: Path, stem: str, tensors: Mapping[str, np.ndarray], max_shard_bytes: int
) -> None:
    """Write the weights of one model into its folder, in shards with an index if they are large.

    Args:
      folder: an existing folder; the caller sees to it that nobody reads it half-written.
      stem: `diffusion_pytorch_model` (diffusers) or `model` (transformers).
      tensors: arrays by name, of any strides.
      max_shard_bytes: a file holds at most so many bytes of weights, or a single tensor.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_folder(Path(folder), "model", {"w": np.ones(3)}, 2**33)
    ...     [path.name for path in Path(folder).iterdir()]
    ['model.safetensors']
    """
    shards = list(_split(tensors, max_shard_bytes))
    if len(shards) == 1:
        files = [f"{stem}.safetensors"]
    else:
        total = len(shards)
        files = [f"{stem}-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)]
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
            "weight_map": {name: files[i] for i, shard in enumerate(shards) for name in shard},
        }
        write_json(folder / f"{stem}.safetensors.index.json", index)
    for file, shard in zip(files, shards, strict=True):
        dense = {name: np.asarray(tensors[name], order="C") for name in shard}
        # transformers reads only files that say who wrote them: "pt" is the layout, not the writer.
        save_file(dense, folder / file, metadata={"format": "pt"})


def _split(tensors: Mapping[str, np.ndarray], max_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, array in tensors.items():
        if shard and size + array.nbytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += array.nbytes
    yield shard


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      CheckpointError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError(f"larger than {_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are both ValueErrors
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__} where an object is due")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as people read it: indented, keys in order."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextmanager
def appearing(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes the name `path` when all is written, or vanishes.

    Raises:
      FileExistsError: something is at `path` already; an empty folder does not count.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists; save elsewhere, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename on one file system.
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (whole := workshop / path.name).mkdir()
        yield whole
        for file in whole.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        whole.rename(path)
    finally:
        shutil.rmtree(workshop)
