"""The data sets of the metric-learning papers: CUB-200-2011, CARS196 and Stanford Online Products."""

from __future__ import annotations

from functools import partial

import torch

from cvlib.data.base import Dataset
from cvlib.data.listed_pictures import ListedPictures, check_crop, states_of
from cvlib.data.metric_listings import SETS, listing
from cvlib.errors import BookError

__all__ = ["cars196", "check", "cub200", "load", "online_products"]


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
    check_crop(short_side, image_size, crop)
    if split == "validation" and all_train:
        raise BookError(
            "split 'validation' with all_train", "one of the two", "train already holds its classes"
        )
    found, half = listing(name, root), "test" if split == "test" else "train"
    entries = found.halves[half]
    paths = [entry.path for entry in entries]
    pictures = ListedPictures(SETS[name], name, half, found.folder, paths, short_side)
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
    return pictures.crops(
        split,
        image_size,
        rows,
        files=[[entries[row].path, entries[row].number, pictures.sha256[row]] for row in rows],
        labels=labels,
        label_names=label_names,
        crop=crop,
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
        states_of(SETS[name], found.folder, [entry.path for entry in entries], half)
        rows.append((half, "images", len(entries), SETS[name].pictures[half]))
        rows.append((half, "classes", len({entry.number for entry in entries}), SETS[name].classes[half]))
    return rows
