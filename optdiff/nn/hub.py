"""Where a checkpoint is: a local path as it stands, or a name on the Hugging Face hub, fetched.

This file owns the choice between the two and the list of files worth fetching. Local paths never
touch the network; what is in the files is left to `checkpoint.py`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from optdiff.nn.tensorfile import CheckpointError

_REPO = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


def weight_files(stem: str, variant: str | None) -> list[str]:
    """Patterns for one model's weights: a single file, or shards and their index.

    >>> weight_files("model", "fp16")[0]
    'model.fp16.safetensors'
    """
    word = f".{variant}" if variant else ""
    number = "-?????-of-?????"  # a variant is written before or after it
    shards = {f"{stem}{word}{number}.safetensors", f"{stem}{number}{word}.safetensors"}
    return [f"{stem}{word}.safetensors", f"{stem}.safetensors.index{word}.json", *sorted(shards)]


def locate(path_or_repo: str | Path, files: Iterable[str], revision: str | None = None) -> Path:
    """The local path of a checkpoint, after fetching what is needed of a hub repository.

    Local is what exists on this disk, any `Path`, and any string whose folder exists. Only another
    string of the form `owner/name` is a repository of the hub; what was fetched once is used again.

    Args:
      path_or_repo: a local path or `owner/name`.
      files: patterns of the files to fetch; the rest of a repository is left where it is.
      revision: branch, tag or commit of the repository.

    Returns:
      A path that exists.

    Raises:
      CheckpointError: nothing is there, or the hub did not give it (offline, no such repository,
        no access, `huggingface_hub` not installed).
    """
    path = Path(path_or_repo).expanduser()
    if path.exists():
        return path
    here = path.parent.is_dir() and path.parent != Path()
    if here or isinstance(path_or_repo, Path) or not _REPO.fullmatch(path_or_repo):
        raise CheckpointError(f"{path_or_repo}: no such file or folder")
    missing = f"{path_or_repo}: no such file or folder here"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise CheckpointError(
            f"{missing}, and to look for it on the hub needs `pip install huggingface_hub`"
        ) from error
    try:
        return Path(snapshot_download(path_or_repo, revision=revision, allow_patterns=list(files)))
    except (OSError, HFValidationError) as error:  # every error of hub and network is an OSError
        raise CheckpointError(f"{missing}, and the hub did not give it: {error}") from error
