"""What the page "parts_judge" defines, held against closed forms and answers that are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cvlib.pages import definitions
from cvlib.train import Runtime

PAGES = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(PAGES / "parts_judge.py")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# whom to ask


def test_givers_are_of_two_other_persons(page):
    person = torch.arange(40) % 8
    first, third = page.givers(person, gen())
    assert (person[first] != person).all() and (person[third] != person).all()
    assert (person[third] != person[first]).all() and len(first.unique()) > 15


def test_spaced_rows_hold_both_looks_of_a_pose(page):
    rows = page.spaced(640, 320)
    assert len(rows) == 320 and rows.max() < 640 and torch.equal(rows[::2] + 1, rows[1::2])
    assert torch.equal(page.spaced(48, 320), torch.arange(48))


# maps of parts


def test_part_iou_is_the_ratio_of_summed_intersections_and_unions(page):
    a, b = (torch.randint(0, 4, (3, 7, 5), generator=gen(s)) for s in (0, 1))
    region = torch.rand(3, 7, 5, generator=gen(2)) < 0.6
    both = sum(((a == p) & (b == p) & region).sum() for p in range(4))
    either = sum((((a == p) | (b == p)) & region).sum() for p in range(4))
    assert page.part_iou(a, b, region) == pytest.approx(float(both / either))


def test_thresholding_colour_is_exactly_equivariant_under_whole_pixels(page):
    x = torch.rand(3, 3, 32, 32, generator=gen()) * 2 - 1
    body = torch.zeros(3, 32, 32, dtype=torch.long)
    body[:, 8:24, 8:24] = 1
    shift = torch.tensor([[1.0, 0.0, 2 * 5 / 32], [0.0, 1.0, -2 * 3 / 32]]).expand(3, -1, -1)

    def threshold(z):
        return (z[:, 0] > 0).long() + 2 * (z[:, 1] > 0.3).long()

    assert page.equivariance(threshold, x, body, shift) == 1
    ids = threshold(x)
    fixed = page.equivariance(
        lambda z: ids, x, body, shift
    )  # by hand: place (y, x) comes from (y - 3, x + 5)
    moved = F.pad(ids, (0, 0, 3, 0))[:, :32][:, :, 5:]
    there = torch.zeros(3, 32, 32, dtype=torch.bool)
    there[:, 11:27, 3:19] = True
    assert fixed == pytest.approx(page.part_iou(F.pad(moved, (0, 5)), ids, there))


def test_what_a_warp_brings_in_from_outside_does_not_count(page):
    """Half of the warped image comes from beyond the edge; errors there alone are not blamed."""
    x = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    shift = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).expand(2, -1, -1)
    errs = iter((False, True))

    def segment(z):
        ids = (z[:, 0] > 0).long()
        return ids.index_fill(2, torch.arange(8, 16), 7) if next(errs) else ids

    assert page.equivariance(segment, x, torch.ones(2, 16, 16, dtype=torch.long), shift) == 1


def test_small_warps_are_as_small_as_said(page):
    warps = page.small_warps(500, gen())
    scale = torch.linalg.det(warps[:, :, :2]).sqrt()
    angle = torch.atan2(warps[:, 1, 0], warps[:, 0, 0]).rad2deg()
    for found, limit in ((scale - 1, page.SCALE), (angle, page.TURN), (warps[:, :, 2], 2 * page.SHIFT)):
        assert 0.95 * limit < found.abs().max() <= limit + 1e-5
    rigid = warps[:, :, :2] / scale[:, None, None]
    torch.testing.assert_close(rigid @ rigid.mT, torch.eye(2).expand(500, -1, -1))


# swaps


def flat_people(seed=0, n=6):
    """Labels (n, 12, 12), and a colour for each label of each image, whose first channel says the label."""
    labels = torch.randint(0, 6, (n, 12, 12), generator=gen(seed))
    colours = torch.rand(n, 6, 3, generator=gen(seed + 1)) * 2 - 1
    colours[..., 0] = torch.arange(6) / 5
    return labels, colours


def paint(labels, colours):
    return torch.stack([c[ids] for ids, c in zip(labels, colours, strict=True)]).movedim(-1, 1)


def test_an_exact_painter_has_no_colour_error_and_one_that_paints_no_swap_has_all_of_it(page):
    labels, colours = flat_people()
    images, donors = paint(labels, colours), page.givers(torch.arange(6), gen())

    def scores(made):
        return page.swap_scores(made, lambda x: (5 * x[:, 0]).round().long(), images, labels, donors)

    giver, third = donors
    exact = scores(paint(labels, colours[giver]))
    assert exact["colour error"] < 1e-6 and exact["IoU with shape"] == 1 > exact["IoU with giver"]
    to_third = (colours[giver] - colours[third])[:, 1:].abs().mean()  # every label shows in every image
    assert exact["colour error to a third"] == pytest.approx(float(to_third), rel=1e-5)
    kept = scores(images)
    assert kept["colour error"] == pytest.approx(
        float((colours - colours[giver])[:, 1:].abs().mean()), rel=1e-5
    )
    stolen = scores(images[giver])
    assert stolen["IoU with giver"] == 1 > stolen["IoU with shape"]


def test_labels_that_one_of_two_images_hides_have_no_colour_error(page):
    labels, colours = flat_people(n=2)
    hidden = labels.clone()
    hidden[0][hidden[0] == 3] = 0  # of the first pair, label 3 is left out
    other = colours.clone()
    other[:, 3] += 0.5
    found = page.colour_error(paint(labels, colours), labels, paint(labels, other), hidden)
    assert found == pytest.approx(0.5 / (4 + 5), rel=1e-5)  # one of nine labels differs, by a half


def test_late_mean_is_the_mean_over_the_last_steps(page):
    per_step = torch.rand(200, generator=gen()).tolist()
    ends = [30, 100, 150, 160, 200]
    rows = [
        {"step": b, "C1": sum(per_step[a:b]) / (b - a)} for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    rows.insert(2, {"step": 120, "other": 1.0})
    assert page.late_mean(rows, "C1") == pytest.approx(sum(per_step[150:]) / 50)
    halved = [{"step": 4, "C1": 1.0}, {"step": 8, "C1": 3.0}]
    assert page.late_mean(halved, "C1", share=0.75) == pytest.approx((2 * 1 + 4 * 3) / 6)


def test_softness_knows_a_blunt_map_from_a_sharp_one(page):
    """Equal logits without noise give log P and the variance of the whole image; decided ones give 0."""

    def model(height):
        logits = torch.zeros(1, 4, 8, 8)
        logits[:, 0] = height
        code = SimpleNamespace(sample=lambda: None)
        return SimpleNamespace(shape=lambda x: code, logits=lambda pi: logits, noisy=lambda z: z.softmax(1))

    images, runtime = torch.zeros(1, 3, 8, 8), Runtime("cpu", "fp32")
    blunt, sharp = (page.softness(model(height), images, runtime) for height in (0.0, 60.0))
    assert blunt["entropy of S"] == pytest.approx(torch.log(torch.tensor(4.0)).item(), rel=1e-5)
    assert sharp["entropy of S"] < 1e-6
    places = (torch.arange(8) + 0.5) / 8 * 2 - 1
    whole = 2 * float(places.square().mean())  # of a part that is everywhere
    assert blunt["variance of a part"] == pytest.approx(whole, rel=1e-3)
