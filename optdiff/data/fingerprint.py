"""Which data these are, by what is in their files, so that others under the same name are seen."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_ENDS = 4096  # bytes


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits of files: their order and sizes, and the first and last 4 KiB of each.

    What replaces data is seen, and millions of images are soon looked at. A change in the middle of
    a file that keeps its size and both ends is not seen. Where the files lie does not matter.

    Args:
      files: such as `image_folder.folder_files` and `webdataset.shard_paths` have them.

    Raises:
      OSError: if a file cannot be read.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     (file := Path(folder, "caption")).write_text("red")
    ...     before = fingerprint([file])
    ...     file.write_text("six")
    ...     before == fingerprint([file])
    3
    3
    False
    """
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(_ENDS)
            file.seek(max(size - _ENDS, 0))
            digest.update(f"{size}\0".encode() + head + file.read(_ENDS))
    return digest.hexdigest()[:16]
