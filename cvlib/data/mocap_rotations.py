"""Quaternions (w, x, y, z) as tensors (..., 4): unit length, continuous signs, interpolation, matrices."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["about", "conjugate_mirror", "continuous", "product", "slerp", "to_matrix"]


def about(axis: tuple[float, float, float], angle: Tensor) -> Tensor:
    """Return the turns by ``angle`` (...) radians about a unit ``axis``, counter-clockwise seen from its tip.

    >>> about((0.0, 0.0, 1.0), torch.tensor(torch.pi)).round(decimals=4)
    tensor([-0., 0., 0., 1.])
    """
    half = angle / 2
    return torch.cat([half.cos()[..., None], half.sin()[..., None] * angle.new_tensor(axis)], -1)


def product(p: Tensor, q: Tensor) -> Tensor:
    """Return Hamilton's product p q, which turns first by q, then by p; the shapes broadcast."""
    a, u, b, v = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    scalar = a * b - (u * v).sum(-1, keepdim=True)
    return torch.cat([scalar, a * v + b * u + torch.linalg.cross(*torch.broadcast_tensors(u, v))], -1)


def continuous(q: Tensor) -> Tensor:
    """Return quaternions over time (T, ..., 4) of unit length whose neighbours in time lie on one side.

    q and -q are the same rotation: the first is given w ≥ 0, each next one the sign whose inner product with
    its predecessor is not negative. Differences and averages of neighbours are meaningless without.
    """
    q = q / q.norm(dim=-1, keepdim=True)
    steps = torch.where((q[1:] * q[:-1]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    first = torch.where(q[:1, ..., :1] < 0, -1.0, 1.0)
    return q * torch.cat([first, steps]).cumprod(0).to(q.dtype)


def slerp(p: Tensor, q: Tensor, share: Tensor) -> Tensor:
    """Return the rotation at ``share`` (..., 1) in [0, 1] of the shortest way from p to q at constant speed.

    Source: Shoemake 1985, "Animating rotation with quaternion curves", SIGGRAPH. p and q are of unit length,
    in either sign; so is the result.
    """
    q = torch.where((p * q).sum(-1, keepdim=True) < 0, -q, q)
    # the half angle from the chord: arccos loses half the digits where p and q are close
    angle = 2 * torch.asin(((q - p).norm(dim=-1, keepdim=True) / 2).clamp(max=1.0))
    sine = angle.sin()
    near = sine < 1e-6  # there the arc is a straight line
    safe = torch.where(near, 1.0, sine)
    a = torch.where(near, 1 - share, ((1 - share) * angle).sin() / safe)
    b = torch.where(near, share, (share * angle).sin() / safe)
    found = a * p + b * q
    return found / found.norm(dim=-1, keepdim=True)


def conjugate_mirror(q: Tensor) -> Tensor:
    """Return the rotations as the mirror z → -z shows them: (w, x, y, z) → (w, -x, -y, z).

    With M = diag(1, 1, -1) the mirrored rotation is M R M: the axis is reflected and the turn reversed.
    """
    return q * q.new_tensor([1.0, -1.0, -1.0, 1.0])


def to_matrix(q: Tensor) -> Tensor:
    """Return the rotation matrices (..., 3, 3) of unit quaternions."""
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
