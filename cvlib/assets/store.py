"""The cache of verified members: fetched once, placed whole, checked whenever they are used."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cvlib.assets.clients import check_archive, download
from cvlib.assets.table import ASSETS, GROUPS, Asset, asset_names
from cvlib.assets.table import Member as _Member
from cvlib.assets.unpack import unpack
from cvlib.errors import BookError
from cvlib.files import atomic_folder, sha256

__all__ = ["cache_root", "fetch", "location", "member", "problem"]

_verified: dict[Path, tuple[int, int, int]] = {}


def cache_root() -> Path:
    """Return the folder for everything that can be made again: ``CVLIB_CACHE``, else the user's cache."""
    if own := os.environ.get("CVLIB_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "darwin":
        base = "~/Library/Caches"
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "compvis-book"


def location(asset: Asset) -> Path:
    """Return the folder of an asset's members; a new pin is a new folder."""
    return cache_root() / "assets" / f"{asset.name}-{asset.sha256[:8]}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _member_problem(path: Path, wanted: _Member) -> str:
    """What is wrong with a member's file, "" if nothing; hashed once for each size, time and inode."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"
    mark = (status.st_size, status.st_mtime_ns, status.st_ino)
    if _verified.get(path) == mark:
        return ""
    if status.st_size != wanted.size:
        return f"{path} has {status.st_size} bytes, wanted {wanted.size}"
    seen = sha256(path)
    if seen != wanted.sha256:
        return f"{path} has SHA-256 {seen}, wanted {wanted.sha256}"
    _verified[path] = mark
    return ""


def problem(asset: Asset) -> str | None:
    """Return "" if all members are present and correct, None if the asset is absent, else what is wrong."""
    folder = location(asset)
    if not folder.exists():
        return None
    found = (_member_problem(folder / one.name, one) for one in asset.members)
    return next((text for text in found if text), "")


if sys.platform == "win32":
    import msvcrt

    def _acquire(file: IO[bytes]) -> None:
        while True:
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
            except OSError:  # LK_LOCK gives up after ten seconds
                continue
else:
    import fcntl

    def _acquire(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock; the system drops it with the process, so a crash leaves no stale lock.

    Yields False where the file system has no locks: placement is atomic all the same, only work is doubled.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise BookError(
            f"the asset cache {path.parent} cannot be written ({error.strerror})",
            do="make it writable or name another folder in CVLIB_CACHE",
        ) from error
    with file:
        try:
            _acquire(file)
            held = True
        except OSError:
            held = False
        yield held


def _sweep(folder: Path) -> None:
    """Remove what a killed process left beside ``folder``; call it with the lock held."""
    for rest in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(rest, ignore_errors=True)


def _require_space(asset: Asset, folder: Path) -> None:
    need, free = asset.size + asset.unpacked, shutil.disk_usage(folder).free
    if free < need:
        raise BookError(
            f"asset {asset.name}: {free / 1e6:.0f} MB free in {folder}",
            f"{need / 1e6:.0f} MB",
            "free some space or name another folder in CVLIB_CACHE",
        )


def _place(asset: Asset, folder: Path) -> None:
    """Download, check and unpack beside ``folder``, then take its place; on any error it is as it was."""
    _require_space(asset, folder.parent)
    with atomic_folder(folder) as aside:
        incoming = aside / ".archive"
        incoming.mkdir()
        archive = download(asset, incoming)
        check_archive(asset, archive)
        unpack(asset, archive, aside)
        shutil.rmtree(incoming)
        if problem(asset):  # damaged, and only now is there something better
            folder.rename(folder.with_name(f".{folder.name}-damaged"))


def _fetch_one(asset: Asset, quiet: bool) -> Path:
    folder = location(asset)
    if problem(asset) == "":
        return folder
    with _locked(folder.parent / f".{asset.name}.lock") as held:
        wrong = problem(asset)  # another process may have finished while this one waited
        if wrong == "":
            return folder
        if held:
            _sweep(folder)
        if wrong:
            _tell(f"{asset.name}: {wrong}; fetching it again")
        start = time.monotonic()
        _place(asset, folder)
        if held:
            _sweep(folder)
        if wrong := problem(asset):  # read back from the disk, and remembered
            raise BookError(f"asset {asset.name}: {wrong}", do="the disk does not keep what is written")
    if not quiet:
        _tell(f"{asset.name:<24} {asset.size / 1e6:6.1f} MB  {time.monotonic() - start:5.1f} s  {asset.spec}")
    return folder


def _fetch_all(names: list[str], quiet: bool) -> None:
    """Fetch several assets, four at a time: one failure does not keep the others from arriving."""
    todo = [ASSETS[name] for name in names if problem(ASSETS[name]) != ""]
    if not todo:
        return
    if not quiet:
        size = sum(asset.size for asset in todo) / 1e6
        _tell(f"fetching {len(todo)} assets ({size:.0f} MB) into {cache_root() / 'assets'}")
    with ThreadPoolExecutor(min(4, len(todo))) as pool:
        futures = {asset.name: pool.submit(_fetch_one, asset, quiet) for asset in todo}
        try:
            errors = {name: error for name, future in futures.items() if (error := future.exception())}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if len(errors) > 1 and all(isinstance(error, BookError) for error in errors.values()):
        raise BookError(
            f"{len(errors)} of {len(todo)} assets failed ({', '.join(errors)}), the first: "
            f"{next(iter(errors.values()))}"
        )
    for error in errors.values():
        raise error


def fetch(name: str, *, quiet: bool = False) -> Path:
    """Return the folder with the verified members of an asset, fetching it if it is absent or damaged.

    ``name`` may be a group of :data:`GROUPS`; then all its assets are there on return and the folder that
    holds them all comes back. One line per fetched asset goes to stderr unless ``quiet``. With everything
    present no client is started.

    Raises: BookError for an unknown name, a missing network or client, an archive that is not the pinned
    one, a full disk or a cache that cannot be written.
    """
    names = asset_names([name])
    if name in GROUPS:
        _fetch_all(names, quiet)
        return cache_root() / "assets"
    return _fetch_one(ASSETS[name], quiet)


def member(name: str, filename: str) -> Path:
    """Return the path of one member of an asset, its SHA-256 checked, fetching the asset when needed.

    The hash is computed once per process and again whenever size, modification time or inode change.

    Raises: BookError for an unknown asset or member; as :func:`fetch`.
    """
    if name not in ASSETS:
        raise BookError(f"no asset is called {name!r}", f"one of {', '.join(ASSETS)}")
    members = {one.name: one for one in ASSETS[name].members}
    if filename not in members:
        raise BookError(f"asset {name} has no member {filename!r}", f"one of {', '.join(members)}")
    path = location(ASSETS[name]) / filename
    if _member_problem(path, members[filename]):
        _fetch_one(ASSETS[name], quiet=False)
    return path
