"""Scenes and cameras that the tests of the ray-caster share."""

from __future__ import annotations

import math

import torch

from cvlib.render import Boxes, Cameras, Capsules, Lights, Planes, Scene, Spheres


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def rotations(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    q, r = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return (q * torch.linalg.det(q)[..., None, None]).to(dtype)


def around(
    n: int, size: int = 32, distance: float = 4.0, fov: float = 50.0, width: int | None = None
) -> Cameras:
    """Cameras on a sphere that look near the origin."""
    eye = unit(torch.randn(n, 3, dtype=torch.float64)) * distance
    target = 0.3 * torch.randn(n, 3, dtype=torch.float64)
    return Cameras.look_at(eye, target, height=size, width=width or size, fov=fov)


def clutter(b: int = 3, dtype: torch.dtype = torch.float64) -> Scene:
    """All kinds of shapes, textured and lit, some of them hidden, some that the cameras may stand in."""

    def points(n: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(b, n, 3, dtype=torch.float64)

    def sizes(*shape: int) -> torch.Tensor:
        return 0.1 + 0.4 * torch.rand(b, *shape, dtype=torch.float64)

    def colours(*shape: int) -> torch.Tensor:
        return torch.rand(b, *shape, 3, dtype=torch.float64)

    a = points(6)
    scene = Scene(
        planes=Planes(point=points(1) - 4, normal=points(1), colour=colours(1)),
        boxes=Boxes(
            centre=points(3),
            half=sizes(3, 3),
            rotation=rotations(b, 3),
            colour=colours(3, 6),
            texture=torch.randint(-1, 3, (b, 3, 6)),
            part=torch.randint(20, 40, (b, 3, 6)),
        ),
        spheres=Spheres(centre=points(3), radius=sizes(3), rotation=rotations(b, 3), colour=colours(3)),
        capsules=Capsules(
            a=a,
            b=a + points(6, 0.6),
            radius=sizes(6) / 2,
            colour=colours(6),
            texture=torch.randint(-1, 3, (b, 6)),
            uv=points(6).new_tensor([2.0, 3.0, 0.1, 0.2]).expand(b, 6, 4),
            shown=torch.rand(b, 6) < 0.8,
        ),
        textures=torch.rand(3, 3, 5, 7, dtype=torch.float64),
        lights=Lights(points(2), colours(2) / 2, colours() / 2),
    )
    return scene.to(dtype=dtype)


def frontal(size: int = 33, fov: float = 2 * math.degrees(math.atan(0.5)), n: int = 1) -> Cameras:
    """Cameras at the origin that look along +z, y down: the world is the camera's frame."""
    zero = torch.zeros(n, 3, dtype=torch.float64)
    target = zero + torch.tensor([0.0, 0.0, 1.0])
    return Cameras.look_at(zero, target, height=size, width=size, fov=fov, up=(0.0, -1.0, 0.0))


def sdf_capsule(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Signed distance: to the nearest point of the segment, less the radius."""
    axis = b - a
    s = ((x - a) * axis).sum(-1) / axis.square().sum(-1).clamp_min(1e-30)
    return (x - a - s.clamp(0, 1).unsqueeze(-1) * axis).norm(dim=-1) - r


def sdf_box(x: torch.Tensor, c: torch.Tensor, R: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    q = ((x - c).unsqueeze(-2) @ R).squeeze(-2).abs() - half
    return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0)
