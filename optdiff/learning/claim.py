"""One run at a time in a folder: the first holds it, and the second is refused."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from optdiff.learning.interruption import ResumeError


@contextmanager
def claimed(file: str | Path) -> Iterator[None]:
    """Hold the folder that this file is in, made if it is not there, while the `with` lasts.

    The file is locked, which ends with the process: a killed one leaves nothing held. Of several
    processes that are one run, the first claims for all.

    Raises:
      ResumeError: if another run holds the folder.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, claimed(f"{folder}/.lock"):
    ...     with claimed(f"{folder}/.lock"):
    ...         pass
    Traceback (most recent call last):
    ...
    optdiff.learning.interruption.ResumeError: ...
    """
    folder = Path(file).parent
    folder.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as lock:
        holder = _holder(lock) if jax.process_index() == 0 else ""
        refused = np.array(bool(holder))
        if jax.process_count() > 1:
            refused = multihost_utils.broadcast_one_to_all(refused)
        if refused:
            raise ResumeError(
                f"{folder} is in use by {holder or 'another run'}: wait until that ends, or train "
                "into another folder"
            )
        yield


def _holder(file: TextIO) -> str:
    """Who holds the file, in words; nothing if it was free, and then this process does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "another process"
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return ""
