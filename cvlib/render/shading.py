"""What a surface point looks like: bilinear textures and Lambert's law."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.render.checks import want_positive, want_shape
from cvlib.render.vectors import Vec, dot, unit, vec

__all__ = ["Lights", "lambert", "sample_textures"]


@dataclass(frozen=True)
class Lights:
    """Ambient light and L distant lights, the same B scenes; no shadows.

    A surface of colour c and normal n shows c (ambient + Σ colour max(0, n · l)) by Lambert's law, at most 1;
    l is the direction towards the light, of length 1. Raises: BookError for wrong shapes, a direction
    without length or negative light.
    """

    direction: Tensor  #: (B, L, 3) in the world, towards the light, of any length
    colour: Tensor  #: (B, L, 3)
    ambient: Tensor  #: (B, 3)

    def __post_init__(self) -> None:
        want_shape("lights: direction", self.direction, None, None, 3, names="(B, L, 3)")
        want_shape("lights: colour", self.colour, *self.direction.shape)
        want_shape("lights: ambient", self.ambient, len(self.direction), 3)
        want_positive("lights: length of direction", self.direction.norm(dim=-1))
        if bool((self.colour < 0).any() | (self.ambient < 0).any()):
            raise BookError("lights with a negative colour", "0 or more")

    @classmethod
    def studio(
        cls, n: int = 1, up: tuple[float, float, float] = (0.0, 1.0, 0.0), dtype: torch.dtype = torch.float32
    ) -> Lights:
        """Return n times the same soft light: ambient 0.58, a key light from above, a weaker one opposite.

        A surface that faces the key light shows its own colour, and none is brighter.
        """
        y = unit(torch.tensor(up, dtype=dtype))
        x = unit(torch.linalg.cross(y, y.new_tensor([0.31, 0.17, 0.93])))
        z = torch.linalg.cross(x, y)
        direction = torch.stack((0.5 * x + y + 0.7 * z, -0.8 * x + 0.1 * y - 0.5 * z))
        colour = y.new_tensor([[0.42] * 3, [0.22] * 3])
        return cls(direction.repeat(n, 1, 1), colour.repeat(n, 1, 1), y.new_full((n, 3), 0.58))


def lambert(normal: Vec, direction: Tensor, colour: Tensor, ambient: Tensor) -> Tensor:
    """Return the light (3, n) from white surfaces; direction (L, 3, n) has length 1, colour is (L, 3, n)."""
    light = ambient
    for to_light, shade in zip(direction, colour, strict=True):
        light = torch.addcmul(light, shade, dot(normal, vec(to_light, 0)).clamp_min(0))
    return light


def sample_textures(textures: Tensor, index: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return colours (3, n) of ``textures`` (T, 3, h, w) number ``index`` (n,) at u, v (n,).

    (u, v) = (0, 0) is the upper left corner of the image and (1, 1) the lower right one; the centre of texel
    (i, j) is ((j + ½) / w, (i + ½) / h), colours are bilinear between centres, and the image repeats. A row
    without texture, index -1, is white.
    """
    n_textures, _, h, w = textures.shape
    if not n_textures:
        return u.new_ones(3, len(u))
    texels = textures.movedim(1, 3).reshape(-1, 3)
    x, y = u * w - 0.5, v * h - 0.5
    left, top = x.floor(), y.floor()
    x, y = x - left, y - top
    columns = [(left.long() + i).remainder_(w) for i in (0, 1)]
    rows = [((top.long() + i).remainder_(h) + index.clamp_min(0) * h) * w for i in (0, 1)]
    corner = lambda i, j: texels.index_select(0, rows[i] + columns[j])  # noqa: E731
    x, y = x.unsqueeze(1), y.unsqueeze(1)
    found = torch.lerp(
        torch.lerp(corner(0, 0), corner(0, 1), x), torch.lerp(corner(1, 0), corner(1, 1), x), y
    )
    return torch.where(index >= 0, found.T, 1.0)
