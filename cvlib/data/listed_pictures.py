"""Pictures that a data set lists, at one short side, kept in the cache and cropped batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cvlib.assets import cache_root
from cvlib.data.base import Dataset
from cvlib.data.pictures import items_of, read_picture, shrink, write_planar
from cvlib.data.resized_crops import ResizedCrops
from cvlib.data.sources import Source
from cvlib.data.store import Pixels, digest, open_store
from cvlib.errors import BookError
from cvlib.files import sha256

__all__ = ["CROPS", "ListedPictures", "check_crop", "states_of"]

CROPS = ("resized", "random", "centre")


def check_crop(short_side: int, image_size: int, crop: str) -> None:
    """Raise BookError unless a crop of ``image_size`` fits and ``crop`` is one of ``CROPS``."""
    if short_side < image_size or crop not in CROPS:
        seen = f"short_side {short_side}, crop {crop!r}"
        raise BookError(seen, f"a short side of at least {image_size}, crop one of {', '.join(CROPS)}")


def states_of(source: Source, folder: Path, paths: Sequence[str], half: str) -> list[list[Any]]:
    """Return [path, size, time of change] of pictures. Raises: BookError, with their number, if some lack."""
    states, lacking = [], []
    for path in paths:
        try:
            state = (folder / path).stat()
            states.append([path, state.st_size, state.st_mtime_ns])
        except OSError:
            lacking.append(path)
    if lacking:
        seen = f"{folder / lacking[0]} is missing, one of {len(lacking):,} of the {half} half"
        raise source.error(seen, "every picture that is listed")
    return states


class ListedPictures:
    """The pictures ``paths`` below ``folder`` with ``short_side``, bicubic and antialiased; small ones grow.

    They are decoded once and cached under ``name`` for the state that the files are in.
    Raises: BookError for a missing or broken picture, naming it and where the data set is to be had.
    """

    def __init__(
        self, source: Source, name: str, half: str, folder: Path, paths: Sequence[str], short_side: int
    ) -> None:
        states = states_of(source, folder, paths, half)
        files = [folder / state[0] for state in states]
        key = digest([str(folder.resolve()), states, short_side], 12)

        def make(path: Path) -> np.ndarray:
            try:
                picture = read_picture(path)
            except BookError as error:
                raise source.error(str(error)) from error
            return shrink(picture, short_side / min(picture.shape[:2]))

        def build(aside: Path) -> dict[str, Any]:
            shapes = write_planar(aside / "pixels.u8", files, make, f"{source.title}, {half}")
            return {"sha256": [sha256(path) for path in files], "shapes": shapes}

        self.name, self.short_side = name, short_side
        pixels, meta = open_store(cache_root() / name / f"{half}-{short_side}-{key}", build)
        self.pixels: Pixels = pixels
        self.shapes: list[list[int]] = meta["shapes"]
        self.sha256: list[str] = meta["sha256"]  #: of each file, in the order of ``paths``

    def crops(
        self,
        split: str,
        image_size: int,
        rows: Sequence[int],
        *,
        files: Any,
        labels: dict[str, Tensor],
        label_names: dict[str, list[str]],
        crop: str,
        flip: bool,
    ) -> Dataset:
        """Return the pictures ``rows`` as a data set; ``files`` describes them for its hash.

        ``crop``, when augmenting: "resized" as in :class:`ResizedCrops`, "random" without resizing, or
        "centre"; without augmenting always the centre.
        """
        return (ResizedCrops if crop == "resized" else Dataset)(
            self.name,
            split,
            image_size,
            self.pixels,
            items_of(self.shapes, image_size)[np.array(rows, dtype=np.int64)],
            content={"files": files, "short_side": self.short_side, "crop": crop},
            labels=labels,
            label_names=label_names,
            random_crop=crop == "random",
            flip=flip,
        )
