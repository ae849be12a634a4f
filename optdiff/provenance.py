"""Where a row comes from: the source that made it, its versions, its commit, and the device."""

import functools
import hashlib
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


@functools.cache
def source_digest(package: Path = PACKAGE) -> str:
    """Digest of a package's source, names and contents of its `.py` files and of the networks that
    come with it: 16 hex digits.

    It is taken once a process, so it describes the code that runs rather than later edits.
    """
    learnt = [path for path in package.glob("pretrained/**/*") if path.is_file()]
    report = package / "report"  # it draws rows, and no row depends on it
    source = [path for path in package.rglob("*.py") if not path.is_relative_to(report)]
    return _digest(package, [*source, *learnt])


def content_digest(path: str | Path, patterns: Iterable[str] = ("**/*",)) -> str:
    """Digest of a file, or of those below a folder that one of the patterns matches, by names and
    contents: the same wherever they lie."""
    root = Path(path)
    if root.is_file():
        return _digest(root, [root])
    below = {file for pattern in patterns for file in root.glob(pattern)}
    return _digest(root, [file for file in below if file.is_file()])


def stamp(path: str | Path) -> str | None:
    """Digest of what lies at a path, by names, sizes and times of change, which is quick whatever
    the size; None if nothing does.

    >>> stamp("no/where") is None
    True
    """
    root = Path(path)
    if not root.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted([root, *root.rglob("*")]):
        about = file.stat()
        if file.is_file():
            digest.update(
                f"{file.relative_to(root)}\0{about.st_size}\0{about.st_mtime_ns}".encode()
            )
    return digest.hexdigest()[:16]


def _digest(root: Path, files: Iterable[Path]) -> str:
    """16 hex digits of the SHA-256 of files' names below a root, and their contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def provenance(device: str) -> dict[str, Any]:
    """The fields of a row that say where it came from: source, versions, device, commit, time.

    Args:
      device: what the job runs on, in words; this module does not know about jax.

    Returns:
      `source`, `versions`, `device`, `commit`, `dirty` and `time` of a `Row`.
    """
    commit, dirty = checkout()
    return {
        "source": source_digest(),
        "versions": dict(_versions()),
        "device": device,
        "commit": commit,
        "dirty": dirty,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def checkout(folder: Path = PACKAGE) -> tuple[str | None, bool | None]:
    """Commit of the git checkout that tracks a package, and whether what decides its results is
    dirty (changed or untracked files): the package, and `conf` and `experiments` at the top. Of
    what else lies there, such as configs of one's own, rows carry what they used. (None, None)
    where git or the checkout is missing.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # An installed copy may lie, untracked, in the checkout of something else.
        git("ls-files", "--error-unmatch", ".")
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--", ".", ":(top)conf", ":(top)experiments")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(dirty)


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Versions of Python and of the packages that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    versions = [("python", platform.python_version())]
    for package in ("optdiff", "jax", "jaxlib", "optax", "numpy", "scipy", "mlxtend"):
        try:
            versions.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return tuple(versions)
