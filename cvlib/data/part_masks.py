"""Part masks as real data sets store them, read into the ids of a few labels.

Every reader returns uint8 (H, W) and raises BookError naming a file that holds an id or colour it does not
know: an unknown part is a mistake, not background.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cvlib.data.bodies_figure import MERGED
from cvlib.data.pictures import read_picture
from cvlib.errors import BookError

__all__ = ["BIRD", "FIGURE", "UNKNOWN", "MaskReader", "colour_mask", "figure_mask", "iuv_mask"]

MaskReader = Callable[[Path], np.ndarray]
UNKNOWN = 255  #: the stored byte of a pixel whose label nobody knows; data sets give it as -1

#: labels of a mask that only tells figure from background
FIGURE: tuple[str, ...] = ("background", "figure")
#: labels of the paper's hand-annotated birds
BIRD: tuple[str, ...] = ("background", "head", "chest", "wing", "tail", "feet")
# red, green, blue; the paper's scripts list them as OpenCV reads them, the other way round
_BIRD_COLOURS = {
    (0, 0, 0): "background",
    (0, 0, 128): "head",
    (0, 128, 0): "chest",
    (128, 128, 0): "wing",
    (128, 0, 0): "tail",
    (128, 0, 128): "feet",
}
# first and last part index of DensePose, and the label of the paper's evaluation that they are merged into
_DENSEPOSE = (
    (0, 0, "background"),
    (1, 2, "torso"),
    (3, 4, "arms"),  # the hands
    (5, 6, "feet"),
    (7, 14, "legs"),
    (15, 22, "arms"),
    (23, 24, "head"),
)
_MERGED_IDS = np.full(256, UNKNOWN, dtype=np.uint8)
for _first, _last, _label in _DENSEPOSE:
    _MERGED_IDS[_first : _last + 1] = MERGED.index(_label)


def figure_mask(path: Path) -> np.ndarray:
    """Return ids of :data:`FIGURE`: 1 where a grey picture is in its upper half, 128 to 255.

    A file without a value above 1 holds the ids themselves, as the authors' pair lists may have them.
    """
    grey = read_picture(path)[..., 0]
    return grey if grey.max() <= 1 else (grey >= 128).astype(np.uint8)


def colour_mask(path: Path) -> np.ndarray:
    """Return ids of :data:`BIRD` for the colours of the paper's ``SegmentationClass/view_<i>.png``."""
    rgb = read_picture(path).astype(np.int32)
    code = rgb @ np.array([65536, 256, 1])
    ids = np.full(code.shape, UNKNOWN, dtype=np.uint8)
    for (r, g, b), label in _BIRD_COLOURS.items():
        ids[code == 65536 * r + 256 * g + b] = BIRD.index(label)
    if (ids == UNKNOWN).any():
        y, x = np.argwhere(ids == UNKNOWN)[0]
        known = ", ".join(f"{label} {colour}" for colour, label in _BIRD_COLOURS.items())
        raise BookError(f"{path} has the colour {tuple(rgb[y, x].tolist())} at x {x}, y {y}", known)
    return ids


def iuv_mask(path: Path) -> np.ndarray:
    """Return ids of :data:`cvlib.data.bodies.MERGED` for a DensePose IUV picture: blue is the part.

    Blue is the first channel of OpenCV, with which the authors read it. The indices 1 to 24 mean torso (1, 2:
    back and front), hands (3, 4), feet (5, 6), legs (7 to 14), arms (15 to 22) and head (23, 24); 0 is the
    background. That table is from memory, not from a document; which of them make up arms, legs, head, feet
    and torso is the authors' configuration.
    """
    index = read_picture(path)[..., 2]
    ids = _MERGED_IDS[index]
    if (ids == UNKNOWN).any():
        seen = f"{path} has the part index {int(index[ids == UNKNOWN][0])}"
        raise BookError(seen, "0 to 24 in the blue channel of a DensePose IUV picture")
    return ids
