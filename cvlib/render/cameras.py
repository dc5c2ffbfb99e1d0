"""Pinhole cameras: where a point falls in the image and which ray leaves a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.render.checks import want_rotation, want_shape
from cvlib.render.vectors import turn, unit

__all__ = ["Cameras", "intrinsics", "relative_pose"]


def intrinsics(height: int, width: int, fov: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the K (3, 3) of square pixels, the principal point at the image's centre.

    ``fov`` is the vertical field of view in degrees: the focal length is height / (2 tan(fov / 2)) pixels.

    >>> intrinsics(64, 96, 90.0)
    tensor([[32.,  0., 48.],
            [ 0., 32., 32.],
            [ 0.,  0.,  1.]])
    """
    if not 0 < fov < 180:
        raise BookError(f"a field of view of {fov} degrees", "between 0 and 180")
    f = height / (2 * math.tan(math.radians(fov) / 2))
    return torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=dtype)


def relative_pose(source: Cameras, target: Cameras) -> tuple[Tensor, Tensor]:
    """Return R (B, 3, 3) and t (B, 3) with x_target = R x_source + t, from camera to camera.

    R = R_target R_sourceᵀ and t = t_target - R t_source (Rombach et al. 2021, the change of view T).
    """
    R = _times(target.R, source.R.mT)
    return R, target.t - turn(R, source.t)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of matrices (..., 3, 3), in full precision even where matmul uses TF32."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


@dataclass(frozen=True)
class Cameras:
    """A batch of B pinhole cameras with one image size; the conventions are in :mod:`cvlib.render`.

    A point x_w of the world is x_c = R x_w + t in the camera's frame (x right, y down, z forward), and
    u = (K x_c)₁ / z, v = (K x_c)₂ / z in pixels. R and t are in the world's units, K in pixels of this size.

    Raises: BookError for wrong shapes, NaN, a singular K or one whose last row is not (0, 0, 1), an R that is
    not a rotation, types or devices that differ.
    """

    K: Tensor  #: (B, 3, 3)
    R: Tensor  #: (B, 3, 3), world to camera
    t: Tensor  #: (B, 3)
    height: int  #: pixels
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise BookError(f"an image of {self.height} x {self.width} pixels", "at least 1 x 1")
        want_shape("K", self.K, None, 3, 3, names="(B, 3, 3)")
        want_shape("R", self.R, len(self.K), 3, 3)
        want_shape("t", self.t, len(self.K), 3)
        for name, x in (("R", self.R), ("t", self.t)):
            if (x.dtype, x.device) != (self.K.dtype, self.K.device):
                raise BookError(
                    f"K is {self.K.dtype} on {self.K.device}, {name} {x.dtype} on {x.device}", "one kind"
                )
        last = self.K.new_tensor([0.0, 0.0, 1.0])
        if not bool((self.K[:, 2] == last).all()):
            raise BookError(f"K with a last row of {self.K[:, 2].tolist()}", "(0, 0, 1)")
        scale = self.K[:, :2, :2].abs().amax((1, 2)).square()
        if not bool((torch.linalg.det(self.K).abs() > 1e-6 * scale).all()):
            raise BookError("a singular K", "focal lengths other than 0", "see cvlib.render.intrinsics")
        want_rotation("R", self.R)

    @classmethod
    def look_at(
        cls,
        eye: Tensor,
        target: Tensor,
        *,
        height: int,
        width: int,
        fov: float = 45.0,
        up: tuple[float, float, float] = (0.0, 1.0, 0.0),
    ) -> Cameras:
        """Return cameras at ``eye`` (B, 3) that look at ``target`` (B, 3), the world's ``up`` upright.

        ``target`` falls on the principal point. Raises: BookError where the eye is at the target or looks
        along ``up``.
        """
        want_shape("eye", eye, None, 3, names="(B, 3)")
        want_shape("target", target, len(eye), 3)
        z = target - eye
        x = torch.linalg.cross(z, z.new_tensor(up).expand_as(z))
        if not bool((x.norm(dim=-1) > 1e-6 * z.norm(dim=-1)).all()):
            raise BookError(
                "a camera that looks at itself or along up", "another target", "or pass another up"
            )
        z, x = unit(z), unit(x)
        R = torch.stack((x, torch.linalg.cross(z, x), z), dim=1)
        K = intrinsics(height, width, fov, eye.dtype).to(eye.device).expand(len(eye), 3, 3)
        return cls(K, R, -turn(R, eye), height, width)

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        return replace(self, K=self.K[index], R=self.R[index], t=self.t[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Cameras:
        """Return the cameras on another device or in another type."""
        K, R, t = (x.to(device=device, dtype=dtype) for x in (self.K, self.R, self.t))
        return replace(self, K=K, R=R, t=t)

    def resized(self, height: int, width: int) -> Cameras:
        """Return the same cameras for images resized to height x width: K in the new pixels."""
        scale = self.K.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, K=self.K * scale.unsqueeze(-1), height=height, width=width)

    @property
    def centres(self) -> Tensor:
        """The optical centres -Rᵀ t in the world, (B, 3)."""
        return -turn(self.R.mT, self.t)

    def pixels(self) -> Tensor:
        """Return u and v of all pixel centres, (H, W, 2): (j + ½, i + ½) in row i, column j."""
        u, v = (
            torch.arange(n, device=self.K.device).to(self.K.dtype) + 0.5 for n in (self.width, self.height)
        )
        return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Return origins (B, 3) and directions (B, H, W, 3) in the world, one through each pixel centre.

        A direction advances z by 1 and is not of unit length: origin + depth · direction is the surface.
        """
        return self.centres, self._directions(self.pixels().expand(len(self), -1, -1, -1))

    def _directions(self, uv: Tensor) -> Tensor:
        """Return the directions (B, ..., 3) in the world, of z = 1 in the camera, through uv (B, ..., 2)."""
        to_world = _times(self.R.mT, torch.linalg.inv(self.K))
        return turn(_lift(to_world, uv.ndim), torch.cat((uv, torch.ones_like(uv[..., :1])), dim=-1))

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return uv (B, ..., 2) in pixels and z-depth (B, ...) of points (B, ..., 3) of the world.

        A point at depth 0 or behind the camera has no image: ask ``depth > 0`` before using its uv.
        """
        x = turn(_lift(self.R, points.ndim), points) + _lift(self.t, points.ndim)
        image = turn(_lift(self.K, points.ndim), x)
        return image[..., :2] / x[..., 2:], x[..., 2]

    def unproject(self, depth: Tensor, uv: Tensor | None = None) -> Tensor:
        """Return the world points (B, ..., 3) at z-depth ``depth`` (B, ...) seen at ``uv`` (B, ..., 2).

        Without ``uv`` the depth is a map (B, H, W) of all pixel centres. The inverse of :meth:`project`.
        """
        if uv is None:
            want_shape("a depth map", depth, len(self), self.height, self.width, is_finite=False)
            uv = self.pixels().expand(len(self), -1, -1, -1)
        directions = self._directions(uv)
        return _lift(self.centres, directions.ndim) + depth.unsqueeze(-1) * directions


def _lift(x: Tensor, ndim: int) -> Tensor:
    """Return a vector or matrix per camera, (B, 3) or (B, 3, 3), that broadcasts over (B, ..., 3)."""
    return x.reshape(len(x), *[1] * (ndim - 2), *x.shape[1:])
