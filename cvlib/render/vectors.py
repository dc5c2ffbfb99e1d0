"""Vectors as three tensors, one per coordinate: elementwise work then reads memory without stride."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Vec", "any_perpendicular", "cross", "dot", "turn", "unit", "vec"]

Vec = tuple[Tensor, Tensor, Tensor]


def vec(x: Tensor, dim: int = -1) -> Vec:
    """Return the three coordinates along ``dim``."""
    a, b, c = x.unbind(dim)
    return a, b, c


def dot(a: Vec, b: Vec) -> Tensor:
    """Return a · b."""
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def cross(a: Vec, b: Vec) -> Vec:
    """Return a × b."""
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def turn(matrix: Tensor, x: Tensor) -> Tensor:
    """Return matrix (..., 3, 3) times vectors (..., 3), in full precision even where matmul uses TF32."""
    return (matrix * x.unsqueeze(-2)).sum(-1)


def unit(x: Tensor) -> Tensor:
    """Return vectors (..., 3) scaled to length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def any_perpendicular(w: Tensor) -> Tensor:
    """Return a unit vector perpendicular to each unit vector (..., 3), that turns smoothly with it but at -z.

    Source: Duff et al. 2017, Building an Orthonormal Basis, Revisited, section 3; z gives x.
    """
    x, y, z = vec(w)
    sign = torch.copysign(torch.ones_like(z), z)
    scale = -1 / (sign + z)
    return torch.stack((1 + sign * x * x * scale, sign * x * y * scale, -sign * x), dim=-1)
