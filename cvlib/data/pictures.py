"""Reading picture files into RGB bytes, whatever their mode, and storing many of them one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvlib.data.base import Items
from cvlib.errors import BookError

__all__ = ["items_of", "read_picture", "shrink", "write_planar"]

T = TypeVar("T")
SUFFIXES = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"])


def read_picture(path: Path, *, turn: bool = True) -> np.ndarray:
    """Return a picture file as uint8 RGB (H, W, 3): turned as its EXIF says, transparency laid on white,
    grey, palette, CMYK and 16-bit files converted.

    Without ``turn`` it stays as it is stored, for places that were measured so.
    Raises: BookError naming the file if it cannot be read as a picture.
    """
    try:
        with Image.open(path) as file:
            picture: Image.Image = ImageOps.exif_transpose(file) if turn else file
            if picture.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip, not scale
                return np.repeat((np.asarray(picture).clip(0, 65535) >> 8).astype(np.uint8)[..., None], 3, 2)
            if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
                clear = picture.convert("RGBA")
                white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
                picture = Image.alpha_composite(white, clear)
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BookError(
            f"{path} cannot be read as a picture ({error})", do="replace or remove the file"
        ) from error


def shrink(picture: np.ndarray, factor: float) -> np.ndarray:
    """Return ``picture`` (H, W, 3) uint8 resized by ``factor``, bicubic, antialiased; 1 changes nothing."""
    height, width = (round(side * factor) for side in picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _ahead(make: Callable[[T], np.ndarray], items: Iterable[T]) -> Iterator[np.ndarray]:
    """Map on two threads (decoding frees the interpreter), at most 32 pictures ahead, in order."""
    rest = iter(items)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(make, item) for item in islice(rest, 32)]
        try:
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(make, item) for item in islice(rest, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def write_planar(
    target: Path, items: Sequence[T], make: Callable[[T], np.ndarray], what: str
) -> list[list[int]]:
    """Write ``make(item)`` (H, W, C) of every item to ``target`` as planar bytes; return [[H, W], ...].

    A line of progress every 10 s.
    """
    shapes, told = [], time.monotonic()
    with target.open("wb") as file:
        for picture in _ahead(make, items):
            file.write(np.ascontiguousarray(picture.transpose(2, 0, 1)).data)
            shapes.append([picture.shape[0], picture.shape[1]])
            if time.monotonic() - told > 10:
                told = time.monotonic()
                print(f"{what}: {len(shapes):,} of {len(items):,} read", file=sys.stderr, flush=True)
    return shapes


def items_of(shapes: list[list[int]], image_size: int) -> Items:
    """Return the items of pictures stored by :func:`write_planar`, with the centre as their fixed crop."""
    height, width = np.array(shapes, dtype=np.int64).reshape(-1, 2).T
    ends = np.cumsum(3 * height * width)
    base = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    return Items(base, height, width, (height - image_size) // 2, (width - image_size) // 2)
