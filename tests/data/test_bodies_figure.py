"""Geometry of the drawn bodies against other ways to find it: marching rays, mirrors, plain formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cvlib.data.bodies_figure import CAPSULES, PARTS, pose_figures
from cvlib.data.bodies_people import PATTERNS, SHAPE, Outfits, draw_looks, draw_shapes, limb_offsets, textures
from cvlib.data.bodies_scenes import (
    FOV,
    VIEW,
    Viewpoints,
    cameras_of,
    draw_bodies,
    frames_of,
    joint_places,
    rotations_of,
    sample_views,
)
from cvlib.data.mocap import clip
from cvlib.data.mocap_skeleton import JOINTS, SWAPPED

FRAMES = [("walk", 4, False), ("kick", 12, False), ("getup_faceup", 20, True), ("cartwheel", 25, False)]


def view(n: int, **values: float) -> Viewpoints:
    middle = {name: (low + high) / 2 for name, (low, high) in VIEW.items()} | values
    return Viewpoints(torch.tensor([[middle[name] for name in VIEW]], dtype=torch.float64).repeat(n, 1))


def distance_to(points: np.ndarray, a: np.ndarray, b: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Signed distances (P, N) of points (P, 3) to capsules (N,)."""
    axis = b - a
    along = ((points[:, None] - a) * axis).sum(-1) / (axis**2).sum(-1)
    nearest = a + np.clip(along, 0, 1)[..., None] * axis
    return np.linalg.norm(points[:, None] - nearest, axis=-1) - radius


@pytest.mark.parametrize("which", range(3))
def test_masks_equal_marching_along_each_ray(which):
    """Sphere tracing (steps as long as the distance to the nearest capsule) knows no closed form of a hit."""
    size, views, shapes = 32, sample_views(4, 0, "marching"), draw_shapes(4, 0, "marching")
    rotations = rotations_of(FRAMES)
    drawn = draw_bodies(rotations, shapes, draw_looks(4, 0, "marching"), views, size)[which]
    turned = rotations[which : which + 1].clone()
    half = views.yaw[which].deg2rad() / 2  # the yaw as a quaternion product written out, about y
    w, x, y, z = turned[0, 0].tolist()
    c, s = math.cos(half), math.sin(half)
    turned[0, 0] = torch.tensor([c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x])
    body = pose_figures(turned, shapes[which : which + 1])
    one = Viewpoints(views.table[which : which + 1])
    camera = cameras_of(turned, one, size)
    R, t = camera.R[0].numpy(), camera.t[0].numpy()
    focal = size / 2 / math.tan(math.radians(FOV) / 2)
    row, column = np.mgrid[:size, :size] + 0.5
    u, v = (size / 2 + size * float(shift[which]) for shift in (views.right, views.down))
    d = np.stack([(column - u) / focal, (row - v) / focal, np.ones_like(row)], -1).reshape(-1, 3)
    d = d / np.linalg.norm(d, axis=-1, keepdims=True) @ R  # to the world
    eye, gone = -R.T @ t, np.zeros(size * size)
    a, b, radius = (x[0].numpy() for x in (body.a, body.b, body.radius))
    for _ in range(300):
        gone += distance_to(eye + gone[:, None] * d, a, b, radius).min(1)
    away = distance_to(eye + gone[:, None] * d, a, b, radius)
    wanted = np.where(away.min(1) < 1e-4, body.part.numpy()[away.argmin(1)], 0).reshape(size, size)
    assert (wanted != drawn[4].numpy()).mean() < 0.004  # grazing rays, and seams where two parts touch
    assert (wanted > 0).mean() > 0.05


def test_joint_places_are_projected_by_the_plain_formula():
    shapes, views = draw_shapes(4, 1), view(4, yaw=0.0)
    rotations = rotations_of(FRAMES)
    places = joint_places(rotations, shapes, views, 64)
    camera, body = cameras_of(rotations, views, 64), pose_figures(rotations, shapes)
    focal = 32 / math.tan(math.radians(15))
    for k in range(4):
        eye = -camera.R[k].T @ camera.t[k]
        assert torch.atan2(
            eye[1] - target(camera, k)[1], eye[0] - target(camera, k)[0]
        ).rad2deg() == pytest.approx(10)
        for joint, at in enumerate(body.joints[k]):
            x, y, z = (camera.R[k] @ (at - eye)).tolist()
            expected = (32 + focal * x / z, 32 + focal * y / z)
            assert places[k, joint].tolist() == pytest.approx(expected, abs=1e-3)


def target(camera, k):
    """A point that the camera looks at."""
    return -camera.R[k].T @ camera.t[k] + camera.R[k][2]


def test_people_of_other_shapes_are_seen_by_the_same_camera():
    rotations, views = rotations_of(FRAMES[:1] * 2), view(2)
    places = joint_places(rotations, torch.tensor([[1.0] * 6, [1.06, 1, 1, 1, 1, 1]]), views, 64)
    length = [(p[JOINTS.index("neck")] - p[JOINTS.index("right_ankle")]).norm() for p in places]
    assert length[1] / length[0] == pytest.approx(1.06, abs=0.02)


def test_a_mirrored_pose_gives_the_mirrored_picture():
    """Mirror the motion, the yaw and the light: left and right change places in the image and in the mask."""
    frames, flipped = [(n, k, False) for n, k, _ in FRAMES], [(n, k, True) for n, k, _ in FRAMES]
    shapes, looks = draw_shapes(4, 2), draw_looks(4, 2)
    looks = Outfits(
        looks.colours, torch.zeros_like(looks.patterns)
    )  # patterns turn the same way on both sides
    here, there = (view(4, yaw=s * 40.0, right=s * 0.02, light_azimuth=s * 30.0) for s in (1, -1))
    places, other = (
        joint_places(rotations_of(f), shapes, v, 64) for f, v in ((frames, here), (flipped, there))
    )
    expected = other[:, list(SWAPPED)] * torch.tensor([-1.0, 1.0]) + torch.tensor([64.0, 0.0])
    torch.testing.assert_close(places, expected, atol=1e-3, rtol=0)
    a = draw_bodies(rotations_of(frames), shapes, looks, here, 64)
    b = draw_bodies(rotations_of(flipped), shapes, looks, there, 64).flip(-1)
    swap = torch.tensor([PARTS.index(other_side(part)) for part in PARTS])
    assert (a[:, 4] != swap[b[:, 4].long()]).float().mean() < 0.002
    assert (a[:, :4].int() - b[:, :4].int()).abs().float().mean() < 0.1


def other_side(name: str) -> str:
    return {"r": "left_", "l": "right_"}[name[0]] + name.split("_", 1)[1] if "_" in name else name


def test_figures_face_the_camera_upright():
    frames = [("walk", k, False) for k in range(0, 30, 5)]
    places = joint_places(rotations_of(frames), torch.ones(6, 6), view(6, yaw=0.0), 64)
    u, v = places.unbind(-1)
    at = {name: k for k, name in enumerate(JOINTS)}
    assert (u[:, at["right_shoulder"]] < u[:, at["left_shoulder"]] - 3).all()  # we see it from the front
    assert (v[:, at["neck"]] < v[:, at["root"]]).all() and (v[:, at["root"]] < v[:, at["left_ankle"]]).all()
    turned = joint_places(rotations_of(frames), torch.ones(6, 6), view(6, yaw=75.0), 64)
    toe_side = turned[..., 0][:, at["left_shoulder"]] - turned[..., 0][:, at["right_shoulder"]]
    assert (toe_side < u[:, at["left_shoulder"]] - u[:, at["right_shoulder"]]).all()


def test_shapes_stretch_what_they_say():
    shapes = torch.ones(1, 6)
    for name, joint, length in [
        ("height", "chest", 0.944604 / 4),
        ("legs", "right_knee", 1.686184 / 4),
        ("hips", "left_hip", 0.339548 / 4),
    ]:
        shape = shapes.clone()
        shape[0, list(SHAPE).index(name)] = 1.25
        assert limb_offsets(shape)[0, JOINTS.index(joint)].norm() == pytest.approx(1.25 * length, rel=1e-5)
        assert limb_offsets(shapes)[0, JOINTS.index(joint)].norm() == pytest.approx(length, rel=1e-5)
    rotations = rotations_of(FRAMES[:1])
    thick = shapes.clone()
    thick[0, list(SHAPE).index("girth")] = 1.2
    ratio = pose_figures(rotations, thick).radius / pose_figures(rotations, shapes).radius
    assert [round(r, 6) for r in ratio[0].tolist()] == [
        1.0 if one.part == "head" else 1.2 for one in CAPSULES
    ]
    wide = shapes.clone()
    wide[0, list(SHAPE).index("hips")] = 1.1
    plain, other = pose_figures(rotations, shapes), pose_figures(rotations, wide)
    ratio = (other.b - other.a).norm(dim=-1) / (plain.b - plain.a).norm(dim=-1)
    for one, r in zip(CAPSULES, ratio[0].tolist(), strict=True):
        if one.joint == one.to:
            assert r == pytest.approx(1.1 if (one.joint, one.part) == ("root", "torso") else 1.0), one
    of: dict[str, set[str]] = {}
    for one in CAPSULES:
        of.setdefault(one.garment, set()).add(one.part.removeprefix("right_").removeprefix("left_"))
    # shirt and trousers span several links, and both reach the torso
    assert of["shirt"] == {"torso", "upper_arm", "lower_arm"} and of["trousers"] == {"torso", "thigh", "shin"}
    drawn = draw_shapes(500, 0)
    for column, bound in zip(drawn.T, SHAPE.values(), strict=True):
        assert 0.9 * bound < (column - 1).abs().max() <= bound
    assert torch.equal(draw_shapes(3, 0), drawn[:3])


def test_patterns_show_both_colours_and_plain_one():
    looks = draw_looks(60, 0)
    tiles = textures(looks).unflatten(0, (60, 5))
    for pattern, name in enumerate(PATTERNS):
        person, garment = (looks.patterns == pattern).nonzero().T
        n_colours = [
            len(tiles[p, g].flatten(1).T.unique(dim=0)) for p, g in zip(person, garment, strict=True)
        ]
        assert set(n_colours) == {1 if name == "plain" else 2}
    hoops = tiles[looks.patterns == PATTERNS.index("hoops")]
    assert (hoops.diff(dim=3) == 0).all() and (hoops.diff(dim=2) != 0).any(1).any(1).any()
    assert tiles.min() >= 0 and tiles.max() <= 1
    assert set(looks.patterns[:, [0, 1, 4]].flatten().tolist()) == {0}


def test_patterns_turn_with_the_links():
    """A limb's pattern starts at a direction of its own link, across its axis however the joints bend."""
    rotations = rotations_of(frames_of("test"))
    body = pose_figures(rotations, torch.ones(len(rotations), 6))
    axis = (body.b - body.a) / (body.b - body.a).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(body.reference.norm(dim=-1), torch.ones_like(body.radius))
    slant = (axis * body.reference).sum(-1).abs().amax(0)
    for one, most in zip(CAPSULES, slant.tolist(), strict=True):
        limb = one.part.split("_")[-1] in ("arm", "thigh", "shin", "hand")
        assert most < (1e-6 if limb else 0.7), one  # never along the axis, where it would say nothing


def test_hoops_go_around_the_hips_too():
    """The hips' capsule lies across; in hooped trousers its colours change downwards all the same."""
    looks = draw_looks(1, 0)
    colours, patterns = torch.ones_like(looks.colours), torch.zeros_like(looks.patterns)
    colours[0, 3, 1], patterns[0, 3] = 0.0, PATTERNS.index("hoops")
    light = view(1, yaw=0.0, key=0.0, ambient=1.0)
    drawn = draw_bodies(rotations_of(FRAMES[:1]), torch.ones(1, 6), Outfits(colours, patterns), light, 128)[
        0
    ].int()
    torso, red = drawn[4] == PARTS.index("torso"), drawn[0]
    down, right = (
        (red.diff(dim=dim).abs() * (torso.narrow(dim, 0, 127) & torso.narrow(dim, 1, 127))).sum()
        for dim in (0, 1)
    )
    assert down > 2 * right and down > 2000


def test_frames_are_the_clips_own_poses():
    frames = frames_of("validation")
    assert len(frames) == 446 and len(set(frames)) == 446
    q = rotations_of(FRAMES)
    for (name, frame, flip), pose in zip(FRAMES, q, strict=True):
        motion = clip(name).mirror() if flip else clip(name)
        torch.testing.assert_close(pose[1:], motion.rotations[frame, 1:])
        assert abs(pose[0, 2]) < 1e-12  # no turn about the vertical is left
