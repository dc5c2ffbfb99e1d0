"""Data sets: ``load(name, split, image_size)`` gives memory-mapped images, labels and repeatable batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from cvlib.data import (
    animal_faces,
    bodies,
    cifar10,
    cub_parts,
    deepfashion,
    emoji,
    image_folder,
    imagenet,
    metric_sets,
    pair_list,
    penn_action,
    photos,
)
from cvlib.data.base import SPLITS, Batches, Dataset
from cvlib.data.factors import Factors
from cvlib.data.rows import Rows
from cvlib.errors import BookError

__all__ = ["SPLITS", "Batches", "Dataset", "Factors", "Rows", "load"]

_LOADERS: dict[str, Callable[..., Dataset]] = {
    "emoji": emoji.load,
    "photos": photos.load,
    "bodies": bodies.load,
    "image_folder": image_folder.load,
    "cifar10": cifar10.load,
    "cub200": metric_sets.cub200,
    "cars196": metric_sets.cars196,
    "online_products": metric_sets.online_products,
    **{one.NAME: one.load for one in (cub_parts, deepfashion, penn_action, pair_list)},
    **{one.NAME: one.load for one in (imagenet, animal_faces)},
}


def load(name: str, split: str, image_size: int, *, root: str = "", **options: Any) -> Dataset:
    """Return a split ("train", "validation", "test") of a data set at ``image_size`` pixels.

    Emoji has the split "all" too. ``root`` is the folder of data that lies on the reader's disk; the options
    are those of the data set's own ``load``. Raises: BookError for an unknown name, split or option, or for
    data that cannot be used.
    """
    if name == "mocap":
        raise BookError("data 'mocap'", "images", "motions come from cvlib.data.mocap_windows.load")
    if name not in _LOADERS:
        raise BookError(f"data {name!r}", f"one of {', '.join(_LOADERS)}")
    loader = _LOADERS[name]
    known = set(inspect.signature(loader).parameters) - {"split", "image_size", "root"}
    if unknown := sorted(set(options) - known):
        raise BookError(f"option {', '.join(unknown)} of {name}", f"some of {', '.join(sorted(known))}")
    splits = (*SPLITS, "all") if name == "emoji" else SPLITS
    if split not in splits:
        raise BookError(f"split {split!r} of {name}", f"one of {', '.join(splits)}")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 8:
        raise BookError(f"image_size {image_size!r}", "a whole number of pixels, at least 8")
    if "root" in inspect.signature(loader).parameters:
        if not root:
            raise BookError(f"no folder for {name}", "the folder of the data", "pass data_root (root=...)")
        options["root"] = root
    return loader(split, image_size, **options)
