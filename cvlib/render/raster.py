"""Which rays can meet which shape, and which shape each ray meets first.

A ray is tested against a shape only where the shape can be seen: the bounds of its projection give a run of
pixels in every row. This leaves out tests that must fail, so the image is the same as with all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cvlib.render.shapes import Placed

__all__ = ["Footprint", "Runs", "footprint", "nearest", "pixels_of", "runs_of"]

_MARGIN = 0.05  # pixels added to each bound, far more than its rounding
_FAR = 16.0  # images; bounds beyond that are too coarse in float32


class Footprint(NamedTuple):
    """Where shapes can be seen: within the convex hull of two rectangles (x0, y0, x1, y1), in pixels."""

    rects: Tensor  #: (C, N, 2, 4)
    can_be_seen: Tensor  #: bool (C, N)

    def areas(self, height: int, width: int) -> Tensor:
        """Return an upper bound of the number of pixels of each shape, (C, N)."""
        size = self.rects.new_tensor([width, height])
        low, high = self.rects[..., :2].amin(2), self.rects[..., 2:].amax(2)
        inside = high.minimum(size) - low.clamp_min(0) + 1
        return inside.clamp_min(0).prod(-1) * self.can_be_seen


class Runs(NamedTuple):
    """Rows of pixels that shapes can cover; all int64 (r,)."""

    shape: Tensor  #: c N + n
    start: Tensor  #: first pixel, c H W + i W + j
    length: Tensor


def footprint(placed: Placed, K: Tensor, height: int, width: int) -> Footprint:
    """Return where shapes can be seen by cameras K (C, 3, 3).

    A ball at c projects between the two tangent planes that contain a line of constant u through the camera:
    (k - u z)·c = ± r |k - u z|, with k the first row of K (for v: the second) and z its third, a quadratic in
    u. A shape that comes nearer to the plane of the camera than the ball's radius may be seen anywhere.
    """
    centre, radius = placed.balls, placed.radius.unsqueeze(-1)
    depth = centre[..., 2]
    is_behind = (depth + radius <= 0).all(-1)
    is_before = (depth > radius * (1 + 1e-4) + 1e-6).all(-1)
    low, high = [], []
    for k in (K[:, 0], K[:, 1]):
        k = k[:, None, None]  # (C, 1, 1, 3)
        p, r2 = (k * centre).sum(-1), radius.square()
        across = k * depth.unsqueeze(-1)
        across[..., 2] -= p
        flat = k[..., :2].square().sum(-1)  # |k|² without its part along z
        root = radius * (across.square().sum(-1) - r2 * flat).clamp_min(0).sqrt()
        middle, under = p * depth - r2 * k[..., 2], depth.square() - r2
        low.append((middle - root) / under - _MARGIN)
        high.append((middle + root) / under + _MARGIN)
    rects = torch.stack((*low, *high), -1)  # (C, N, E, 4)
    if rects.shape[2] != 2:  # a segment's two ends stay apart; any other hull is replaced by its bounds
        bounds = torch.cat((rects[..., :2].amin(2), rects[..., 2:].amax(2)), -1)
        rects = bounds.unsqueeze(2).expand(-1, -1, 2, -1)
    full = rects.new_tensor([0.0, 0.0, width, height])
    is_exact = is_before & (rects.abs() < _FAR * max(height, width)).all(-1).all(-1)
    rects = torch.where(is_exact[..., None, None], rects, full)
    return Footprint(rects, ~is_behind)


def _span(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel whose centre lies in [low, high], of ``size``, and how many do."""
    first = (low - 0.5).ceil().clamp(0, size)
    last = (high - 0.5).floor().clamp(-1, size - 1)
    return first.long(), (last - first + 1).clamp_min(0).long()


def runs_of(seen: Footprint, height: int, width: int) -> Runs:
    """Return the runs of the shapes of a chunk of cameras."""
    rects = seen.rects.flatten(0, 1)  # (C N, 2, 4)
    first, count = _span(rects[..., 1].amin(1), rects[..., 3].amax(1), height)
    count = count * seen.can_be_seen.flatten()
    n = int(count.sum())
    shape = torch.repeat_interleave(count, output_size=n)
    row = torch.arange(n, device=shape.device) + (first - count.cumsum(0) + count)[shape]
    a, b = rects[shape].movedim(-1, 0).unbind(-1)  # (4, r) each
    y = row + 0.5
    # between the rectangles a (s = 0) and b (s = 1): those s whose rectangle reaches this row
    lowest, highest = torch.zeros_like(y), torch.ones_like(y)
    for edge, sign in ((1, 1), (3, -1)):
        slope = (b[edge] - a[edge]) * sign
        s = (y - a[edge]) * sign / slope
        highest = torch.where(slope > 0, torch.minimum(highest, s), highest)
        lowest = torch.where(slope < 0, torch.maximum(lowest, s), lowest)
    lowest, highest = lowest.clamp(0, 1), highest.clamp(0, 1)
    x0, x1 = (torch.stack([torch.lerp(a[i], b[i], s) for s in (lowest, highest)]) for i in (0, 2))
    column, length = _span(x0.amin(0), x1.amax(0), width)
    camera = torch.div(shape, seen.rects.shape[1], rounding_mode="floor")
    return Runs(shape, (camera * height + row) * width + column, length)


def pixels_of(runs: Runs) -> tuple[Tensor, Tensor]:
    """Return the run and the pixel of every pair of a ray and a shape, int64 (p,)."""
    n = int(runs.length.sum())
    run = torch.repeat_interleave(runs.length, output_size=n)
    before = runs.start - runs.length.cumsum(0) + runs.length
    return run, torch.arange(n, device=run.device) + before.index_select(0, run)


def nearest(pixel: Tensor, t: Tensor, shape: Tensor, n_pixels: int) -> tuple[Tensor, Tensor]:
    """Return the least t (n_pixels,), inf without one, and its shape, -1 without one.

    ``pixel``, ``t`` and ``shape`` (h,) say which shape is met where. Of shapes that are met at the same t the
    first is taken, so the result does not depend on the order of the hits.
    """
    depth = t.new_full((n_pixels,), torch.inf).scatter_reduce_(0, pixel, t, "amin")
    is_first = t == depth.index_select(0, pixel)
    none = torch.iinfo(shape.dtype).max
    owner = shape.new_full((n_pixels,), none)
    owner.scatter_reduce_(0, pixel[is_first], shape[is_first], "amin")
    return depth, owner.masked_fill_(owner == none, -1)
