"""What can stand in a scene: planes, boxes, spheres and capsules, each kind as tensors (B, N, ...)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.render.checks import want_positive, want_rotation, want_shape, want_unit_range
from cvlib.render.intersect import axis_of, near_box, near_capsule, near_plane, near_sphere, signed_radius
from cvlib.render.vectors import Vec, any_perpendicular, cross, dot, turn, unit, vec

__all__ = ["Boxes", "Capsules", "Planes", "Shapes", "Spheres"]


class Placed(NamedTuple):
    """The N shapes of a kind in the frames of C cameras."""

    numbers: Tensor  #: (k, C, N), what the kind's functions read, by component
    balls: Tensor  #: (C, N, E, 3), centres: the shape lies in the convex hull of E balls
    radius: Tensor  #: (C, N), of the balls; inf: the shape may be anywhere


class Touch(NamedTuple):
    """The surface at n points, all (n,)."""

    face: Tensor | None  #: int64, of kinds with several
    normal: Vec  #: outwards, length 1, in the camera's frame
    u: Tensor
    v: Tensor


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What every kind has: N shapes of F faces (boxes 6, others 1) in each of B scenes.

    ``colour`` (B, N, 3) or (B, N, F, 3), in [0, 1], multiplies the texture. ``part``, int64 (B, N) or
    (B, N, F), is what the map of ids shows, at least 1; left out, the shapes of a scene are numbered from 1
    on. ``texture``, shaped like part, is a row of the scene's textures, or -1 for none. ``uv``, (B, N, 4) or
    (B, N, F, 4), holds scale and offset: the texture is read at (s_u u + o_u, s_v v + o_v), and repeats.
    ``shown``, bool (B, N): the others are left out. Raises: BookError for wrong shapes, types or values.
    """

    faces: ClassVar[int] = 1
    lead: ClassVar[str] = ""  #: the field that says what B and N are
    n_meet: ClassVar[int] = 0  #: how many of the numbers `meet` reads

    colour: Tensor
    part: Tensor | None = None
    texture: Tensor | None = None
    uv: Tensor | None = None
    shown: Tensor | None = None

    def _check(self, **tails: tuple[int, ...]) -> None:
        """Raise unless the fields have shapes (B, N, tail) and the looks theirs."""
        first: Tensor = getattr(self, self.lead)
        want_shape(f"{self}: {self.lead}", first, None, None, 3, names="(B, N, 3)")
        floats = {name: (getattr(self, name), tail) for name, tail in tails.items()}
        floats |= {"colour": (self.colour, (3,)), "uv": (self.uv, (4,))}
        others = {name: (getattr(self, name), ()) for name in ("part", "texture", "shown")}
        for name, (x, tail) in (floats | others).items():
            if x is None:
                continue
            kind = first.dtype if name in floats else torch.bool if name == "shown" else torch.int64
            if x.dtype != kind or x.device != first.device:
                raise BookError(f"{self}: {name} is {x.dtype} on {x.device}", f"{kind} on {first.device}")
            has_faces = x.ndim == 3 + len(tail) and name in ("colour", "uv", "part", "texture")
            want_shape(f"{self}: {name}", x, *first.shape[:2], *(self.faces,) * has_faces, *tail)
        want_unit_range(f"{self}: colour", self.colour)
        if self.part is not None and self.part.numel() and int(self.part.min()) < 1:
            raise BookError(f"{self}: part {int(self.part.min())}", "at least 1", "0 is the background")

    def __str__(self) -> str:
        return type(self).__name__

    @property
    def shape(self) -> tuple[int, int]:
        """B and N."""
        b, n, _ = getattr(self, self.lead).shape
        return b, n

    def place(self, R: Tensor, t: Tensor) -> Placed:
        """Return the shapes in the frames x_c = R x_w + t, R (C, 1, 3, 3) and t (C, 1, 3)."""
        raise NotImplementedError

    @staticmethod
    def meet(numbers: Tensor, d: Vec) -> tuple[Tensor, Tensor]:
        """Return t (n,) for rays from the camera against one shape each, (k, n), and whether they meet it."""
        raise NotImplementedError

    @staticmethod
    def touch(numbers: Tensor, x: Vec) -> Touch:
        """Return the surface at points (n,) of the camera's frame on one shape each, (k, n)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Planes(Shapes):
    """Infinite planes, seen from both sides.

    u and v count the world's units from ``point`` along ``reference``, made perpendicular to the normal
    (left out: some direction), and along normal x reference.
    """

    lead, n_meet = "point", 10
    point: Tensor  #: (B, N, 3)
    normal: Tensor  #: (B, N, 3), of any length
    reference: Tensor | None = None  #: (B, N, 3)

    def __post_init__(self) -> None:
        self._check(normal=(3,), reference=(3,))
        want_positive(f"{self}: length of normal", self.normal.norm(dim=-1))

    def place(self, R: Tensor, t: Tensor) -> Placed:
        normal = unit(self.normal)
        n, point = turn(R, normal), turn(R, self.point) + t
        x = turn(R, _across(normal, self.reference, str(self)))
        y = torch.linalg.cross(n, x)
        scalars = torch.stack([(axis * point).sum(-1) for axis in (n, x, y)])
        numbers = torch.cat((torch.cat((n, x, y), -1).movedim(-1, 0), scalars))
        return Placed(numbers, point.unsqueeze(2), torch.full_like(point[..., 0], torch.inf))

    @staticmethod
    def meet(numbers: Tensor, d: Vec) -> tuple[Tensor, Tensor]:
        return near_plane(d, vec(numbers[:3], 0), numbers[9])

    @staticmethod
    def touch(numbers: Tensor, x: Vec) -> Touch:
        n, right, up = (vec(numbers[i : i + 3], 0) for i in (0, 3, 6))
        return Touch(None, n, dot(right, x) - numbers[10], dot(up, x) - numbers[11])


@dataclass(frozen=True, kw_only=True)
class Boxes(Shapes):
    """Boxes; a camera inside one sees its walls from within, so a box is a room too.

    Faces are numbered -x, +x, -y, +y, -z, +z. u and v run from 0 to 1 over a face: with y up, textures stand
    upright on the four sides and read rightly from outside (from inside they are mirrored; a scale -1 in u
    undoes it), and on the two others u follows x.
    """

    lead, n_meet = "centre", 15
    faces = 6
    centre: Tensor  #: (B, N, 3)
    half: Tensor  #: (B, N, 3), half the sizes
    rotation: Tensor | None = (
        None  #: (B, N, 3, 3), columns: the box's axes in the world; left out, the world's
    )

    def __post_init__(self) -> None:
        self._check(half=(3,), rotation=(3, 3))
        want_positive(f"{self}: half", self.half)
        if self.rotation is not None:
            want_rotation(f"{self}: rotation", self.rotation)

    def place(self, R: Tensor, t: Tensor) -> Placed:
        axes = R if self.rotation is None else (R.unsqueeze(-1) * self.rotation.unsqueeze(-3)).sum(-2)
        centre = turn(R, self.centre) + t
        axes = axes.expand(*centre.shape, 3)
        start, half = -turn(axes.mT, centre), self.half.expand_as(centre)
        signs = torch.cartesian_prod(*[centre.new_tensor([-1.0, 1.0])] * 3)
        corners = centre.unsqueeze(2) + turn(axes.unsqueeze(2), half.unsqueeze(2) * signs)
        numbers = torch.cat((start, half, axes.mT.flatten(2)), -1).movedim(-1, 0)
        return Placed(numbers, corners, torch.zeros_like(centre[..., 0]))

    @staticmethod
    def meet(numbers: Tensor, d: Vec) -> tuple[Tensor, Tensor]:
        x, y, z = (dot(vec(numbers[i : i + 3], 0), d) for i in (6, 9, 12))
        return near_box(vec(numbers[:3], 0), (x, y, z), vec(numbers[3:6], 0))

    @staticmethod
    def touch(numbers: Tensor, x: Vec) -> Touch:
        axes = numbers[6:15].unflatten(0, (3, 3))
        local = (numbers[:3] + (axes * torch.stack(x)).sum(1)) / numbers[3:6]  # -1 to 1
        ax, ay, az = local.abs()
        axis = (1 + (az > ay).long()) * (
            torch.maximum(ay, az) > ax
        )  # of the largest: argmax is ten times slower
        side = local.gather(0, axis[None])[0].sign()
        normal = axes.gather(0, axis.expand(1, 3, -1))[0] * side
        a, b, c = local
        u = torch.stack((-c * side, a, a * side)).gather(0, axis[None])[0]
        v = torch.stack((-b, c * side, -b)).gather(0, axis[None])[0]
        return Touch(2 * axis + (side > 0), vec(normal, 0), (u + 1) / 2, (v + 1) / 2)


@dataclass(frozen=True, kw_only=True)
class Capsules(Shapes):
    """Capsules: all points within ``radius`` of the segment from a to b; with a = b a sphere, its axis z.

    u is the angle around the axis in turns, from ``reference`` (made perpendicular to the axis) towards
    axis x reference. v runs along the axis, from 0 at the tip behind a to 1 at the tip behind b. Pass
    a vector that turns with the link as reference and the texture moves with it; left out, some direction is
    taken that is smooth in the axis but at -z.
    """

    lead, n_meet = "a", 9
    a: Tensor  #: (B, N, 3)
    b: Tensor  #: (B, N, 3)
    radius: Tensor  #: (B, N)
    reference: Tensor | None = None  #: (B, N, 3)

    def __post_init__(self) -> None:
        self._check(b=(3,), radius=(), reference=(3,))
        want_positive(f"{self}: radius", self.radius)

    def place(self, R: Tensor, t: Tensor) -> Placed:
        w = axis_of(self.a, self.b)[1]
        right = turn(R, _across(w, self.reference, str(self)))
        return _placed_round(turn(R, self.a) + t, turn(R, self.b) + t, turn(R, w), right, self.radius)

    @staticmethod
    def meet(numbers: Tensor, d: Vec) -> tuple[Tensor, Tensor]:
        p, w = vec(numbers[:3], 0), vec(numbers[3:6], 0)
        return near_capsule(d, p, w, numbers[6], numbers[7], numbers[8])

    @staticmethod
    def touch(numbers: Tensor, x: Vec) -> Touch:
        p, w, right = (vec(numbers[i : i + 3], 0) for i in (0, 3, 9))
        start, end, radius = numbers[6], numbers[7], numbers[8].abs()
        along = dot(w, x)
        k = torch.clamp(along, start, end)
        nx, ny, nz = ((e - f - k * g) / radius for e, f, g in zip(x, p, w, strict=True))
        normal = (nx, ny, nz)
        u = torch.atan2(dot(cross(w, right), normal), dot(right, normal)) / (2 * math.pi)
        return Touch(None, normal, u, (along - start + radius) / (end - start + 2 * radius))


@dataclass(frozen=True, kw_only=True)
class Spheres(Shapes):
    """Spheres; u and v are those of a capsule without length along z, with x as its reference."""

    lead, n_meet = "centre", 9
    centre: Tensor  #: (B, N, 3)
    radius: Tensor  #: (B, N)
    rotation: Tensor | None = None  #: (B, N, 3, 3), columns: the axes x, y, z; left out, the world's

    touch = staticmethod(Capsules.touch)

    def __post_init__(self) -> None:
        self._check(radius=(), rotation=(3, 3))
        want_positive(f"{self}: radius", self.radius)
        if self.rotation is not None:
            want_rotation(f"{self}: rotation", self.rotation)

    def place(self, R: Tensor, t: Tensor) -> Placed:
        centre = turn(R, self.centre) + t
        axes = torch.eye(3).to(centre) if self.rotation is None else self.rotation
        right, w = (turn(R, axes[..., i]).expand_as(centre) for i in (0, 2))
        return _placed_round(centre, centre, w, right, self.radius)

    @staticmethod
    def meet(numbers: Tensor, d: Vec) -> tuple[Tensor, Tensor]:
        x, y, z = (torch.addcmul(numbers[i], numbers[6], numbers[3 + i]) for i in range(3))
        return near_sphere(d, (x, y, z), numbers[8])


def _placed_round(a: Tensor, b: Tensor, w: Tensor, right: Tensor, radius: Tensor) -> Placed:
    """Return capsules of known axes w (C, N, 3) in the camera's frame."""
    start, end = (a * w).sum(-1), (b * w).sum(-1)
    p = a - start.unsqueeze(-1) * w
    radius = radius.expand_as(start)
    signed = signed_radius(p + torch.clamp(torch.zeros_like(start), start, end).unsqueeze(-1) * w, radius)
    numbers = torch.cat((p, w, torch.stack((start, end, signed), -1), right), -1).movedim(-1, 0)
    return Placed(numbers, torch.stack((a, b), 2), radius)


def _across(w: Tensor, reference: Tensor | None, kind: str) -> Tensor:
    """Return unit vectors perpendicular to w (B, N, 3): the reference made so, or some."""
    if reference is None:
        return any_perpendicular(w)
    right = reference - (reference * w).sum(-1, keepdim=True) * w
    if not bool((right.norm(dim=-1) > 1e-4 * reference.norm(dim=-1)).all()):
        raise BookError(f"{kind}: a reference of length 0 or along the axis", "one across the axis")
    return unit(right)
