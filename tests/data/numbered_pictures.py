"""Small sets of pictures that can be told apart, in folders and shards, and a reader to be killed.

    python tests/data/numbered_pictures.py folder|shards PATH BATCHES

reads so many batches, writes the numbers seen and the position after each as a line of JSON, reads
one more and hangs. Picture i has the caption "picture i" and a colour of its own.
"""

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from optdiff.data.image_folder import image_folder
from optdiff.data.webdataset import webdataset


def picture(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (i, 255 - i, 7)).save(file, "png")
    return file.getvalue()


def numbers(texts) -> np.ndarray:
    """As if a tokenizer: "picture 7" to [7]."""
    return np.array([[int(text.split()[1])] for text in texts], np.int32)


def write_folder(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        folder.joinpath(f"{i}.png").write_bytes(picture(i))
    rows = [{"file_name": f"{i}.png", "text": f"picture {i}"} for i in range(count)]
    folder.joinpath("metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def examples(first: int, last: int) -> dict[str, bytes]:
    """Members of a shard, every third caption in JSON."""
    members = {}
    for i in range(first, last):
        members[f"{i:06}.png"] = picture(i)
        if i % 3:
            members[f"{i:06}.txt"] = f"picture {i}\n".encode()
        else:
            members[f"{i:06}.json"] = json.dumps({"caption": f"picture {i}"}).encode()
    return members


def write_shards(folder: Path, *counts: int) -> Path:
    """Shards of so many examples each, numbered through."""
    folder.mkdir()
    ends = np.cumsum([0, *counts]).tolist()
    for i in range(len(counts)):
        write_shard(folder / f"{i:05}.tar", examples(ends[i], ends[i + 1]))
    return folder


def stream(kind: str, path: Path, **options):
    options = {"size": 4, "batch": 4, "tokenize": numbers, "threads": 2, **options}
    if kind == "folder":
        return image_folder(path, **options)
    return webdataset(f"{path}/*.tar", **{"mixed": 1, **options})


def take(source, position, batches: int) -> tuple[list[int], dict[str, int]]:
    """The numbers of the pictures in the next batches, each picture being the one that it says."""
    seen = []
    for _ in range(batches):
        batch, position = source.read(position)
        shown = batch["ids"][:, 0]
        colours = np.stack([shown, 255 - shown, np.full_like(shown, 7)], -1) / np.float32(255)
        np.testing.assert_allclose(
            batch["images"], np.broadcast_to(colours[:, None, None], batch["images"].shape)
        )
        seen += shown.tolist()
    return seen, position


def main(kind: str, path: str, batches: str) -> None:
    source = stream(kind, Path(path))
    position = source.start
    for _ in range(int(batches)):
        seen, position = take(source, position, 1)
        print(json.dumps({"seen": seen, "position": position}), flush=True)
    take(source, position, 1)
    print("read one more, not written down", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
