"""Scenes: shapes, textures and lights, and the looks of all their surfaces in one table."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.render.checks import want_shape, want_unit_range
from cvlib.render.shading import Lights
from cvlib.render.shapes import Boxes, Capsules, Planes, Shapes, Spheres

__all__ = ["Looks", "Scene"]

T = TypeVar("T")


class Looks(NamedTuple):
    """The looks of all S surfaces of B scenes: the kinds in order, in each the shapes, in each the faces."""

    part: Tensor  #: int64 (B, S)
    texture: Tensor  #: int64 (B, S)
    colour: Tensor  #: (3, B, S)
    uv: Tensor  #: (4, B, S)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """B scenes with equal numbers of shapes, or one scene (B = 1) for many cameras.

    ``textures`` (T, 3, h, w) in [0, 1] are shared by all of them. Without lights a surface shows its own
    colour. Raises: BookError where batch sizes, types or devices disagree, or for a texture that is missing.
    """

    planes: Planes | None = None
    boxes: Boxes | None = None
    spheres: Spheres | None = None
    capsules: Capsules | None = None
    textures: Tensor | None = None
    lights: Lights | None = None

    def __post_init__(self) -> None:
        if not self.kinds:
            raise BookError("a scene without shapes", "planes, boxes, spheres or capsules")
        if self.textures is not None:
            want_shape("textures", self.textures, None, 3, None, None, names="(T, 3, h, w)")
            want_unit_range("textures", self.textures)
        lights = [] if self.lights is None else [("lights", self.lights.direction)]
        sizes = [(str(kind), kind.colour) for kind in self.kinds] + lights
        for name, x in sizes:
            if len(x) != len(self):
                raise BookError(
                    f"{sizes[0][0]} for {len(self)} scenes, {name} for {len(x)}", "one batch size"
                )
        for name, x in sizes + ([] if self.textures is None else [("textures", self.textures)]):
            if (x.dtype, x.device) != (self.like.dtype, self.like.device):
                seen = f"{name} in {x.dtype} on {x.device}"
                raise BookError(seen, f"{self.like.dtype} on {self.like.device}, as {sizes[0][0]}")
        n_textures = 0 if self.textures is None else len(self.textures)
        for kind in self.kinds:
            if kind.texture is not None and kind.texture.numel():
                low, high = int(kind.texture.min()), int(kind.texture.max())
                if low < -1 or high >= n_textures:
                    seen = f"{kind}: textures {low} to {high} of {n_textures}"
                    raise BookError(seen, "rows of Scene's textures", "-1 is none")

    def __len__(self) -> int:
        return len(self.like)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Scene:
        """Return the scene on another device, or its numbers in another floating type."""
        return _moved(self, device, dtype)

    @property
    def kinds(self) -> list[Shapes]:
        """The kinds of shapes that are there."""
        return [kind for kind in (self.planes, self.boxes, self.spheres, self.capsules) if kind is not None]

    @property
    def like(self) -> Tensor:
        """A tensor with the scene's batch size, type and device."""
        return self.kinds[0].colour

    def looks(self) -> Looks:
        """Return the table of looks, with what was left out filled in."""
        part, texture, colour, uv = [], [], [], []
        before = 0
        for kind in self.kinds:
            b, n = kind.shape
            whole = (b, n, kind.faces)
            numbers = torch.arange(before + 1, before + n + 1, device=self.like.device)
            plain = self.like.new_tensor([1.0, 1.0, 0.0, 0.0])
            part.append(_faced(numbers.expand(b, n) if kind.part is None else kind.part, whole))
            texture.append(
                _faced(
                    torch.full_like(numbers, -1).expand(b, n) if kind.texture is None else kind.texture, whole
                )
            )
            colour.append(_faced(kind.colour, (*whole, 3)))
            uv.append(_faced(plain.expand(b, n, 4) if kind.uv is None else kind.uv, (*whole, 4)))
            before += n
        columns = [torch.cat(x, 1).movedim(2, 0).contiguous() for x in (colour, uv)]
        return Looks(torch.cat(part, 1), torch.cat(texture, 1), *columns)


def _moved(part: T, device: torch.device | str | None, dtype: torch.dtype | None) -> T:
    """Return a dataclass of tensors and such dataclasses with all of them moved."""
    if isinstance(part, Tensor):
        return part.to(device=device, dtype=dtype if part.is_floating_point() else None)  # type: ignore[return-value]
    if part is None:
        return part
    moved = {one.name: _moved(getattr(part, one.name), device, dtype) for one in fields(part)}  # type: ignore[arg-type]
    return replace(part, **moved)  # type: ignore[type-var]


def _faced(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return (B, N, ...) or (B, N, F, ...) as (B, N F, ...)."""
    return (x if x.ndim == len(shape) else x.unsqueeze(2)).expand(shape).flatten(1, 2)
