"""Smooth random warps of images by thin plate splines.

A warp says, for each place of the result, from which place of the image its colour is taken. It is given by
where a grid of control points takes from; between them it is the thin plate spline, the interpolation of
least bending (Bookstein 1989). Places are (x, y), right and down, from -1 to 1 at the image's edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WarpRange", "control_points", "resample", "sampling_grid"]

_SIDE = 4  # control points along each axis


def control_points() -> Tensor:
    """Return the control points, float64 (16, 2): a 4 x 4 grid from edge to edge, row after row."""
    axis = torch.linspace(-1, 1, _SIDE, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return r² log r² between places (N, 2) and (K, 2), (N, K); 0 where they meet."""
    square = (a[:, None] - b).square().sum(-1)
    return torch.xlogy(square, square)


def _affine(places: Tensor) -> Tensor:
    return torch.cat([places.new_ones(len(places), 1), places], 1)


@cache
def _basis(size: int) -> Tensor:
    """Return the weights (size², 16) by which the control points decide the places of a ``size``² image.

    A spline is linear in what it interpolates, so one matrix serves all warps.
    """
    points = control_points()
    k = len(points)
    system = torch.zeros(k + 3, k + 3, dtype=torch.float64)
    system[:k, :k], system[:k, k:] = _kernel(points, points), _affine(points)
    system[k:, :k] = system[:k, k:].T
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([x, y], -1).view(-1, 2)
    rows = torch.cat([_kernel(places, points), _affine(places)], 1)
    return (rows @ torch.linalg.inv(system))[:, :k]


def sampling_grid(targets: Tensor, size: int) -> Tensor:
    """Return from where each pixel of the warped images is taken, float32 (B, size, size, 2).

    ``targets`` (B, 16, 2), on the CPU: from where the control points take. The grid is what
    :func:`torch.nn.functional.grid_sample` wants with ``align_corners=False``.
    """
    # in float64, so that after rounding a warp does not depend on the others in its batch
    return (_basis(size) @ targets.double()).float().view(-1, size, size, 2)


def resample(values: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Return float ``values`` (B, C, H, W) at the places ``grid`` (B, h, w, 2); outside, the edge goes on.

    ``mode``: "bilinear", or "nearest" for ids, which must not be mixed.
    """
    return F.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class WarpRange:
    """How far random warps go; the defaults are those of the shipped configurations for birds.

    The image is scaled along each axis by a factor within ``scal`` (1 ± ``scal_var``), read as the share of
    it that is seen, so that it is enlarged; turned by at most ``rot_scal`` radians; both about a centre at
    most ``off_scal`` from the image's. Then each control point is moved by at most ``tps_scal`` along each
    axis. All are drawn uniformly. ``WarpRange(scal=1, tps_scal=0, rot_scal=0, off_scal=0, scal_var=0)``
    leaves images as they are.

    Source: the parameters of Lorenz et al. 2019 that Braun et al. 2020 use. The control points are ours.
    """

    scal: float = 0.8
    tps_scal: float = 0.15
    rot_scal: float = 0.2
    off_scal: float = 0.2
    scal_var: float = 0.1

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return ``n`` warps as targets of the control points, float32 (n, 16, 2)."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1

        scale = self.scal * (1 + self.scal_var * uniform(n, 1, 2))
        angle = self.rot_scal * uniform(n)
        centre = self.off_scal * uniform(n, 1, 2)
        points = control_points()
        moved = self.tps_scal * uniform(n, len(points), 2)
        c, s = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([torch.stack([c, s], -1), torch.stack([-s, c], -1)], 1)  # rows times it: by +angle
        return ((points - centre) * scale @ turn + centre + moved).float()
