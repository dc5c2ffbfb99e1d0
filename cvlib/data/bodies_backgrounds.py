"""Backgrounds behind drawn bodies: one colour, a gradient, or a crop of a photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cvlib.data import photos
from cvlib.data.base import Draws, derived_generator
from cvlib.errors import BookError

__all__ = ["KINDS", "Backgrounds", "Drawn"]

KINDS = ("plain", "gradient", "photo")


@dataclass(frozen=True)
class Drawn:
    """The backgrounds of B images: colours and a direction, or places in photographs."""

    numbers: Tensor  #: (B, 7): two colours in [-1, 1] and an angle in radians
    photo: Tensor  #: int64 (B,), items of the photographs
    places: Draws | None = None  #: where in them

    def __getitem__(self, rows: slice) -> Drawn:
        places = None if self.places is None else self.places[rows]
        return Drawn(self.numbers[rows], self.photo[rows], places)


class Backgrounds:
    """Draws and paints backgrounds of one kind; the photographs' splits share no pixel."""

    def __init__(self, kind: str, split: str, image_size: int) -> None:
        if kind not in KINDS:
            raise BookError(f"background {kind!r}", f"one of {', '.join(KINDS)}")
        self.kind, self.image_size = kind, image_size
        self._photos = photos.load(split, image_size) if kind == "photo" else None
        self.content = {"kind": kind, "photos": self._photos.hash if self._photos else ""}

    def draw(self, n: int, generator: torch.Generator) -> Drawn:
        """Return ``n`` independent backgrounds: colours uniform in the cube, any angle, any crop."""
        u = torch.rand(n, 8, generator=generator)
        numbers = torch.cat([2 * u[:, :6] - 1, 2 * math.pi * u[:, 6:7]], 1)
        if self._photos is None:
            return Drawn(numbers, torch.zeros(n, dtype=torch.long))
        photo = (u[:, 7] * len(self._photos)).long()
        return Drawn(numbers, photo, self._photos.draw(photo, generator, True))

    def fixed(self, n: int, *words: object) -> Drawn:
        """Return the backgrounds that ``n`` images have when nothing is drawn anew."""
        return self.draw(n, derived_generator(0, "background", self.kind, *words))

    def paint(self, drawn: Drawn, device: torch.device | str = "cpu") -> Tensor:
        """Return images in [-1, 1] that broadcast to (B, 3, S, S)."""
        first, second = (drawn.numbers[:, k : k + 3].to(device)[:, :, None, None] for k in (0, 3))
        if self._photos is not None and drawn.places is not None:
            return self._photos.render(drawn.photo, drawn.places, device)["image"]
        if self.kind == "plain":
            return first
        at = (torch.arange(self.image_size, device=device) + 0.5) / self.image_size - 0.5
        c, s = (f(drawn.numbers[:, 6].to(device))[:, None, None] for f in (torch.cos, torch.sin))
        ramp = (c * at + s * at[:, None]) / (
            c.abs() + s.abs()
        ) + 0.5  # 0 and 1 in two corners or on two edges
        return torch.lerp(first, second, ramp[:, None])
