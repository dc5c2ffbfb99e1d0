from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cvlib.render import ray_box, ray_capsule, ray_plane, ray_sphere
from tests.render.scenes import rotations, sdf_box, sdf_capsule, unit

INF = math.inf


def d64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# origin, direction, a, b, radius, t
CAPSULES = {
    "across the side": ((0, 0, -5), (0, 0, 1), (-1, 0, 0), (1, 0, 0), 0.5, 4.5),
    "t counts in lengths of d": ((0, 0, -5), (0, 0, 2), (-1, 0, 0), (1, 0, 0), 0.5, 2.25),
    "tangent to the side": ((0, 0.5, -5), (0, 0, 1), (-1, 0, 0), (1, 0, 0), 0.5, 5),
    "just past the side": ((0, 0.50001, -5), (0, 0, 1), (-1, 0, 0), (1, 0, 0), 0.5, INF),
    "along the axis, from before a": ((0, 0, -5), (0, 0, 1), (0, 0, -1), (0, 0, 1), 0.5, 3.5),
    "along the axis, from behind b": ((0, 0, 5), (0, 0, -1), (0, 0, -1), (0, 0, 1), 0.5, 3.5),
    "beside the axis": ((0.3, 0, -5), (0, 0, 1), (0, 0, -1), (0, 0, 1), 0.5, 3.6),
    "along the axis and outside": ((0.6, 0, 0), (0, 0, 1), (0, 0, -1), (0, 0, 1), 0.5, INF),
    "the tip of a cap": ((2, 1.2, 0), (-1, 0, 0), (0, 0, 0), (0, 1, 0), 0.5, 2 - math.sqrt(0.25 - 0.04)),
    "past a cap, within the cylinder": ((2, 1.51, 0), (-1, 0, 0), (0, 0, 0), (0, 1, 0), 0.5, INF),
    "from inside through the side": ((0, 0.5, 0), (1, 0, 0), (0, 0, 0), (0, 1, 0), 0.5, 0.5),
    "from inside along the axis": ((0.3, 0.5, 0), (0, 1, 0), (0, 0, 0), (0, 1, 0), 0.5, 0.9),
    "from inside along the axis, backwards": ((0.3, 0.5, 0), (0, -1, 0), (0, 0, 0), (0, 1, 0), 0.5, 0.9),
    "from inside a cap": ((0, 1.2, 0), (0, 1, 0), (0, 0, 0), (0, 1, 0), 0.5, 0.3),
    "behind the origin": ((0, 0, 5), (0, 0, 1), (-1, 0, 0), (1, 0, 0), 0.5, INF),
    "no length": ((0, 0, -5), (0, 0, 1), (0, 0, 0), (0, 0, 0), 0.5, 4.5),
    "no length, beside": ((0.3, 0, -5), (0, 0, 1), (0, 0, 0), (0, 0, 0), 0.5, 4.6),
}


@pytest.mark.parametrize("name", CAPSULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_capsule_closed_form(name, dtype):
    *vectors, r, want = CAPSULES[name]
    t = ray_capsule(*(torch.tensor(v, dtype=dtype) for v in vectors), torch.tensor(r, dtype=dtype))
    assert t.dtype == dtype
    torch.testing.assert_close(t.item(), float(want), rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


@pytest.mark.parametrize(
    ("o", "d", "want"),
    [
        ((0, 0, -5), (0, 0, 1), 3),
        ((0, 0, -5), (0, 0, 4), 0.75),
        ((2, 0, -5), (0, 0, 1), 5),  # tangent
        ((2.000001, 0, -5), (0, 0, 1), INF),
        ((0, 0, 0), (0, 1, 0), 2),  # from the centre
        ((0, 1, 0), (0, 1, 0), 1),  # inside
        ((0, 1, 0), (1, 0, 0), math.sqrt(3)),
        ((0, 0, 5), (0, 0, 1), INF),  # behind
    ],
)
def test_sphere_closed_form(o, d, want):
    t = ray_sphere(d64(*o), d64(*d), d64(0, 0, 0), d64(2).squeeze())
    assert t.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("o", "d", "want"),
    [
        ((-5, 0, 0), (1, 0, 0), 4),
        ((-5, 1.999, 0), (1, 0, 0), 4),
        ((-5, 2.001, 0), (1, 0, 0), INF),
        ((0, 0, 0), (0, 0, -1), 3),  # a room from inside
        ((0.5, 1, 1), (-1, 0, 0), 1.5),
        ((-5, 0, 0), (-1, 0, 0), INF),
        ((-2, 0, 0), (1, 2, 0), 1),  # at (-1, 2), on an edge
        ((-2, 0, 0), (1, 2.001, 0), INF),
    ],
)
def test_box_closed_form(o, d, want):
    t = ray_box(d64(*o), d64(*d), d64(0, 0, 0), torch.eye(3, dtype=torch.float64), d64(1, 2, 3))
    assert t.item() == pytest.approx(want, rel=1e-12)


def test_plane_from_both_sides():
    point, n = d64(0, 0, 2), d64(0, 0, 3)
    o = torch.stack([d64(0, 0, 0), d64(0, 0, 5), d64(0, 0, 0), d64(0, 0, 0)])
    d = torch.stack([d64(1, 0, 1), d64(0, 0, -2), d64(0, 0, -1), d64(1, 0, 0)])
    assert ray_plane(o, d, point, n).tolist() == [2, 1.5, INF, INF]


def rays(n: int) -> tuple[Tensor, Tensor]:
    o = unit(torch.randn(n, 3, dtype=torch.float64)) * 3
    o[: n // 5] *= 0.1  # some start inside
    return o, unit(0.6 * torch.randn(n, 3, dtype=torch.float64) - o)


def check_with_distance(t: Tensor, o: Tensor, d: Tensor, distance) -> None:
    """On the surface at t, at no place before it, and no place at all where t is inf."""
    is_hit = t.isfinite()
    assert 0.1 < is_hit.double().mean() < 0.95  # both are tested
    end = torch.where(is_hit, t, 10.0)
    at = distance(o + end.unsqueeze(-1) * d)
    torch.testing.assert_close(at[is_hit], torch.zeros_like(at[is_hit]), rtol=0, atol=1e-9)
    starts_outside = distance(o) > 0
    for part in torch.linspace(0.002, 0.998, 300, dtype=torch.float64):
        before = distance(o + (part * end).unsqueeze(-1) * d)
        assert (torch.where(starts_outside, before, -before) > 0).all()


def test_capsules_against_their_distance():
    n = 3000
    o, d = rays(n)
    a = 0.5 * torch.randn(n, 3, dtype=torch.float64)
    b = a + torch.randn(n, 3, dtype=torch.float64) * torch.rand(n, 1, dtype=torch.float64)
    r = 0.1 + 0.5 * torch.rand(n, dtype=torch.float64)
    check_with_distance(ray_capsule(o, d, a, b, r), o, d, lambda x: sdf_capsule(x, a, b, r))


def test_spheres_and_boxes_against_their_distance():
    n = 3000
    o, d = rays(n)
    c = 0.5 * torch.randn(n, 3, dtype=torch.float64)
    r = 0.2 + torch.rand(n, dtype=torch.float64)
    check_with_distance(ray_sphere(o, d, c, r), o, d, lambda x: (x - c).norm(dim=-1) - r)
    R, half = rotations(n), 0.2 + 0.5 * torch.rand(n, 3, dtype=torch.float64)
    check_with_distance(ray_box(o, d, c, R, half), o, d, lambda x: sdf_box(x, c, R, half))


def test_a_capsule_without_length_is_a_sphere():
    o, d = rays(500)
    c, r = 0.3 * torch.randn(500, 3, dtype=torch.float64), 0.5 + torch.rand(500, dtype=torch.float64)
    torch.testing.assert_close(ray_capsule(o, d, c, c, r), ray_sphere(o, d, c, r))


def test_float32_holds_for_thin_far_capsules_and_rays_along_them():
    """0.04 thick at a distance of 50: the textbook discriminant |c|² - (c·d)² has no digit left there."""
    n = 2000
    a = torch.tensor([0.0, 0.0, 50.0], dtype=torch.float64) + torch.randn(n, 3, dtype=torch.float64)
    axis = unit(torch.randn(n, 3, dtype=torch.float64))
    axis[: n // 4] = unit(a[: n // 4] + 1e-3 * torch.randn(n // 4, 3, dtype=torch.float64))
    b, r = a + axis, torch.full((n,), 0.04, dtype=torch.float64)
    aim = (
        a
        + torch.rand(n, 1, dtype=torch.float64) * axis
        + 0.02 * (torch.rand(n, 3, dtype=torch.float64) - 0.5)
    )
    d = aim / aim[:, 2:]
    want = ray_capsule(torch.zeros(3, dtype=torch.float64), d, a, b, r)
    got = ray_capsule(torch.zeros(3), d.float(), a.float(), b.float(), r.float())
    assert want.isfinite().all() and got.isfinite().all()
    # 50 is stored to 4e-6; a slanted surface turns that into a multiple, seldom more than a radius
    error = (got - want).abs()
    assert error.median() < 1e-5 and error.quantile(0.99) < 2e-3
