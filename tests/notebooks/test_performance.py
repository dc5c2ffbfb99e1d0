"""What the page "performance" defines: peers that do the same work as ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cvlib.claims import load_rows
from cvlib.claims.racing import race_apart
from cvlib.data.bodies_people import draw_looks, draw_shapes
from cvlib.data.bodies_scenes import body_scenes, frames_of, rotations_of, sample_views
from cvlib.nn import VectorQuantizer
from cvlib.pages import definitions
from cvlib.render import render


@pytest.fixture
def page():
    return definitions(Path(__file__).resolve().parents[2] / "notebooks" / "performance.py")


def test_the_plain_quantizer_is_ours_with_its_gradients(page):
    ours = VectorQuantizer(16, 4)
    plain = page.Plain(ours.codebook.detach())
    z = torch.randn(2, 4, 3, 3) / 16
    found = []
    for module in (ours, plain):
        x = z.clone().requires_grad_()
        out = module(x)
        z_q, loss = (out.z_q, out.loss) if module is ours else out
        (z_q.square().sum() + loss).backward()
        found.append((z_q.detach(), loss.detach(), x.grad, module.codebook.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("channels", [3, 4])
def test_the_peer_cuts_and_composites_what_lies_there(page, channels):
    picture = np.zeros((1, 8, 8, channels), np.uint8)
    picture[0, :, :, 0] = 255
    picture[0, :, :, 3:] = 255  # opaque: the ground does not matter
    image = page.OneByOne(picture, 4)[0]
    torch.testing.assert_close(image, torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 4, 4))


def test_the_plain_ray_caster_draws_what_ours_draws(page):
    n = 2
    poses = rotations_of(frames_of("test")[:: len(frames_of("test")) // n][:n])
    people = draw_shapes(n, 0, "test"), draw_looks(n, 0, "test")
    scene, cameras = body_scenes(poses, *people, sample_views(n, 0, "test"), 24)
    scene = scene.to(dtype=torch.float64)
    for side in (1, 2):
        seen = render(scene, cameras, supersample=side)
        torch.testing.assert_close(page.cast_plainly(scene, cameras, side), seen.rgb, rtol=0, atol=1e-9)
        assert 0.05 < seen.alpha.mean() < 0.5  # something was drawn


def test_the_retrieval_race_is_between_equal_scores(page):
    program = page.LABELLED + page.RETRIEVAL
    row = race_apart("retrieval", program, [300, 15], "pytorch-metric-learning", rounds=1)
    assert row.ours > 0 and row.floor_fraction > 0


def test_the_race_of_clusters_is_between_equal_partitions(page):
    """From one start both settle in the same clusters, so NMI agrees to rounding, whatever it is."""
    program = page.LABELLED + page.CLUSTERS
    row = race_apart("clusters", program, [300, 15], "pytorch-metric-learning", rounds=1)
    assert row.ours > 0 and row.floor_fraction > 0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("64 bodies, 64 px, 1 x 1 rays a pixel", 600),
        ("64 bodies, 64 px, 2 x 2 rays a pixel", 200),
        ("batches of emoji on a random ground, 64 px", 25_000),
    ],
)
def test_recorded_rates_are_those_that_were_wanted(name, wanted):
    """Images a second on two cores, as committed; what is recorded slower later does not pass."""
    (row,) = [row for row in load_rows() if row.name == name]
    assert row.ours >= wanted, (row.ours, wanted)
