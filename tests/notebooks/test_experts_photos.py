"""What the page "experts_photos" defines, held against closed forms and brute force."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cvlib.data.factors import yiq
from cvlib.data.photo_factors import FACTORS, apply_factors
from cvlib.pages import definitions
from tests.tiny_study import close, gen

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SIDE = 64


@pytest.fixture(scope="module")
def page():
    return definitions(NOTEBOOKS / "experts_photos.py")


@pytest.fixture
def images():
    """Smooth random pictures that keep clear of black and white."""
    coarse = torch.rand(6, 3, 8, 8, generator=gen()) - 0.5
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(-0.6, 0.6) / 2


def waves(angle, period=8.0):
    """Luma (1, S, S) of waves that run in the direction ``angle``, counter-clockwise from the right."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.sin(2 * math.pi / period * (math.cos(angle) * x - math.sin(angle) * y))[None]


# the statistics


def test_energies_of_waves_are_their_closed_form(page):
    """The mean square of sin(k(x + 1)) - sin(kx) is 2 sin(k / 2)^2; across whole periods this is exact."""
    period = 8.0
    luma = waves(0.0, period)[:, :, :]
    k = 2 * math.pi / period
    found = page.energies(luma)[0, 0].exp() - page.FLOOR
    tile = torch.cat([luma, luma[:, :, :1]], 2)  # one column more: 64 differences, eight periods
    exact = page.energies(tile)[0, 0].exp() - page.FLOOR
    close(exact[0], torch.tensor(2 * math.sin(k / 2) ** 2), atol=1e-4)
    close(exact[2:], exact[:1].expand(2), atol=1e-4)  # along a diagonal x moves by as much
    assert found[1] < 1e-6  # nothing changes from row to row


def test_twice_as_near_moves_energies_one_scale_on(page, images):
    luma = yiq(images)[:, 0]
    near = luma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    close(page.energies(near)[:, 1:], page.energies(luma)[:, :2])


def test_a_mirror_exchanges_the_diagonals_and_a_quarter_turn_both_pairs(page, images):
    luma = yiq(images)[:, 0]
    plain = page.energies(luma)
    close(page.energies(luma.flip(-1)), plain[:, :, [0, 1, 3, 2]])
    close(page.energies(luma.rot90(1, (1, 2))), plain[:, :, [1, 0, 3, 2]])


def test_texture_does_not_care_where_things_lie(page):
    """A patch on an empty ground, moved by whole squares: the same texture, and another layout."""
    x = torch.zeros(4, 3, SIDE, SIDE)
    x[:, :, 4:28, 4:28] = torch.randn(4, 3, 24, 24, generator=gen()) * 0.2 + 0.3
    one, other = page.statistics(x), page.statistics(x.roll((16, 32), (2, 3)))
    close(one["texture"], other["texture"])
    close(one["rotation"], other["rotation"])
    close(one["layout"].unflatten(1, (4, 4)).roll((1, 2), (1, 2)).flatten(1), other["layout"])
    assert (one["layout"] - other["layout"]).abs().max() > 0.1


@pytest.mark.parametrize("angle", [0.0, 0.5, math.pi / 2, 2.5])
def test_slant_is_twice_the_direction_of_waves(page, angle):
    found = page.slant(waves(angle))[0]
    close(found, torch.tensor([math.cos(2 * angle), math.sin(2 * angle)]), atol=0.05)


@pytest.mark.parametrize(("name", "value"), [("hue", 1.3), ("saturation", 0.5), ("brightness", 0.2)])
def test_colours_move_their_statistic_alone(page, images, name, value):
    factors = page.changed(6, **{name: value})
    before, after = (page.statistics(apply_factors(images, f, SIDE)) for f in (page.changed(6), factors))
    c, s = math.cos(value), math.sin(value)
    law = {
        "hue": before["hue"] @ torch.tensor([[c, s], [-s, c]]),
        "saturation": before["saturation"] * value,
        "brightness": before["brightness"] + value,
    }[name]
    close(after[name], law)
    for other in set(before) - {name}:
        close(after[other], before[other], atol=1e-4)


def test_a_mirror_changes_the_sign_of_the_odd_part(page, images):
    before, after = page.statistics(images), page.statistics(images.flip(-1))
    close(after["mirror"], -before["mirror"])
    close(after["layout"].unflatten(1, (4, 4)), before["layout"].unflatten(1, (4, 4)).flip(-1))
    close(page.statistics((images + images.flip(-1)) / 2)["mirror"], torch.zeros(6, 8))


def test_layout_is_the_mean_of_squares(page, images):
    layout = page.statistics(images)["layout"].unflatten(1, (4, 4))
    luma = yiq(images)[:, 0]
    squares = luma.unflatten(1, (4, 16)).unflatten(3, (4, 16)).mean((2, 4))
    spread = squares[2].sub(luma[2].mean()).square().mean().sqrt()
    close(layout[2, 1, 3], (luma[2, 16:32, 48:].mean() - luma[2].mean()) / (spread + 2 / 255))


def test_texture_and_layout_do_not_know_the_contrast(page):
    """Half the contrast about grey moves one number, the level, by log 4, and nothing else."""
    coarse = torch.randn(6, 3, 4, 4, generator=gen(1)).repeat_interleave(16, 2).repeat_interleave(16, 3)
    x = torch.randn(6, 3, SIDE, SIDE, generator=gen()) + coarse
    one, other = page.statistics(x), page.statistics(x / 2)
    close(one["contrast"] - other["contrast"], torch.full((6, 1), math.log(4)), atol=0.01)  # the floor counts
    close(one["texture"], other["texture"], atol=0.01)
    close(one["layout"], other["layout"], atol=0.05)
    assert one["contrast"].shape == (6, 1) and one["texture"].mean(1).abs().max() < 1e-5


def test_a_rotation_turns_the_slant_by_twice_its_angle(page):
    canvas = torch.randn(8, 1, 12, 12, generator=gen()).expand(8, 3, 12, 12)
    canvas = F.interpolate(canvas, size=(96, 96), mode="bicubic").clamp(-3, 3) / 4
    inside = torch.hypot(*torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij"))
    canvas = canvas * (inside < 0.6) * ((0.6 - inside) * 10).clamp(0, 1)  # a disc: nothing enters or leaves
    a = 0.3
    before, after = (
        page.statistics(apply_factors(canvas, page.changed(8, rotation=r), SIDE))["rotation"]
        for r in (1e-6, a)
    )
    turn = torch.tensor([[math.cos(2 * a), math.sin(2 * a)], [-math.sin(2 * a), math.cos(2 * a)]])
    close(after, before @ turn, atol=0.02)
    assert (after - before).abs().max() > 0.1


def test_statistics_of_grey_nothing_are_finite(page):
    found = page.statistics(torch.zeros(2, 3, SIDE, SIDE))
    assert all(values.isfinite().all() for values in found.values())


def test_changed_factors_stand_in_their_columns(page):
    table = page.changed(2, zoom=1.5, mirror=1.0)
    assert dict(zip(FACTORS, table[1].tolist(), strict=True)) == {
        "hue": 0, "saturation": 1, "brightness": 0, "zoom": 1.5, "rotation": 0, "mirror": 1,
    }  # fmt: skip
