from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cvlib.render import (
    Boxes,
    Cameras,
    Capsules,
    Lights,
    Planes,
    Rendering,
    Scene,
    Spheres,
    ray_box,
    ray_capsule,
    ray_plane,
    ray_sphere,
    render,
)
from tests.render.scenes import around, clutter, frontal, rotations


def brute_force(scene: Scene, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Depth and number (from 1) of the nearest shape: every ray against every shape, in the world's frame."""
    o, d = cameras.rays()
    o, d = o[:, None, None, None], d.unsqueeze(3)  # (B, H, W, 1, 3), shapes come last

    def over(x: Tensor) -> Tensor:
        return x[:, None, None]

    p, b, s, c = scene.planes, scene.boxes, scene.spheres, scene.capsules
    found = []
    if p is not None:
        found.append(ray_plane(o, d, over(p.point), over(p.normal)))
    if b is not None:
        R = torch.eye(3, dtype=d.dtype).expand(*b.half.shape, 3) if b.rotation is None else b.rotation
        found.append(ray_box(o, d, over(b.centre), over(R), over(b.half)))
    if s is not None:
        found.append(ray_sphere(o, d, over(s.centre), over(s.radius)))
    if c is not None:
        t = ray_capsule(o, d, over(c.a), over(c.b), over(c.radius))
        found.append(t if c.shown is None else torch.where(over(c.shown), t, torch.inf))
    depth, number = torch.cat(found, -1).min(-1)
    return depth, torch.where(depth.isfinite(), number + 1, 0)


def numbered(scene: Scene) -> Scene:
    return replace(scene, boxes=replace(scene.boxes, part=None))


@pytest.mark.parametrize("distance", [4.0, 1.0, 0.1])
def test_depth_and_ids_against_brute_force(distance):
    """From outside, from among the shapes, and often from inside one: leaving out tests changes nothing."""
    b = 12
    scene, cameras = numbered(clutter(b)), around(b, 24, distance, fov=70, width=37)
    want, number = brute_force(scene, cameras)
    seen = render(scene, cameras, supersample=1)
    torch.testing.assert_close(seen.depth, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(seen.ids, number)
    assert len(number.unique()) > 8  # of all kinds
    assert torch.equal(seen.alpha == 1, number > 0)


def test_pixels_need_not_be_square_nor_upright():
    b = 6
    scene, cameras = numbered(clutter(b)), around(b, 24, 3.0, width=37)
    K = torch.tensor([[30.0, 9.0, 11.0], [4.0, -20.0, 15.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    cameras = replace(cameras, K=K.expand(b, 3, 3))
    want, number = brute_force(scene, cameras)
    seen = render(scene, cameras, supersample=1)
    torch.testing.assert_close(seen.depth, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(seen.ids, number)


def test_float32_differs_only_at_silhouettes():
    b = 12
    scene, cameras = numbered(clutter(b)), around(b, 32)
    exact = render(scene, cameras)
    seen = render(scene.to(dtype=torch.float32), cameras.to(dtype=torch.float32))
    same = seen.ids == exact.ids
    assert same.double().mean() > 0.999
    found = same & (exact.ids > 0)
    relative = (seen.depth[found] / exact.depth[found] - 1).abs()
    assert relative.median() < 1e-6 and relative.quantile(0.999) < 1e-4
    assert (seen.rgb - exact.rgb).abs().mean() < 1e-4


def test_supersampling_is_the_mean_of_shifted_renderings():
    b = 4
    scene, cameras = clutter(b), around(b)
    want = []
    for du in (-0.25, 0.25):
        for dv in (-0.25, 0.25):
            K = cameras.K.clone()
            K[:, 0, 2] -= du  # the ray through (u, v) is the one that went through (u + du, v + dv)
            K[:, 1, 2] -= dv
            want.append(render(scene, replace(cameras, K=K), supersample=1))
    seen, plain = render(scene, cameras, supersample=2), render(scene, cameras, supersample=1)
    torch.testing.assert_close(seen.rgb, sum(one.rgb for one in want) / 4)
    torch.testing.assert_close(seen.alpha, sum(one.alpha for one in want) / 4)
    assert ((seen.alpha > 0) & (seen.alpha < 1)).any()
    assert torch.equal(seen.depth, plain.depth) and torch.equal(seen.ids, plain.ids)


def test_a_batch_is_its_items_and_groups_of_any_size_agree():
    b = 5
    scene, cameras = clutter(b), around(b)
    seen = render(scene, cameras)
    for tests in (1, 20_000):
        again = render(scene, cameras, tests=tests)
        for x, y in zip(vars(seen).values(), vars(again).values(), strict=True):
            assert torch.equal(x, y)
    for i in range(b):
        one = render(item(scene, i), cameras[i : i + 1])
        torch.testing.assert_close(one.rgb, seen.rgb[i : i + 1])
        assert torch.equal(one.ids, seen.ids[i : i + 1])


def item(scene: Scene, i: int) -> Scene:
    def cut(part):
        if not isinstance(part, Planes | Boxes | Spheres | Capsules | Lights):
            return part
        return replace(part, **{k: None if v is None else v[i : i + 1] for k, v in vars(part).items()})

    return Scene(**{k: cut(v) for k, v in vars(scene).items()})


def test_one_scene_serves_many_cameras_and_one_camera_many_scenes():
    scene, cameras = clutter(3), around(3)
    many = render(item(scene, 1), cameras)
    for i in range(3):
        torch.testing.assert_close(many.rgb[i], render(item(scene, 1), cameras[i : i + 1]).rgb[0])
    many = render(scene, cameras[:1])
    for i in range(3):
        one = render(item(scene, i), cameras[:1])
        torch.testing.assert_close(many.rgb[i], one.rgb[0])
        assert torch.equal(many.ids[i], one.ids[0])


def room() -> Scene:
    """A room with a box and a ball in it; every wall has its own texture."""
    like = {"dtype": torch.float64}
    centre = torch.tensor([[[0, 1.4, 0], [0.8, 0.4, 0.9]]], **like)
    half = torch.tensor([[[2.5, 1.4, 2.5], [0.5, 0.4, 0.3]]], **like)
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 4, 4, **like), size=64, mode="bilinear")
    return Scene(
        boxes=Boxes(
            centre=centre,
            half=half,
            colour=torch.ones(1, 2, 3, **like),
            texture=torch.arange(6).expand(1, 2, 6),
            part=torch.tensor([[[1, 2, 3, 4, 5, 6], [7] * 6]]),
        ),
        spheres=Spheres(
            centre=torch.tensor([[[-0.7, 0.5, 0.6]]], **like),
            radius=torch.tensor([[0.5]], **like),
            colour=torch.tensor([[[0.9, 0.3, 0.2]]], **like),
            part=torch.tensor([[8]]),
        ),
        textures=smooth,
        lights=Lights.studio(dtype=torch.float64),
    )


def room_cameras(n: int, height: int = 48, width: int = 80) -> Cameras:
    angle = torch.linspace(-0.3, 0.3, n, dtype=torch.float64)
    eye = torch.stack((2 * angle.sin(), 1.5 + 0.2 * angle, -2 * angle.cos()), 1)
    target = torch.tensor([[0, 0.9, 0.5]], dtype=torch.float64).expand(n, 3)
    return Cameras.look_at(eye, target, height=height, width=width, fov=60)


def test_a_room_in_closed_form():
    """Without furniture the depth is that of the nearest wall ahead, and walls show their numbers."""
    cameras = room_cameras(3)
    whole = room()
    empty = replace(whole, boxes=replace(whole.boxes, shown=torch.tensor([[True, False]])), spheres=None)
    seen = render(empty, cameras)
    o, d = cameras.rays()
    walls = []
    for axis, (low, high) in enumerate([(-2.5, 2.5), (0, 2.8), (-2.5, 2.5)]):
        for at in (low, high):
            t = (at - o[:, axis, None, None]) / d[..., axis]
            walls.append(torch.where(t > 0, t, torch.inf))
    depth, wall = torch.stack(walls, -1).min(-1)
    torch.testing.assert_close(seen.depth, depth)
    assert torch.equal(seen.ids, wall + 1) and len(wall.unique()) >= 4
    assert (seen.alpha == 1).all()


def test_points_of_one_view_lie_on_the_surfaces_of_another():
    """Depth carried over: the second camera sees each point at that depth, or something before it."""
    scene, cameras = room(), room_cameras(2)
    first, second = render(scene, cameras[:1]), cameras[1:]
    points = cameras[:1].unproject(first.depth)
    uv, z = second.project(points)
    inside = (uv >= 0).all(-1) & (uv[..., 0] < 80) & (uv[..., 1] < 48) & (z > 0)
    # a camera for each point, of one pixel whose centre is the point's place: no interpolation of depth
    n = int(inside.sum())
    K = second.K.repeat(n, 1, 1)
    K[:, :2, 2] += 0.5 - uv[inside]
    single = Cameras(K, second.R.repeat(n, 1, 1), second.t.repeat(n, 1), 1, 1)
    there = render(scene, single, supersample=1)
    depth, ids = there.depth.flatten(), there.ids.flatten()
    is_same = (depth - z[inside]).abs() < 1e-9
    assert (depth <= z[inside] + 1e-9).all()
    assert 0.8 < is_same.double().mean() < 1  # some are hidden by the furniture
    assert torch.equal(ids[is_same], first.ids[inside][is_same])
    before = render(scene, cameras[:1], supersample=1).rgb.movedim(1, -1)[inside]
    # light and textures belong to the surface, so its colour does not depend on the view
    torch.testing.assert_close(there.rgb.view(n, 3)[is_same], before[is_same], rtol=0, atol=1e-7)


def test_ids_are_the_parts_of_faces():
    seen = render(room(), room_cameras(3))
    assert set(seen.ids.unique().tolist()) >= {1, 2, 3, 6, 7, 8} and seen.ids.min() >= 1


def test_equal_depths_go_to_the_first_shape():
    like = {"dtype": torch.float64}
    ball = Spheres(
        centre=torch.tensor([[[0, 0, 3.0]] * 2], **like),
        radius=torch.ones(1, 2, **like),
        colour=torch.rand(1, 2, 3, **like),
        part=torch.tensor([[9, 4]]),
    )
    assert set(render(Scene(spheres=ball), frontal()).ids.unique().tolist()) == {0, 9}


def test_over_is_what_a_wall_behind_would_have_given():
    scene, cameras = clutter(2), around(2)
    scene = replace(scene, planes=None)
    colour = torch.rand(1, 3, 1, 1, dtype=torch.float64)
    # an unlit wall would be shaded, so the light is taken away from both
    scene = replace(scene, lights=None)
    seen = render(scene, cameras)
    far = cameras.centres + 50 * cameras.R[:, 2]
    wall = Planes(point=far[:, None], normal=cameras.R[:, 2:], colour=colour.view(1, 1, 3).expand(2, 1, 3))
    behind = render(replace(scene, planes=wall), cameras)
    torch.testing.assert_close(seen.over(colour), behind.rgb)


def test_nothing_in_view_is_empty():
    ball = Spheres(centre=torch.tensor([[[0, 0, -3.0]]]), radius=torch.ones(1, 1), colour=torch.ones(1, 1, 3))
    seen = render(Scene(spheres=ball), frontal(8).to(dtype=torch.float32))
    assert not seen.rgb.any() and not seen.alpha.any() and not seen.ids.any() and seen.depth.isinf().all()
    assert isinstance(seen, Rendering) and seen.rgb.shape == (1, 3, 8, 8)


def test_rotation_of_the_world_changes_nothing():
    scene, cameras, Q = clutter(2), around(2), rotations(2)

    def turned(x: Tensor) -> Tensor:
        return (Q[:, None] @ x[..., None])[..., 0]

    s = scene
    moved = replace(
        s,
        planes=None,
        boxes=replace(s.boxes, centre=turned(s.boxes.centre), rotation=Q[:, None] @ s.boxes.rotation),
        spheres=replace(s.spheres, centre=turned(s.spheres.centre), rotation=Q[:, None] @ s.spheres.rotation),
        capsules=replace(
            s.capsules,
            a=turned(s.capsules.a),
            b=turned(s.capsules.b),
            reference=turned(torch.ones_like(s.capsules.a)),
        ),
        lights=replace(s.lights, direction=turned(s.lights.direction)),
    )
    before = replace(s, planes=None, capsules=replace(s.capsules, reference=torch.ones_like(s.capsules.a)))
    want = render(before, cameras)
    seen = render(moved, replace(cameras, R=cameras.R @ Q.mT))
    torch.testing.assert_close(seen.rgb, want.rgb)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees():
    scene, cameras = clutter(6), around(6)
    want, seen = render(scene, cameras), render(scene.to("cuda"), cameras.to("cuda"))
    assert seen.rgb.is_cuda
    torch.testing.assert_close(seen.depth.cpu(), want.depth)
    torch.testing.assert_close(seen.rgb.cpu(), want.rgb)
    assert torch.equal(seen.ids.cpu(), want.ids)
