"""A folder of raw pixels on disk, memory-mapped, checked when opened and built again when damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cvlib.files import atomic_folder

__all__ = ["Pixels", "digest", "open_store"]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_PIECE = 2**20
_CHECKED = 1024  # at most this many pieces of 1 MiB are read to check a store, spread over the file


def digest(value: Any, length: int = 64) -> str:
    """Return the first ``length`` hexadecimal digits of the SHA-256 of a value's canonical JSON.

    >>> digest({"b": 1, "a": 2}, 8) == digest({"a": 2, "b": 1}, 8)
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _checksum(path: Path) -> list[int]:
    """Return [size, CRC-32 of the checked pieces]; the whole file up to 1 GiB, a fixed sample beyond."""
    size = path.stat().st_size
    pieces = -(-size // _PIECE)
    stride = max(1, -(-pieces // _CHECKED))
    crc = 0
    with path.open("rb") as file:
        for piece in range(0, pieces, stride):
            file.seek(piece * _PIECE)
            crc = zlib.crc32(file.read(_PIECE), crc)
    return [size, crc]


def _open(folder: Path) -> tuple[Pixels, dict[str, Any]] | None:
    """Return pixels and index of a sound store, None when it is damaged."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["checksum"] != _checksum(folder / "pixels.u8") or index["digest"] != digest(index["meta"]):
            return None
        return np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r"), index["meta"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_store(folder: Path, build: Callable[[Path], dict[str, Any]]) -> tuple[Pixels, dict[str, Any]]:
    """Return the flat uint8 pixels of a store, read-only and memory-mapped, and its JSON metadata.

    ``build(aside)`` is called when ``folder`` is absent or damaged; it writes ``aside/pixels.u8`` and returns
    the metadata. The folder appears whole or not at all, so two processes may build it at once.
    Raises: whatever ``build`` raises; RuntimeError if a store just built cannot be read back.
    """
    if folder.exists():
        found = _open(folder)
        if found is not None:
            return found
        print(f"cache {folder} is damaged: building it again", file=sys.stderr, flush=True)
        grave = folder.with_name(f".{folder.name}-damaged-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):  # another process may have moved it away
            folder.rename(grave)  # aside first: nobody ever sees half a folder
        shutil.rmtree(grave, ignore_errors=True)
    with atomic_folder(folder) as aside:
        meta = build(aside)
        index = {"checksum": _checksum(aside / "pixels.u8"), "digest": digest(meta), "meta": meta}
        (aside / "index.json").write_text(json.dumps(index), encoding="utf-8")
    found = _open(folder)
    if found is None:
        raise RuntimeError(f"the cache {folder} cannot be read back right after it was written")
    return found
