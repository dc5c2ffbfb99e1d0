"""The data sets of the metric-learning papers: CUB-200-2011, CARS196 and Stanford Online Products."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvlib.assets import cache_root
from cvlib.data.base import Dataset
from cvlib.data.metric_listings import SETS, Listing, listing
from cvlib.data.pictures import items_of, read_picture, shrink, write_planar
from cvlib.data.resized_crops import ResizedCrops
from cvlib.data.store import Pixels, digest, open_store
from cvlib.errors import BookError
from cvlib.files import sha256

__all__ = ["cars196", "check", "cub200", "load", "online_products"]

CROPS = ("resized", "random", "centre")


def _states(name: str, found: Listing, half: str) -> list[list[Any]]:
    """Return [path, size, time of change] of one half's pictures. Raises: BookError if one is missing."""
    states, lacking = [], []
    for entry in found.halves[half]:
        try:
            state = (found.folder / entry.path).stat()
            states.append([entry.path, state.st_size, state.st_mtime_ns])
        except OSError:
            lacking.append(entry.path)
    if lacking:
        seen = f"{found.folder / lacking[0]} is missing, one of {len(lacking):,} of the {half} half"
        raise SETS[name].error(seen, "every picture that is listed")
    return states


def _open(name: str, found: Listing, half: str, short_side: int) -> tuple[Pixels, dict[str, Any]]:
    """Return the pictures of one half with ``short_side``, cached under the listing of their files."""
    kind, folder, states = SETS[name], found.folder, _states(name, found, half)
    files = [folder / state[0] for state in states]
    key = digest([str(folder.resolve()), states, short_side], 12)

    def make(path: Path) -> np.ndarray:
        try:
            picture = read_picture(path)
        except BookError as error:
            raise kind.error(str(error)) from error
        return shrink(picture, short_side / min(picture.shape[:2]))  # enlarges small ones, as the papers do

    def build(aside: Path) -> dict[str, Any]:
        shapes = write_planar(aside / "pixels.u8", files, make, f"{kind.title}, {half}")
        return {"sha256": [sha256(path) for path in files], "shapes": shapes}

    return open_store(cache_root() / name / f"{half}-{short_side}-{key}", build)


def load(
    name: str,
    split: str,
    image_size: int,
    *,
    root: str,
    short_side: int = 0,
    crop: str = "resized",
    flip: bool = True,
    all_train: bool = False,
) -> Dataset:
    """Return a split of "cub200", "cars196" or "online_products" below ``root``, in either of its layouts.

    The first half of the classes is for training, the second is "test" (for products as the two lists say).
    "validation" is the last fifth of the training classes and "train" the rest, or all of them with
    ``all_train``, as in the papers. Label "class" counts from 0 in each split; products have a
    "super_class" as well.

    ``short_side`` 0 means 256 / 224 of ``image_size``, the papers' ratio; pictures are stored so (bicubic),
    at 256 pixels about 0.25 MB each: 3 GB for the birds, 30 GB for the products. ``crop``, when augmenting:
    "resized" as in :class:`ResizedCrops`, which the papers use (on the full pictures), "random" without
    resizing, or "centre"; else always the centre.

    Raises: BookError for a missing file, another layout, a broken picture, or options at odds.
    """
    short_side = short_side or round(image_size * 256 / 224)
    if short_side < image_size or crop not in CROPS:
        seen = f"short_side {short_side}, crop {crop!r}"
        raise BookError(seen, f"a short side of at least {image_size}, crop one of {', '.join(CROPS)}")
    if split == "validation" and all_train:
        raise BookError(
            "split 'validation' with all_train", "one of the two", "train already holds its classes"
        )
    found, half = listing(name, root), "test" if split == "test" else "train"
    pixels, meta = _open(name, found, half, short_side)
    entries = found.halves[half]
    names = {entry.number: entry.name for entry in entries}  # in the order of the numbers
    chosen = list(names)
    if half == "train" and not all_train:
        cut = len(chosen) * 4 // 5  # rounded down, as the authors do: 78 of the 98 car classes
        chosen = chosen[:cut] if split == "train" else chosen[cut:]
    place = {number: k for k, number in enumerate(chosen)}
    rows = [row for row, entry in enumerate(entries) if entry.number in place]
    if not rows:
        raise BookError(f"{len(names)} training classes in {root}", "at least two, to put some aside")
    labels = {"class": torch.tensor([place[entries[row].number] for row in rows])}
    label_names = {"class": [names[number] for number in chosen]}
    if found.super_classes:
        labels["super_class"] = torch.tensor([entries[row].super_class - 1 for row in rows])
        label_names["super_class"] = list(found.super_classes)
    files = [[entries[row].path, entries[row].number, meta["sha256"][row]] for row in rows]
    return (ResizedCrops if crop == "resized" else Dataset)(
        name,
        split,
        image_size,
        pixels,
        items_of(meta["shapes"], image_size)[np.array(rows)],
        content={"files": files, "short_side": short_side, "crop": crop},
        labels=labels,
        label_names=label_names,
        random_crop=crop == "random",
        flip=flip,
    )


cub200 = partial(load, "cub200")
cars196 = partial(load, "cars196")
online_products = partial(load, "online_products")


def check(name: str, root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (half, what is counted, number found, number that the papers used), without decoding.

    Raises: BookError for another layout, or a listed picture that is missing.
    """
    found = listing(name, root)
    rows: list[tuple[str, str, int, int | None]] = []
    for half, entries in found.halves.items():
        _states(name, found, half)
        rows.append((half, "images", len(entries), SETS[name].pictures[half]))
        rows.append((half, "classes", len({entry.number for entry in entries}), SETS[name].classes[half]))
    return rows
