"""A reader's own folder of pictures, classes and splits taken from its subfolders when it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvlib.assets import cache_root
from cvlib.data.base import Dataset
from cvlib.data.pictures import SUFFIXES, items_of, read_picture, shrink, write_planar
from cvlib.data.store import Pixels, digest, open_store
from cvlib.errors import BookError
from cvlib.files import sha256

__all__ = ["load", "split_by_hash"]

_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def split_by_hash(file_hash: str) -> str:
    """Return the split of a file from its SHA-256: 80/10/10, and copies of a file stay together.

    >>> [split_by_hash(digit * 64) for digit in "0af"]
    ['train', 'train', 'train']
    """
    return {8: "validation", 9: "test"}.get(int(file_hash, 16) % 10, "train")


def _pictures(folder: Path) -> list[Path]:
    """Return the picture files below ``folder``, sorted by path; hidden files and folders are left out."""
    if not folder.is_dir():
        raise BookError(
            f"{folder} is {'not a folder' if folder.exists() else 'missing'}", "a folder of pictures"
        )
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise BookError(f"{folder} holds no picture", f"files that end in {' '.join(sorted(SUFFIXES))}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _folder_of(root: Path, split: str) -> tuple[Path, bool]:
    """Return the folder of a split and whether it is that split's own."""
    own = {name: root / name for names in _FOLDERS.values() for name in names if (root / name).is_dir()}
    if not own:
        return root, False
    for name in _FOLDERS[split]:
        if name in own:
            return own[name], True
    raise BookError(f"{root} has {', '.join(sorted(own))}", f"a subfolder {_FOLDERS[split][0]} as well")


def _open(folder: Path, files: list[Path], short_side: int) -> tuple[Pixels, dict[str, Any]]:
    """Return the pictures of ``files`` with ``short_side``, cached under the listing of the folder."""
    states = [(path, path.stat()) for path in files]
    listing = [[p.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns] for p, s in states]
    key = digest([str(folder.resolve()), listing, short_side], 12)

    def make(path: Path) -> np.ndarray:
        picture = read_picture(path)
        short = min(picture.shape[:2])
        if short < short_side:
            seen = f"{path} is {picture.shape[1]} x {picture.shape[0]} pixels"
            raise BookError(seen, f"at least {short_side} on the short side", "remove it or ask for less")
        return shrink(picture, short_side / short)

    def build(aside: Path) -> dict[str, Any]:
        shapes = write_planar(aside / "pixels.u8", files, make, f"pictures of {folder}")
        names = [entry[0] for entry in listing]
        return {"files": names, "sha256": [sha256(path) for path in files], "shapes": shapes}

    return open_store(cache_root() / "image_folder" / f"{short_side}-{key}", build)


def load(
    split: str, image_size: int, *, root: str, short_side: int = 0, crop: str = "random", flip: bool = True
) -> Dataset:
    """Return a split of the pictures below ``root``, the short side resized to ``short_side`` and cropped.

    ``root`` may hold train / validation (val) / test; if it holds none of them, every file's split follows
    from its content. Where all pictures lie in subfolders, these are the classes (label "class").
    ``short_side`` 0 means ``image_size``; ``crop``: "random" (when augmenting; else the centre) or "centre".
    Raises: BookError for a missing or empty folder or split, or, naming the file, for a picture that cannot
    be read or is smaller than ``short_side``.
    """
    short_side = short_side or image_size
    if short_side < image_size or crop not in ("random", "centre"):
        seen = f"short_side {short_side}, crop {crop!r}"
        raise BookError(seen, f"a short side of at least {image_size}, crop 'random' or 'centre'")
    base = Path(root).expanduser()
    if not root or not base.is_dir():
        raise BookError(f"data root {root!r} is no folder", "a folder of pictures", "pass data_root")
    folder, own = _folder_of(base, split)
    files = _pictures(folder)
    pixels, meta = _open(folder, files, short_side)
    rows = [row for row, file in enumerate(meta["sha256"]) if own or split_by_hash(file) == split]
    if not rows:
        seen = f"none of the {len(files)} pictures of {folder} falls into {split}"
        raise BookError(seen, do="add pictures, or make subfolders train, validation and test")
    parts = [Path(name).parts for name in meta["files"]]
    classes = sorted({part[0] for part in parts}) if all(len(part) > 1 for part in parts) else []
    label = {"class": torch.tensor([classes.index(parts[row][0]) for row in rows])} if classes else {}
    return Dataset(
        "image_folder",
        split,
        image_size,
        pixels,
        items_of(meta["shapes"], image_size)[np.array(rows)],
        content={"files": [[meta["files"][r], meta["sha256"][r]] for r in rows], "short_side": short_side},
        labels=label,
        label_names={"class": classes} if classes else {},
        random_crop=crop == "random",
        flip=flip,
    )
