"""Pictures with optional part masks, cut to squares of one size, stored together and kept in the cache."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cvlib.assets import cache_root
from cvlib.data.part_masks import UNKNOWN, MaskReader
from cvlib.data.pictures import read_picture, write_planar
from cvlib.data.sources import Source
from cvlib.data.store import Pixels, digest, open_store
from cvlib.errors import BookError
from cvlib.files import sha256

__all__ = ["Box", "PartPicture", "Square", "Stored", "open_pictures", "square_of"]

_FORMAT = 1  # raise when cutting changes, so that old caches are not read
Box = tuple[float, float, float, float]  #: left, top, width and height in pixels


@dataclass(frozen=True)
class PartPicture:
    """One picture of a data set, its paths below the data set's folder."""

    path: str
    identity: str  #: what the pictures of a pair share
    mask: str = ""  #: path of the part mask, or nothing where there is none
    box: Box | None = None  #: what to cut out; without one, the whole picture
    joints: tuple[tuple[float, float], ...] = ()  #: right and down in pixels, NaN where hidden


_MOST_BOX = 4  # times the picture's longer side: a box beyond that is a slip, and would ask for gigabytes


class Square(NamedTuple):
    """A square of a picture in whole pixels; it may stick out of it."""

    left: int
    top: int
    side: int

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """Return the square (side, side, ...) of ``picture`` (H, W, ...); outside, the edge goes on."""
        rows = np.arange(self.top, self.top + self.side).clip(0, picture.shape[0] - 1)
        columns = np.arange(self.left, self.left + self.side).clip(0, picture.shape[1] - 1)
        return picture[rows[:, None], columns]

    def place(self, x: float, y: float, image_size: int) -> tuple[float, float]:
        """Return where a place of the picture lies in the square once it has ``image_size``² pixels."""
        scale = image_size / self.side
        return (x - self.left) * scale, (y - self.top) * scale


def square_of(width: int, height: int, box: Box | None, margin: float) -> Square:
    """Return the square around ``box`` with ``margin`` times its longer side added on each side.

    It is moved into the picture where it sticks out; where the picture is narrower than the square, it is
    centred on it. Without a box: the smallest square that holds the whole picture.

    >>> square_of(100, 60, (10, 20, 30, 20), 0.0)
    Square(left=10, top=15, side=30)
    >>> square_of(100, 60, None, 0.5)
    Square(left=0, top=-20, side=100)
    """
    x, y, w, h = box or (0.0, 0.0, float(width), float(height))
    side = max(1, round(max(w, h) * (1 + 2 * margin * (box is not None))))

    def start(centre: float, extent: int) -> int:
        if side > extent:
            return (extent - side) // 2
        return min(max(round(centre - side / 2), 0), extent - side)

    return Square(start(x + w / 2, width), start(y + h / 2, height), side)


def _fitted(mask: np.ndarray, shape: tuple[int, int], path: Path) -> np.ndarray:
    """Return a mask at the size of its picture. Raises: BookError if it has other proportions."""
    if mask.shape == shape:
        return mask
    (h, w), (height, width) = mask.shape, shape
    if abs(h * width - w * height) > max(height, width):  # more than about one pixel askew
        raise BookError(f"{path} is {w} x {h}, its picture {width} x {height}", "equal proportions")
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _cut(
    picture: PartPicture, folder: Path, read: MaskReader, image_size: int, margin: float
) -> tuple[np.ndarray, Square]:
    """Return colours and label of the square, uint8 (S, S, 4), and where it lies."""
    rgb = read_picture(folder / picture.path)
    height, width = rgb.shape[:2]
    if picture.box and not all(abs(v) <= _MOST_BOX * max(width, height) for v in picture.box):  # NaN is not
        seen = "box " + ", ".join(f"{v:g}" for v in picture.box)
        raise BookError(
            f"{folder / picture.path}: {seen} of a picture of {width} x {height}", "a box within it"
        )
    square = square_of(width, height, picture.box, margin)
    ids = np.full((height, width), UNKNOWN, dtype=np.uint8)
    if _state(folder, picture.mask):
        ids = _fitted(read(folder / picture.mask), (height, width), folder / picture.mask)
    size = (image_size, image_size)
    colours = Image.fromarray(square.cut(rgb)).resize(size, Image.Resampling.BICUBIC)
    labels = Image.fromarray(square.cut(ids)).resize(size, Image.Resampling.NEAREST)
    return np.dstack([np.asarray(colours), np.asarray(labels)]), square


def _state(folder: Path, path: str) -> list[int] | None:
    """Return size and time of change of a file below ``folder``, or None where there is none."""
    if not path or not (folder / path).is_file():
        return None
    state = (folder / path).stat()
    return [state.st_size, state.st_mtime_ns]


def _states(source: Source, folder: Path, pictures: Sequence[PartPicture]) -> list[Any]:
    """Return size and time of every picture and mask. Raises: BookError for a missing picture."""
    states = [[_state(folder, one.path), _state(folder, one.mask)] for one in pictures]
    if any(picture is None for picture, _ in states):
        source.require(folder, [one.path for one in pictures])
    return states


class Stored(NamedTuple):
    """Bytes (N, 4, S, S) in a row, where the squares lie, one digest of all files, and which have a mask."""

    pixels: Pixels
    squares: list[Square]
    digest: str
    is_masked: list[bool]


def open_pictures(
    source: Source,
    name: str,
    split: str,
    folder: Path,
    pictures: Sequence[PartPicture],
    read: MaskReader,
    *,
    image_size: int,
    margin: float = 0.0,
) -> Stored:
    """Return the pictures as squares of ``image_size`` with a label at each pixel; see :class:`Stored`.

    Colours are resized bicubically with antialiasing, labels by nearest neighbour; without a mask they are
    :data:`UNKNOWN`. All is kept under ``name`` in the cache, for the state that the files are in. If some
    masks are missing and others not, a line on the terminal says how many.
    Raises: BookError for a missing or broken picture, a broken mask, or one with unknown ids.
    """
    states = _states(source, folder, pictures)
    is_masked = [mask is not None for _, mask in states]
    without = [one.path for one, masked in zip(pictures, is_masked, strict=True) if not masked]
    if 0 < len(without) < len(pictures):
        told = f"{len(without):,} of {len(pictures):,} pictures have no mask, the first {without[0]}"
        print(f"{name}, {split}: {told}; they are not scored", file=sys.stderr, flush=True)
    described = [[one.path, one.mask, one.box] for one in pictures]
    key = digest([str(folder.resolve()), described, states, image_size, margin, read.__name__, _FORMAT], 12)

    def build(aside: Path) -> dict[str, Any]:
        squares: dict[int, Square] = {}

        def make(at: int) -> np.ndarray:
            try:
                found, squares[at] = _cut(pictures[at], folder, read, image_size, margin)
            except BookError as error:
                raise source.error(str(error)) from error
            return found

        write_planar(aside / "pixels.u8", range(len(pictures)), make, f"{source.title}, {split}")
        return {"squares": [squares[at] for at in range(len(pictures))], "sha256": _digest(folder, pictures)}

    pixels, meta = open_store(cache_root() / name / f"{split}-{image_size}-{key}", build)
    return Stored(pixels, [Square(*one) for one in meta["squares"]], meta["sha256"], is_masked)


def _digest(folder: Path, pictures: Sequence[PartPicture]) -> str:
    """Return one SHA-256 of the contents of all pictures and masks, the same on every machine."""
    total = hashlib.sha256()
    for one in pictures:
        for path in (one.path, one.mask):
            total.update((sha256(folder / path) if _state(folder, path) else "none").encode())
    return total.hexdigest()
