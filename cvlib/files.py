"""Files that are either whole or absent: atomic writes and checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvlib.errors import BookError

__all__ = ["atomic_folder", "atomic_path", "atomic_write", "fsync", "sha256", "told_if_full"]


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: str | os.PathLike[str]) -> None:
    """Force a file or a folder's entry list to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def told_if_full(target: Path) -> Iterator[None]:
    """Turn "no space left" into one line that names the file; other errors pass unchanged."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(target.parent).free
        raise BookError(
            f"no space left to write {target} ({free / 2**20:.0f} MiB free)",
            do="free some space and run again: what was there before is untouched",
        ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path`` at once.

    The temporary file is flushed to the disk before the rename and removed when the block fails, so a
    reader (or a crash at any moment) sees the old file or the new one, never a part. The temporary name
    keeps the suffix, which some writers use to choose a format.

    Raises: BookError if the disk is full; whatever the block raises.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    aside = Path(name)
    try:
        with told_if_full(target):
            yield aside
            fsync(aside)
            umask = os.umask(0)
            os.umask(umask)
            aside.chmod(0o666 & ~umask)  # mkstemp makes private files; ours are ordinary ones
            aside.replace(target)
            fsync(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``, all of it or nothing; see :func:`atomic_path`."""
    with atomic_path(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it is renamed to ``path``.

    If ``path`` appears meanwhile (another process finished the same work first), theirs stays and ours is
    dropped. Raises: BookError if the disk is full; whatever the block raises.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with told_if_full(target):
            yield aside
            for file in aside.rglob("*"):
                fsync(file)
            aside.chmod(0o755)
            try:
                aside.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            fsync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
