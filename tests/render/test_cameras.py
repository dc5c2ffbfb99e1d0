from __future__ import annotations

import math

import pytest
import torch

from cvlib.errors import BookError
from cvlib.render import Cameras, intrinsics, relative_pose
from tests.render.scenes import around, frontal, rotations, unit


def skewed(n: int = 3) -> Cameras:
    """Cameras with pixels that are not square, skew, and the principal point off the centre."""
    cameras = around(n, 24, width=40)
    K = torch.tensor([[55.0, 3.0, 17.0], [0.0, 48.0, 14.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(K.expand(n, 3, 3), cameras.R, cameras.t, 24, 40)


def test_the_frame_is_x_right_y_down_z_forward():
    eye, target = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    camera = Cameras.look_at(eye, target, height=100, width=200, fov=90)
    # before the camera: the target, then a point to its right (+x of the world, seen from +z), then one above
    points = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 1.0, 6.0]]])
    uv, depth = camera.project(points)
    torch.testing.assert_close(uv[0, :3], torch.tensor([[100.0, 50.0], [110.0, 50.0], [100.0, 40.0]]))
    torch.testing.assert_close(depth, torch.tensor([[5.0, 5.0, 5.0, -1.0]]))
    torch.testing.assert_close(camera.centres, eye)


def test_project_against_the_equations_one_by_one():
    cameras = skewed()
    points = torch.randn(3, 5, 3, dtype=torch.float64)
    uv, depth = cameras.project(points)
    for b in range(3):
        for p in range(5):
            x = cameras.K[b] @ (cameras.R[b] @ points[b, p] + cameras.t[b])
            torch.testing.assert_close(uv[b, p], x[:2] / x[2])
            torch.testing.assert_close(depth[b, p], x[2])


def test_unproject_undoes_project():
    cameras = skewed()
    points = torch.randn(3, 4, 5, 3, dtype=torch.float64)
    uv, depth = cameras.project(points)
    torch.testing.assert_close(cameras.unproject(depth, uv), points)
    z = 1 + torch.rand(3, 24, 40, dtype=torch.float64)
    uv, depth = cameras.project(cameras.unproject(z))
    torch.testing.assert_close(depth, z)
    torch.testing.assert_close(uv, cameras.pixels().expand(3, -1, -1, -1))
    assert uv[0, 2, 7].tolist() == pytest.approx([7.5, 2.5])


def test_rays_have_z_1_and_pass_the_pixel_centres():
    cameras = skewed()
    origins, directions = cameras.rays()
    uv, depth = cameras.project(origins[:, None, None] + 2.5 * directions)
    torch.testing.assert_close(depth, torch.full_like(depth, 2.5))
    torch.testing.assert_close(uv, cameras.pixels().expand(3, -1, -1, -1))


def test_resized_cameras_see_the_same_at_scaled_places():
    cameras, points = skewed(), torch.randn(3, 9, 3, dtype=torch.float64)
    uv, depth = cameras.project(points)
    small_uv, small_depth = cameras.resized(12, 10).project(points)
    torch.testing.assert_close(small_uv, uv * torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(small_depth, depth)


def test_relative_pose_takes_points_from_camera_to_camera():
    source, target, x = around(4), around(4), torch.randn(4, 3, dtype=torch.float64)
    R, t = relative_pose(source, target)
    in_source = (source.R @ x[..., None])[..., 0] + source.t
    in_target = (target.R @ x[..., None])[..., 0] + target.t
    torch.testing.assert_close((R @ in_source[..., None])[..., 0] + t, in_target)


def test_look_at_centres_the_target_and_keeps_up_upright():
    eye, target = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    up = unit(torch.tensor([0.2, -0.3, 1.0], dtype=torch.float64))
    cameras = Cameras.look_at(eye, target, height=20, width=30, fov=60, up=tuple(up.tolist()))
    uv, depth = cameras.project(torch.stack((target, target + 0.01 * up), 1))
    torch.testing.assert_close(uv[:, 0], torch.tensor([15.0, 10.0], dtype=torch.float64).expand(5, 2))
    torch.testing.assert_close(depth[:, 0], (target - eye).norm(dim=-1))
    torch.testing.assert_close(uv[:, 1, 0], uv[:, 0, 0])  # up has no part to the side
    assert (uv[:, 1, 1] < uv[:, 0, 1]).all()


def test_the_field_of_view_ends_at_the_border():
    K = intrinsics(48, 64, 50.0, torch.float64)
    y = math.tan(math.radians(25))
    assert (K @ torch.tensor([0, y, 1.0], dtype=torch.float64))[1].item() == pytest.approx(48)
    assert K[0, 0] == K[1, 1]


def test_a_part_of_the_batch_and_another_type():
    cameras = skewed(4)
    assert len(cameras[1:3]) == 2 and torch.equal(cameras[1:3].t, cameras.t[1:3])
    assert cameras.to(dtype=torch.float32).K.dtype == torch.float32


def change(**fields: object) -> Cameras:
    one = frontal(8, n=2)
    return Cameras(**({"K": one.K, "R": one.R, "t": one.t, "height": 8, "width": 8} | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"K": torch.tensor([[0.0, 0, 4], [0, 5, 4], [0, 0, 1]]).double().expand(2, 3, 3)}, "singular"),
        ({"K": torch.eye(3).double().expand(2, 3, 3) * 2}, "last row"),
        ({"K": torch.eye(3).double()}, r"\(B, 3, 3\)"),
        ({"K": torch.full((2, 3, 3), math.nan).double()}, "NaN"),
        ({"R": torch.eye(3).double().expand(2, 3, 3) * 1.01}, "rotation"),
        ({"R": torch.diag(torch.tensor([1.0, 1, -1])).double().expand(2, 3, 3)}, "mirror"),
        ({"R": rotations(3)}, r"R of shape \(3, 3, 3\)"),
        ({"t": torch.zeros(2, 3)}, "float32"),
        ({"t": torch.full((2, 3), math.inf).double()}, "infinity"),
        ({"height": 0}, "0 x 8"),
    ],
)
def test_bad_cameras_are_told(fields, said):
    change()
    with pytest.raises(BookError, match=said):
        change(**fields)


def test_bad_views_are_told():
    eye, far = torch.zeros(1, 3), torch.tensor([[0.0, 2.0, 0.0]])
    for target in (eye, far):
        with pytest.raises(BookError, match="along up"):
            Cameras.look_at(eye, target, height=8, width=8)
    with pytest.raises(BookError, match="field of view"):
        intrinsics(8, 8, 180)
    with pytest.raises(BookError, match="depth map"):
        frontal(8).unproject(torch.ones(1, 8, 7))
