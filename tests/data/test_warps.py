from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator

from cvlib.data.warps import WarpRange, control_points, resample, sampling_grid

STILL = WarpRange(scal=1, tps_scal=0, rot_scal=0, off_scal=0, scal_var=0)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def centres(size):
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)  # x first, rows of the image one by one


def test_a_warp_is_the_thin_plate_spline_that_scipy_knows():
    targets = WarpRange().draw(3, gen())
    for one, grid in zip(targets, sampling_grid(targets, 12), strict=True):
        peer = RBFInterpolator(control_points().numpy(), one.numpy(), kernel="thin_plate_spline", degree=1)
        np.testing.assert_allclose(grid.reshape(-1, 2).numpy(), peer(centres(12)), atol=1e-5)


def test_a_warp_without_strength_is_the_identity():
    x = torch.rand(2, 3, 9, 9, generator=gen())
    grid = sampling_grid(STILL.draw(2, gen()), 9)
    np.testing.assert_allclose(grid[0].reshape(-1, 2), centres(9), atol=1e-6)
    torch.testing.assert_close(resample(x, grid), x, atol=1e-5, rtol=0)
    ids = torch.randint(-1, 25, (2, 1, 9, 9), generator=gen()).float()
    assert torch.equal(resample(ids, grid, "nearest"), ids)


def test_a_known_shift_moves_a_pixel_where_it_must():
    """Control points take from 2 of 8 pixels further right and 1 further down: all comes left and up."""
    targets = (control_points() + torch.tensor([2 * 2 / 8, 1 * 2 / 8])).float()[None]
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 5] = 1
    moved = resample(x, sampling_grid(targets, 8))
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, 3, 3] = 1
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("angle", "scale"), [(0.3, 1.0), (0.0, 0.5), (-0.2, 0.7)])
def test_an_affine_warp_is_exact_between_the_control_points(angle, scale):
    c, s = math.cos(angle), math.sin(angle)
    matrix = scale * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    grid = sampling_grid((control_points() @ matrix.T)[None].float(), 10)
    np.testing.assert_allclose(grid.reshape(-1, 2), centres(10) @ matrix.numpy().T, atol=1e-5)


def test_half_the_scale_enlarges_twice():
    x = torch.zeros(1, 1, 16, 16)
    x[..., 6:10, 6:10] = 1
    seen = WarpRange(scal=0.5, tps_scal=0, rot_scal=0, off_scal=0, scal_var=0).draw(1, gen())
    assert resample(x, sampling_grid(seen, 16), "nearest").sum() == 64


def test_outside_the_edge_goes_on():
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4).contiguous()
    targets = (control_points() + torch.tensor([1.5, 0.0])).float()[None]  # three of four pixels to the right
    torch.testing.assert_close(resample(x, sampling_grid(targets, 4))[0, 0], torch.full((4, 4), 3.0))


def test_draws_keep_to_their_ranges():
    points, n = control_points(), 500
    one = {"tps_scal": 0, "rot_scal": 0, "off_scal": 0, "scal_var": 0, "scal": 1}
    scaled = WarpRange(**one | {"scal": 0.8, "scal_var": 0.1}).draw(n, gen())
    shares = (scaled / points)[:, [0, -1]].flatten(0, 1)
    assert 0.72 <= shares.min() < 0.73 and 0.87 < shares.max() <= 0.8801
    assert (shares[:, 0] - shares[:, 1]).abs().max() > 0.05  # each axis has a factor of its own
    turned = WarpRange(**one | {"rot_scal": 0.2}).draw(n, gen())
    torch.testing.assert_close(turned.norm(dim=-1), points.float().norm(dim=-1).expand(n, -1))
    corner, before = turned[:, -1], points[-1]
    angle = torch.atan2(corner[:, 1], corner[:, 0]) - math.atan2(before[1], before[0])
    assert -0.2 <= angle.min() < -0.19 and 0.19 < angle.max() <= 0.2001
    bent = WarpRange(**one | {"tps_scal": 0.15}).draw(n, gen()) - points
    assert 0.149 < bent.abs().max() <= 0.1501 and bent.mean().abs() < 0.01
    moved = WarpRange(**one | {"scal": 0.5, "off_scal": 0.2}).draw(n, gen())
    shift = moved.mean(1)  # (1 - scale) of the centre
    assert 0.095 < shift.abs().max() <= 0.1001


def test_draws_repeat_and_differ():
    a, b = WarpRange().draw(4, gen()), WarpRange().draw(4, gen())
    assert torch.equal(a, b) and (a[0] - a[1]).abs().max() > 0.01
