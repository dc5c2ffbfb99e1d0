"""Photographs and textures that lie inside the scikit-image and scikit-learn packages, as random crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvlib.assets import ASSETS, cache_root, member
from cvlib.data.base import Dataset, Items
from cvlib.data.pictures import items_of, read_picture, shrink, write_planar
from cvlib.data.store import Pixels, digest, open_store
from cvlib.errors import BookError

__all__ = ["KINDS", "load", "region"]

KINDS: dict[str, tuple[str, ...]] = {
    "photo": (
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "china.jpg",
        "flower.jpg",
        "camera.png",
        "coins.png",
        "clock_motion.png",
    ),
    "texture": ("brick.png", "grass.png", "gravel.png"),
    "science": ("retina.jpg", "ihc.png", "hubble_deep_field.jpg", "moon.png", "cell.png"),
}
_CROPS = 64  # items per photograph
_ASSET = {one.name: name for name in ("photos-skimage", "photos-sklearn") for one in ASSETS[name].members}


def region(height: int, width: int, split: str, mirror: bool) -> tuple[slice, slice]:
    """Return the rows and columns of a photograph that belong to a split; the three share no pixel.

    The longer side is halved: one half is for training (the second if ``mirror``), the other is halved
    across into validation and test.

    >>> region(100, 200, "train", False), region(100, 200, "test", False)
    ((slice(0, 100, None), slice(0, 100, None)), (slice(50, 100, None), slice(100, 200, None)))
    """
    long, across = max(height, width), min(height, width)
    near, far = slice(0, long // 2), slice(long // 2, long)
    train, rest = (far, near) if mirror else (near, far)
    cut = {
        "train": (train, slice(0, across)),
        "validation": (rest, slice(0, across // 2)),
        "test": (rest, slice(across // 2, across)),
    }[split]
    return (cut[1], cut[0]) if width >= height else cut


def _open(split: str, kinds: Sequence[str], short_side: int) -> tuple[Pixels, dict[str, Any]]:
    """Return the regions of a split, cut first and resized then, so that no source pixel is shared."""
    names = [name for kind in kinds for name in KINDS[kind]]
    order = {name: row for row, name in enumerate(name for kind in KINDS for name in KINDS[kind])}
    sources = [ASSETS[asset].sha256 for asset in sorted(set(_ASSET.values()))]
    key = {"split": split, "names": names, "short_side": short_side, "sources": sources, "format": 1}

    def make(path: Path) -> np.ndarray:
        whole = read_picture(path)
        height, width = whole.shape[:2]
        part = whole[region(height, width, split, mirror=order[path.name] % 2 == 1)]
        return shrink(part, min(1.0, short_side / min(height, width)))

    def build(aside: Path) -> dict[str, Any]:
        paths = [member(_ASSET[name], name) for name in names]
        return {
            "key": key,
            "names": names,
            "shapes": write_planar(aside / "pixels.u8", paths, make, "photos"),
        }

    return open_store(cache_root() / "photos" / f"{short_side}-{digest(key, 12)}", build)


def load(
    split: str,
    image_size: int,
    *,
    kinds: Sequence[str] = ("photo", "texture"),
    short_side: int = 0,
    flip: bool = True,
) -> Dataset:
    """Return crops of photographs; the splits take them from parts of each photograph that share no pixel.

    An index stands for one of 64 fixed places of one photograph; with augmentation the place is drawn anew.
    ``kinds``: some of "photo", "texture", "science"; ``short_side`` to which whole photographs are shrunk,
    0 for four times ``image_size``; they are never enlarged, and one whose smallest part is below
    ``image_size`` is left out of all splits. Labels: photo, kind.
    Raises: BookError for an unknown kind, or if no photograph is large enough.
    """
    if not kinds or not set(kinds) <= set(KINDS):
        raise BookError(f"kinds {list(kinds)}", f"some of {', '.join(KINDS)}")
    kinds = tuple(kind for kind in KINDS if kind in kinds)
    short_side = short_side or 4 * image_size
    stores = {s: _open(s, kinds, short_side) for s in ("train", "validation", "test")}
    smallest = np.min([np.min(meta["shapes"], axis=1) for _, meta in stores.values()], axis=0)
    fits = np.flatnonzero(smallest >= image_size)
    if not len(fits):
        seen = f"no photograph has three parts of {image_size} px with short_side {short_side}"
        raise BookError(seen, "a smaller image_size or a larger short_side")
    pixels, meta = stores[split]
    rows = np.repeat(fits, _CROPS)
    items = items_of(meta["shapes"], image_size)[rows]
    # the plastic number's sequence (Roberts 2018): evenly spread places, the same for every photograph
    step = np.array([0.7548776662466927, 0.5698402909980532])
    place = (0.5 + np.tile(np.arange(_CROPS), len(fits))[:, None] * step) % 1
    top = (place[:, 0] * (items.height - image_size + 1)).astype(np.int64)
    left = (place[:, 1] * (items.width - image_size + 1)).astype(np.int64)
    names = [meta["names"][row] for row in fits]
    kind = [next(k for k, kind in enumerate(kinds) if name in KINDS[kind]) for name in names]

    def each(values: list[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(_CROPS)

    return Dataset(
        "photos",
        split,
        image_size,
        pixels,
        Items(items.base, items.height, items.width, top, left),
        content={"key": meta["key"], "names": names},
        labels={"photo": each(list(range(len(fits)))), "kind": each(kind)},
        label_names={"photo": [Path(name).stem for name in names], "kind": list(kinds)},
        flip=flip,
    )
