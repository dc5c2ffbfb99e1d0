from __future__ import annotations

import torch

from cvlib.render import Capsules, Scene, render
from cvlib.render.raster import footprint, nearest, pixels_of, runs_of
from tests.render.scenes import frontal


def test_a_tilted_limb_is_tested_near_itself_only():
    """Its runs hold every pixel that sees it, and not many more; its rectangle would hold ten times that."""
    for ends in ([[-1, -1, 4], [1, 1, 4]], [[1, -1, 4], [-1, 1, 4]], [[-1, -0.3, 3], [1, 0.4, 6]]):
        a, b = torch.tensor(ends, dtype=torch.float64).view(2, 1, 1, 3)
        limb = Capsules(a=a, b=b, radius=torch.full((1, 1), 0.05).double(), colour=torch.ones_like(a))
        cameras = frontal(128)
        placed = limb.place(cameras.R.unsqueeze(1), cameras.t.unsqueeze(1))
        _, pixel = pixels_of(runs_of(footprint(placed, cameras.K, 128, 128), 128, 128))
        covered = render(Scene(capsules=limb), cameras, supersample=1).alpha.flatten().nonzero().flatten()
        assert len(pixel.unique()) == len(pixel) and set(covered.tolist()) <= set(pixel.tolist())
        assert len(pixel) < 2 * len(covered)


def test_nearest_does_not_depend_on_the_order_of_hits():
    pixel, t = torch.randint(0, 50, (400,)), torch.randint(1, 5, (400,)).float()
    shape = torch.randint(0, 9, (400,))
    depth, owner = nearest(pixel, t, shape, 60)
    for i in range(60):
        hits = [(t[k].item(), shape[k].item()) for k in range(400) if pixel[k] == i]
        assert (depth[i].item(), owner[i].item()) == min(hits, default=(float("inf"), -1))
    order = torch.randperm(400)
    again = nearest(pixel[order], t[order], shape[order], 60)
    assert torch.equal(again[0], depth) and torch.equal(again[1], owner)
