"""Named members out of wheels, npm packages and Debian packages, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from cvlib.assets.table import Asset, Member
from cvlib.errors import BookError

__all__ = ["escapes", "unpack"]

_RATIO = 100  # no honest archive of ours unpacks to more than eight times its size
_PIECE = 1 << 20
_UNREADABLE = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile),
    *(zlib.error, lzma.LZMAError, EOFError, ValueError),
)


class _Entry(NamedTuple):
    path: str
    size: int
    is_file: bool
    open: Callable[[], IO[bytes]]


def escapes(path: str) -> bool:
    r"""Return whether a path could lead out of the folder it is unpacked into, on any system.

    >>> [escapes(p) for p in ("a/b", "./a", "a..b", "../a", "a/../../b", "/a", "C:a", "a\\b")]
    [False, False, False, True, True, True, True, True]
    """
    return bool(
        ".." in PurePosixPath(path).parts
        or path.startswith("/")
        or "\\" in path
        or "\0" in path
        or re.match(r"[A-Za-z]:", path)
    )


def _open_in_tar(bundle: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = bundle.extractfile(info)
    assert file is not None  # asked for plain files only
    return file


def _zip_entries(archive: IO[bytes]) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as bundle:
        for info in bundle.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer kept no Unix mode
            is_file = not info.is_dir() and mode in (0, stat.S_IFREG)
            yield _Entry(info.filename, info.file_size, is_file, partial(bundle.open, info))


def _tar_entries(archive: IO[bytes]) -> Iterator[_Entry]:
    """Entries of a tar, read as a stream: each must be used before the next is asked for."""
    with tarfile.open(fileobj=archive, mode="r|") as bundle:
        for info in bundle:
            is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)  # isreg() would let sparse files in
            yield _Entry(info.name, info.size, is_file, partial(_open_in_tar, bundle, info))


def _tgz_entries(archive: IO[bytes]) -> Iterator[_Entry]:
    with gzip.GzipFile(fileobj=archive) as plain:
        yield from _tar_entries(cast(IO[bytes], plain))


def _deb_entries(archive: IO[bytes]) -> Iterator[_Entry]:
    """Entries of the data tar in a Debian package, an "ar" file: magic, then 60-byte headers with bodies."""
    if archive.read(8) != b"!<arch>\n":
        raise tarfile.ReadError("not a Debian package")
    while len(header := archive.read(60)) == 60:
        name, size = header[:16].decode("ascii").strip(), int(header[48:58])
        if name.removesuffix("/") == "data.tar.xz":
            with lzma.LZMAFile(archive) as plain:
                yield from _tar_entries(plain)
            return
        archive.seek(size + size % 2, 1)  # bodies are padded to even length
    raise tarfile.ReadError("no data.tar.xz in the Debian package")


_READERS = {"wheel": _zip_entries, "npm": _tgz_entries, "debian": _deb_entries}


def _refuse(asset: Asset, what: str) -> BookError:
    return BookError(f"asset {asset.name}: archive {asset.file} refused, {what}", do="nothing was unpacked")


def _copy(asset: Asset, member: Member, source: IO[bytes], target: Path) -> None:
    """Write one member, reading at most one byte more than the table allows."""
    digest, left = hashlib.sha256(), member.size
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as file:
        while piece := source.read(min(_PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise _refuse(asset, f"{member.path} is larger than the {member.size} bytes of the table")
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != member.sha256:
        raise _refuse(asset, f"{member.path} has SHA-256 {digest.hexdigest()}, wanted {member.sha256}")


def _unpack(asset: Asset, archive: IO[bytes], folder: Path) -> None:
    wanted = {member.path: member for member in asset.members}
    passed = 0
    for entry in _READERS[asset.kind](archive):
        if escapes(entry.path):
            raise _refuse(asset, f"its member {entry.path!r} leads out of the folder")
        passed += entry.size
        if passed > _RATIO * asset.size + _PIECE:
            raise _refuse(asset, f"it unpacks to more than {_RATIO} times its size")
        member = wanted.pop(entry.path.removeprefix("./"), None)
        if member is None:
            continue
        if not entry.is_file:
            raise _refuse(asset, f"its member {entry.path!r} is a link or a special file, wanted a plain one")
        _copy(asset, member, entry.open(), folder / member.name)
    if wanted:
        raise _refuse(asset, f"it lacks {', '.join(wanted)}")


def unpack(asset: Asset, archive: Path, folder: Path) -> None:
    """Write the asset's members, each checked against its SHA-256, from ``archive`` into ``folder``.

    Only members of the table are written, under the table's names, and only from plain files, so a link or
    an odd mode in the archive has no effect. An archive in which any path would lead out of the folder is
    refused as a whole, as is one that inflates beyond reason.

    Raises: BookError that names the member; the caller drops the folder.
    """
    try:
        with archive.open("rb") as file:
            _unpack(asset, file, folder)
    except BookError:
        raise
    except _UNREADABLE as error:
        raise _refuse(asset, f"it cannot be read ({error})") from error
