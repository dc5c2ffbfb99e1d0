from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch

from cvlib.data.factors import Factors, compose, hue_matrix, lay_on, sample_factors
from cvlib.data.render import premultiply

SIDE = 16


@pytest.fixture
def rgba() -> torch.Tensor:
    """Six premultiplied drawings, noise with soft alpha, clear at the rim."""
    straight = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 4), dtype=np.uint8)
    straight[:, :4] = straight[:, -4:] = straight[:, :, :4] = straight[:, :, -4:] = 0
    return torch.from_numpy(premultiply(straight)).permute(0, 3, 1, 2).contiguous()


def changed(n: int = 6, **values) -> Factors:
    fields = vars(Factors.neutral(n))
    return Factors(**{**fields, **{k: v.float().expand_as(fields[k]) for k, v in values.items()}})


def close(a, b, atol=2e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_background_is_exact_where_the_drawing_is_clear(rgba):
    factors = sample_factors(6, torch.Generator().manual_seed(1), scale=(1, 1), shift=0, rotation=0)
    close(compose(rgba, factors)[:, :, 0, 0], factors.background)


def test_composition_is_the_over_operator(rgba):
    background = torch.rand(6, 3) * 2 - 1
    got = compose(rgba, changed(background=background))
    for k in range(6):
        for y, x in ((5, 6), (8, 8), (0, 3)):
            p = rgba[k, :, y, x].double() / 255
            over = p[:3] + (1 - p[3]) * (background[k].double() + 1) / 2
            close(got[k, :, y, x].double(), 2 * over - 1)


def test_neutral_factors_only_lay_on_white(rgba):
    p = rgba.float() / 255
    close(compose(rgba, Factors.neutral(6)), 2 * (p[:, :3] + 1 - p[:, 3:]) - 1)


def test_channels_last_bytes_are_taken_too(rgba):
    factors = sample_factors(6, torch.Generator().manual_seed(0))
    assert torch.equal(compose(rgba, factors), compose(rgba.permute(0, 2, 3, 1), factors))


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-4, 1)])
def test_shift_by_whole_pixels_is_a_roll(rgba, right, down):
    shift = torch.tensor([right / SIDE, down / SIDE])
    got = compose(rgba, changed(shift=shift))
    close(got, compose(rgba, Factors.neutral(6)).roll((down, right), (2, 3)))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_rot90(rgba, quarters):
    got = compose(rgba, changed(rotation=torch.tensor(quarters * math.pi / 2)))
    close(got, compose(rgba, Factors.neutral(6)).rot90(quarters, (2, 3)), atol=1e-5)


def test_scale_two_is_bilinear_enlargement_about_the_centre(rgba):
    got = compose(rgba, changed(scale=torch.tensor(2.0)))
    white = compose(rgba, Factors.neutral(6))
    twice = torch.nn.functional.interpolate(white, scale_factor=2, mode="bilinear", align_corners=False)
    close(got, twice[:, :, 8:24, 8:24], atol=1e-5)


def test_turning_and_scaling_come_before_the_shift(rgba):
    shift, rotation = torch.tensor([0.25, 0.0]), torch.tensor(math.pi / 2)
    both = compose(rgba, changed(shift=shift, rotation=rotation))
    close(both, compose(rgba, changed(rotation=rotation)).roll(4, 3), atol=1e-5)


def test_every_drawing_gets_its_own_factors(rgba):
    factors = sample_factors(6, torch.Generator().manual_seed(0))
    alone = torch.cat([compose(rgba[k : k + 1], factors[k : k + 1]) for k in range(6)])
    close(compose(rgba, factors), alone)


def test_no_fringe_of_hidden_colour_appears_at_the_rim():
    """Clear green pixels beside a solid red square: unmultiplied sampling would show green."""
    straight = np.zeros((1, SIDE, SIDE, 4), np.uint8)
    straight[..., 1] = 255
    straight[:, 4:12, 4:12] = (255, 0, 0, 255)
    rgba = torch.from_numpy(premultiply(straight)).permute(0, 3, 1, 2)
    black = torch.full((1, 3), -1.0)
    image = compose(
        rgba, changed(1, background=black, rotation=torch.tensor(0.4), shift=torch.tensor([0.03, 0.01]))
    )
    assert image[:, 1].max() == -1 and ((image[:, 0] > -0.9) & (image[:, 0] < 0.9)).any()


def test_hue_zero_is_identity_and_turns_add_up():
    a, b = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.equal(hue_matrix(torch.zeros(2)), torch.eye(3).expand(2, 3, 3))
    close(hue_matrix(a) @ hue_matrix(b), hue_matrix(a + b), atol=1e-6)
    close(hue_matrix(a) @ hue_matrix(-a), torch.eye(3, dtype=torch.float64).expand(2, 3, 3), atol=1e-6)


def test_hue_keeps_grey_and_luma_and_turns_colours():
    m = hue_matrix(torch.linspace(-3, 3, 7, dtype=torch.float64))
    grey = torch.ones(3, dtype=torch.float64)
    close(m @ grey, grey.expand(7, 3), atol=1e-6)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    close(luma @ m, luma.expand(7, 3), atol=1e-6)
    turned = hue_matrix(torch.tensor([2.0])) @ torch.tensor([0.6, 0.4, 0.4])
    hue = [colorsys.rgb_to_hsv(*colour.tolist())[0] for colour in turned]
    assert abs(hue[0] - 0.0) > 0.15  # about a third of a turn away from red


def test_hue_keeps_colours_within_alpha(rgba):
    image = compose(rgba, changed(hue=torch.tensor(2.5), background=torch.tensor([-1.0, -1.0, -1.0])))
    assert image.min() >= -1 - 1e-6 and image.max() <= 1 + 1e-6
    close(compose(rgba, changed(hue=torch.tensor(0.0))), compose(rgba, Factors.neutral(6)))


def test_sampling_is_repeatable_bounded_and_switchable():
    draw = [sample_factors(500, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(draw[0].tensor(), draw[1].tensor())
    table = draw[0].tensor()
    low = torch.tensor([-1.0, -1, -1, -math.pi, 0.7, -0.1, -0.1, -math.pi / 6])
    high = torch.tensor([1.0, 1, 1, math.pi, 1.1, 0.1, 0.1, math.pi / 6])
    assert (table >= low - 1e-6).all() and (table <= high + 1e-6).all()
    assert ((table.amax(0) - table.amin(0)) > 0.95 * (high - low)).all()
    fixed = sample_factors(500, torch.Generator().manual_seed(0), hue=0)
    assert (fixed.hue == 0).all() and torch.equal(fixed.tensor()[:, 4:], table[:, 4:])
    assert torch.equal(Factors.from_tensor(table).tensor(), table) and len(Factors.NAMES) == 8


def test_lay_on_takes_one_background_for_all(rgba):
    close(lay_on(rgba, torch.ones(1, 3)), compose(rgba, Factors.neutral(6)))


@pytest.mark.parametrize("bad", [torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_other_shapes_and_types_are_refused(bad):
    with pytest.raises(ValueError, match="wanted uint8"):
        compose(bad, Factors.neutral(1))
