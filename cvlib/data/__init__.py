"""Data sets: ``load(name, split, image_size)`` gives memory-mapped images, labels and repeatable batches."""

from __future__ import annotations

from typing import Any

from cvlib.data import emoji
from cvlib.data.base import SPLITS, Batches, Dataset
from cvlib.data.factors import Factors
from cvlib.data.rows import Rows
from cvlib.errors import BookError

__all__ = ["Batches", "Dataset", "Factors", "Rows", "load"]

_LOADERS = {"emoji": emoji.load}


def load(name: str, split: str, image_size: int, *, root: str = "", **options: Any) -> Dataset:
    """Return a split ("train", "validation", "test") of a data set at ``image_size`` pixels.

    ``root`` is the folder of data that lies on the reader's disk; the options are those of the data set's
    own ``load``. Raises: BookError for an unknown name, split or option, or for data that cannot be used.
    """
    if name not in _LOADERS:
        raise BookError(f"data {name!r}", f"one of {', '.join(_LOADERS)}")
    return _LOADERS[name](split, image_size, **options)
