"""Where a ray first meets a plane, a box, a sphere or a capsule, in closed form.

A ray is o + t d with t > 0, and t counts in lengths of d, which need not be 1. All arguments broadcast:
points and directions are (..., 3), radii (...), and t is (...), inf for a miss. A ray that starts inside a
closed surface meets it where it leaves; one that touches it hits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvlib.render.vectors import Vec, cross, dot, turn, vec

__all__ = ["ray_box", "ray_capsule", "ray_plane", "ray_sphere"]

_TINY = 1e-20  # stands for 0 in a denominator; far below the rounding of any length


def ray_plane(o: Tensor, d: Tensor, point: Tensor, normal: Tensor) -> Tensor:
    """Return t where the ray meets the plane through ``point``, from either side; parallel rays miss.

    >>> y = torch.tensor([0.0, 1.0, 0.0])
    >>> ray_plane(torch.zeros(3), torch.tensor([0.0, 0.6, 0.8]), 3 * y, y)
    tensor(5.)
    """
    n = vec(normal)
    return hit(*near_plane(vec(d), n, dot(n, vec(point - o))))


def ray_box(o: Tensor, d: Tensor, centre: Tensor, rotation: Tensor, half: Tensor) -> Tensor:
    """Return t where the ray meets the box of half sizes ``half``, its axes the columns of ``rotation``.

    Kay and Kajiya's slabs: the last of the three entries comes before the first of the three exits, or the
    ray misses. A ray in the very plane of a face may do either.
    """
    inverse = rotation.mT
    return hit(*near_box(vec(turn(inverse, o - centre)), vec(turn(inverse, d)), vec(half)))


def ray_sphere(o: Tensor, d: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Return t where the ray meets the sphere.

    >>> ray_sphere(torch.zeros(3), torch.tensor([0.0, 0, 2]), torch.tensor([0.0, 0, 5]), torch.tensor(1.0))
    tensor(2.)
    """
    c = centre - o
    return hit(*near_sphere(vec(d), vec(c), signed_radius(c, radius)))


def ray_capsule(o: Tensor, d: Tensor, a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
    """Return t where the ray meets the capsule: all points within ``radius`` of the segment from a to b.

    With a = b the capsule is a sphere.
    """
    p, w, start, length = axis_of(a - o, b - o)
    k = (-start).clamp_min(0).minimum(length) + start  # the place on the segment nearest to o
    radius = signed_radius(p + k.unsqueeze(-1) * w, radius)
    return hit(*near_capsule(vec(d), vec(p), vec(w), start, start + length, radius))


def axis_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the line p + s w through a and b, with p ⊥ w and |w| = 1, the s of a, and |b - a|."""
    axis = b - a
    length = axis.norm(dim=-1)
    north = axis.new_tensor([0.0, 0.0, 1.0])  # a capsule without length is a sphere: any axis serves
    w = torch.where((length > 0).unsqueeze(-1), axis / length.clamp_min(_TINY).unsqueeze(-1), north)
    start = (a * w).sum(-1)
    return a - start.unsqueeze(-1) * w, w, start, length


def signed_radius(c: Tensor, radius: Tensor) -> Tensor:
    """Return ``radius``, negative where the origin lies nearer to c than that: it asks for the far side."""
    return torch.where(c.square().sum(-1) < radius.square(), -radius, radius)


def hit(t: Tensor, is_met: Tensor) -> Tensor:
    """Return t where the surface is met in front of the origin, else inf."""
    return torch.where(is_met & (t > 0), t, torch.inf)


# The same by components and for rays from the origin, as the renderer calls them. t is negative where a
# surface is met behind the origin.


def near_plane(d: Vec, normal: Vec, height: Tensor) -> tuple[Tensor, Tensor]:
    """Return t for the plane of all x with normal · x = height, and whether the ray meets it."""
    along = dot(normal, d)
    return height / along, along != 0


def near_box(o: Vec, d: Vec, half: Vec) -> tuple[Tensor, Tensor]:
    """Return t for a ray from ``o`` in the frame of a box around 0, and whether it meets the box."""
    enters, leaves = [], []
    for start, step, h in zip(o, d, half, strict=True):
        step = torch.where(step.abs() < _TINY, _TINY, step)  # a ray along a face: no 0 / 0
        h = torch.copysign(h, step)
        enters.append((-h - start) / step)
        leaves.append((h - start) / step)
    enter = torch.maximum(torch.maximum(enters[0], enters[1]), enters[2])
    leave = torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2])
    return torch.where(enter > 0, enter, leave), enter <= leave


def near_sphere(d: Vec, c: Vec, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return t for a sphere of :func:`signed_radius`, and whether the ray meets it."""
    t, rest = _sphere(d, c, dot(c, d), radius)
    return t, rest >= 0


def _sphere(d: Vec, c: Vec, cd: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return t and r² - q², where q is the distance at which the ray passes the centre.

    q comes from the vector between them: |c|² - (c·d)² loses all digits for small far spheres (Haines et al.
    2019, Ray Tracing Gems, chapter 7).
    """
    dd = dot(d, d)
    middle = cd / dd
    x, y, z = (torch.addcmul(e, middle, f, value=-1) for e, f in zip(c, d, strict=True))
    rest = torch.addcmul(radius * radius, x, x, value=-1).addcmul_(y, y, value=-1).addcmul_(z, z, value=-1)
    return middle - torch.copysign((rest.clamp_min(0) / dd).sqrt_(), radius), rest


def near_capsule(d: Vec, p: Vec, w: Vec, start: Tensor, end: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return t for the capsule around p + s w, ``start`` ≤ s ≤ ``end``, and whether the ray meets it.

    The ray enters the infinite cylinder around the axis. If that point lies beside the segment, it is the
    entry; if it lies before an end, only the sphere at that end can be met.
    """
    along = dot(w, d)
    # the part of d across the axis, from its components: |d|² - (w·d)² would lose the digits of rays along it
    x, y, z = (torch.addcmul(e, along, f, value=-1) for e, f in zip(d, w, strict=True))
    across = (x, y, z)
    nn, pd, pn = dot(across, across), dot(p, across), dot(cross(p, w), across)
    rest = radius * radius * nn - pn * pn  # pn / |across| is the distance between the two lines
    # rays along the axis meet no side: with 0 / 0 made -inf or inf, s lies before the end that they meet
    root = rest.clamp_min(0).sqrt_().add_(_TINY)
    t_side = (pd - torch.copysign(root, radius)) / nn.clamp_min(1e-30)
    s = t_side * along
    k = torch.clamp(s, start, end)
    centre = tuple(torch.addcmul(e, k, f) for e, f in zip(p, w, strict=True))
    t_end, rest_end = _sphere(d, centre, torch.addcmul(pd, k, along), radius)  # type: ignore[arg-type]
    is_side = k == s
    return torch.where(is_side, t_side, t_end), torch.where(is_side, rest, rest_end) >= 0
