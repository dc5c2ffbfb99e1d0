"""Crops of photographs with known factors of colour and view: hue, saturation, zoom, mirror and so on."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data import load as load_data
from cvlib.data.base import Dataset, Draws
from cvlib.data.factors import hue_matrix, yiq
from cvlib.data.store import digest
from cvlib.errors import BookError

__all__ = [
    "FACTORS",
    "RANGES",
    "SOURCES",
    "FactorPhotos",
    "apply_factors",
    "colour_matrix",
    "load",
    "neutral",
    "sample",
]

FACTORS = ("hue", "saturation", "brightness", "zoom", "rotation", "mirror")  # columns of a table of factors

#: From where to where a factor is drawn: radians, factor of the colour differences, addend (images span 2),
#: magnification, radians counter-clockwise, and whether mirrored (0 or 1).
RANGES: dict[str, tuple[float, float]] = {
    "hue": (-math.pi, math.pi),
    "saturation": (0.25, 1.5),
    "brightness": (-0.4, 0.4),
    "zoom": (0.9, 1.8),
    "rotation": (-math.pi / 8, math.pi / 8),
    "mirror": (0.0, 1.0),
}
#: What crops are taken from, and the label that says what they show.
SOURCES = {"photos": "photo", "imagenet": "class", "animal_faces": "class", "image_folder": "class"}
_MARGIN = 3 / 2  # side of the canvas over that of the image: the widest look, turned furthest, stays inside


def neutral(n: int) -> Tensor:
    """Return factors (n, 6) that leave the middle of a canvas as it is.

    >>> neutral(1).tolist()
    [[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]
    """
    return torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0]).repeat(n, 1)


def sample(n: int, generator: torch.Generator) -> Tensor:
    """Return ``n`` independent draws of all factors (n, 6), uniform in their ranges, the zoom log-uniform.

    >>> tuple(sample(4, torch.Generator().manual_seed(0)).shape)
    (4, 6)
    """
    u = torch.rand(n, len(FACTORS), generator=generator)
    low, high = torch.tensor(list(RANGES.values())).T
    table = low + (high - low) * u
    zoom, mirror = (FACTORS.index(name) for name in ("zoom", "mirror"))
    table[:, zoom] = low[zoom] * (high[zoom] / low[zoom]) ** u[:, zoom]
    table[:, mirror] = (u[:, mirror] < 0.5).float()
    return table


def colour_matrix(hue: Tensor, saturation: Tensor) -> Tensor:
    """Return the (B, 3, 3) matrices that turn hues by ``hue`` (B,) and stretch colour differences.

    S H with H = :func:`hue_matrix` and S x = y + s (x - y), y the luma of x: both keep luma and greys.
    """
    luma = yiq(torch.eye(3).to(hue).view(3, 3, 1, 1))[:, 0].view(1, 1, 3).expand(1, 3, 3)
    return luma + saturation[:, None, None] * (hue_matrix(hue) - luma)


def _looks(canvas: Tensor, factors: Tensor, size: int) -> Tensor:
    """Return the middle of canvases (B, 3, C, C), zoomed, turned, mirrored: (B, 3, size, size)."""
    zoom, rotation, mirror = factors[:, 3:].unbind(1)
    if (zoom == 1).all() and (rotation == 0).all():  # without interpolation the bytes' own values remain
        start = (canvas.shape[-1] - size) // 2
        seen = canvas[:, :, start : start + size, start : start + size]
        return torch.where((mirror > 0.5)[:, None, None, None], seen.flip(-1), seen)
    c, s, side = torch.cos(rotation), torch.sin(rotation), 1 - 2 * mirror
    turn = torch.stack([torch.stack([c * side, -s], -1), torch.stack([s * side, c], -1)], -2)
    linear = turn * (size / canvas.shape[-1] / zoom)[:, None, None]
    theta = torch.cat([linear, torch.zeros_like(linear[:, :, :1])], -1)
    grid = F.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)
    return F.grid_sample(canvas, grid, padding_mode="border", align_corners=False)


def apply_factors(canvas: Tensor, factors: Tensor, size: int) -> Tensor:
    """Return images (B, 3, size, size) in [-1, 1]: canvases (B, 3, C, C) looked at and recoloured.

    The middle of the canvas is enlarged by the zoom, turned counter-clockwise, then mirrored; hues are
    turned, colour differences stretched, brightness is added, and what leaves [-1, 1] is cut off.
    ``factors`` (B, 6): columns as in :data:`FACTORS`. Raises: ValueError for other shapes, or if C - size is
    odd or negative.
    """
    room = canvas.shape[-1] - size
    if canvas.ndim != 4 or factors.shape != (len(canvas), len(FACTORS)) or room < 0 or room % 2:
        given = f"canvas {tuple(canvas.shape)}, factors {tuple(factors.shape)}, size {size}"
        raise ValueError(f"{given}; wanted (B, 3, C, C) and (B, {len(FACTORS)}), C - size even")
    hue, saturation, brightness = factors[:, :3].unbind(1)
    seen = _looks(canvas, factors, size)
    if (hue != 0).any() or (saturation != 1).any():
        seen = torch.einsum("bij,bjhw->bihw", colour_matrix(hue, saturation), seen)
    return (seen + brightness[:, None, None, None]).clamp(-1, 1)


class FactorPhotos(Dataset):
    """Crops whose batches hold "factors", float (B, 6), columns as in :data:`FACTORS`; labels of the source.

    With augmentation place and factors are drawn, without they are the item's own place and neutral. The
    generator is first used for the places, then for the factors.
    """

    def __init__(self, source: Dataset, image_size: int) -> None:
        """Look at ``source``, a data set of canvases of 3/2 ``image_size`` that are never mirrored."""
        self.source, self.image_size = source, image_size
        self.name, self.split = "photo_factors", source.split
        self.labels, self.label_names = source.labels, source.label_names
        self.hash = self._digest()

    def _digest(self) -> str:
        ranges = {name: list(bounds) for name, bounds in RANGES.items()}
        return digest({"source": self.source.hash, "image_size": self.image_size, "ranges": ranges}, 16)

    def __len__(self) -> int:
        return len(self.source)

    def subset(self, rows: Tensor) -> Self:
        part = copy.copy(self)
        part.source = self.source.subset(rows)
        part.labels, part.hash = part.source.labels, part._digest()
        return part

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        drawn = self.source.draw(index, generator, augment)
        factors = sample(len(index), generator) if augment and generator else neutral(len(index))
        return Draws(drawn.top, drawn.left, drawn.flip, factors)

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return {"image": float (B, 3, S, S) in [-1, 1], "factors": (B, 6)} for given draws."""
        assert draws.factors is not None
        canvas = self.source.render(index, draws, device)["image"]
        factors = draws.factors.to(device)
        return {"image": apply_factors(canvas, factors, self.image_size), "factors": factors}


def load(
    split: str, image_size: int, *, data: str = "photos", root: str = "", short_side: int = 0, **options: Any
) -> FactorPhotos:
    """Return a split ("train", "validation", "test") of crops with factors from one of :data:`SOURCES`.

    The splits are the data set's own. Of "photos" they share no pixel, and an item is one of 64 places of a
    photograph. ``root`` is the folder of the others, ``options`` are those of the data set's own ``load``,
    such as kinds or subset. ``short_side`` 0 stands for five times ``image_size`` of "photos", and for the
    side of the canvas of all others: a neutral crop shows two thirds of the short side.

    Raises: BookError for a size that is no multiple of 4, another data set, pictures without the label, or
    what the data set's own ``load`` refuses.
    """
    if image_size % 4:
        raise BookError(f"image_size {image_size}", "a multiple of 4")
    if data not in SOURCES:
        raise BookError(f"data {data!r}", f"one of {', '.join(SOURCES)}")
    canvas = round(_MARGIN * image_size)
    short_side = short_side or (5 * image_size if data == "photos" else canvas)
    source = load_data(data, split, canvas, root=root, short_side=short_side, flip=False, **options)
    if SOURCES[data] not in source.labels:
        seen = f"pictures in {root} that lie in no folder of a class"
        raise BookError(seen, "each in a subfolder named by its class")
    return FactorPhotos(source, image_size)
