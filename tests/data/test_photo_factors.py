from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cvlib.data import load, photo_factors
from cvlib.data.base import derived_generator
from cvlib.data.factors import hue_matrix, yiq
from cvlib.data.outputs import Outputs
from cvlib.data.photo_factors import FACTORS, RANGES, apply_factors, colour_matrix, neutral, sample
from cvlib.errors import BookError

SIZE, CANVAS = 16, 24
LUMA = torch.tensor([0.299, 0.587, 0.114])


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def changed(n=4, **values):
    table = neutral(n)
    for name, value in values.items():
        table[:, FACTORS.index(name)] = value
    return table


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def middle(canvas):
    return canvas[:, :, 4:20, 4:20]


@pytest.fixture
def canvas():
    """Four noisy canvases whose colours keep clear of the ends of their range."""
    return 0.5 * torch.rand(4, 3, CANVAS, CANVAS, generator=gen()) - 0.25


@pytest.fixture(scope="module")
def data():
    return photo_factors.load("test", SIZE)


# what the factors do


def test_neutral_factors_give_the_crop_itself(canvas):
    assert torch.equal(apply_factors(canvas, neutral(4), SIZE), middle(canvas))
    nearly = changed(zoom=1 + 1e-7)  # through the interpolation
    close(apply_factors(canvas, nearly, SIZE), middle(canvas))


def test_a_whole_turn_of_the_hue_is_the_identity_and_a_half_turn_its_own_inverse(canvas):
    close(apply_factors(canvas, changed(hue=2 * math.pi), SIZE), middle(canvas))
    half = changed(hue=math.pi)
    once = apply_factors(canvas, half, SIZE)
    assert (once - middle(canvas)).abs().max() > 0.1
    close(torch.einsum("bij,bjhw->bihw", colour_matrix(half[:, 0], half[:, 1]), once), middle(canvas))


def test_turns_of_the_hue_are_those_of_the_emoji():
    angle = torch.linspace(-3, 3, 7)
    close(colour_matrix(angle, torch.ones(7)), hue_matrix(angle))


def test_grey_stays_grey_and_only_brightness_moves_it():
    grey = (torch.rand(4, 1, CANVAS, CANVAS, generator=gen()) - 0.5).expand(4, 3, -1, -1)
    factors = changed(hue=2.0, saturation=1.4, brightness=0.3)
    close(apply_factors(grey, factors, SIZE), middle(grey) + 0.3)


def test_without_saturation_the_luma_is_left(canvas):
    luma = torch.einsum("j,bjhw->bhw", LUMA, middle(canvas))[:, None].expand(-1, 3, -1, -1)
    close(apply_factors(canvas, changed(saturation=0.0, hue=1.0), SIZE), luma)


@pytest.mark.parametrize("saturation", [0.5, 1.4])
def test_colour_differences_turn_and_stretch_while_luma_stays(canvas, saturation):
    angle = 0.7
    before = yiq(middle(canvas))
    after = yiq(apply_factors(canvas, changed(hue=angle, saturation=saturation), SIZE))
    close(after[:, 0], before[:, 0])
    old, new = (torch.complex(part[:, 1], part[:, 2]) for part in (before, after))
    close(torch.view_as_real(new), torch.view_as_real(old * saturation * complex(*unit(angle))))


def unit(angle):
    return math.cos(angle), math.sin(angle)


def test_brightness_is_added_and_cut_off_at_the_ends(canvas):
    close(apply_factors(canvas, changed(brightness=0.4), SIZE), middle(canvas) + 0.4)
    assert (apply_factors(canvas, changed(brightness=3.0), SIZE) == 1).all()


@pytest.mark.parametrize("zoom", [1.0, 1.3])
def test_a_mirror_is_a_flip_and_twice_the_identity(canvas, zoom):
    plain = apply_factors(canvas, changed(zoom=zoom, rotation=zoom - 1), SIZE)
    mirrored = apply_factors(canvas, changed(zoom=zoom, rotation=zoom - 1, mirror=1.0), SIZE)
    close(mirrored, plain.flip(-1))
    close(mirrored.flip(-1), plain)
    assert (mirrored - plain).abs().max() > 0.05


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_rot90(canvas, quarters):
    got = apply_factors(canvas, changed(rotation=quarters * math.pi / 2), SIZE)
    close(got, middle(canvas).rot90(quarters, (2, 3)))


def test_zoom_two_is_bilinear_enlargement_about_the_centre(canvas):
    twice = F.interpolate(canvas, scale_factor=2, mode="bilinear", align_corners=False)
    close(apply_factors(canvas, changed(zoom=2.0), SIZE), twice[:, :, 16:32, 16:32])


def test_a_picture_is_first_turned_then_mirrored(canvas):
    both = apply_factors(canvas, changed(rotation=math.pi / 2, mirror=1.0), SIZE)
    close(both, middle(canvas).rot90(1, (2, 3)).flip(-1))


def test_every_picture_gets_its_own_factors(canvas):
    factors = sample(4, gen(1))
    alone = [apply_factors(canvas[k : k + 1], factors[k : k + 1], SIZE) for k in range(4)]
    close(apply_factors(canvas, factors, SIZE), torch.cat(alone))


def test_no_look_leaves_the_canvas():
    """A canvas grey but for its rim: the rim may never be seen, however wide and turned the look."""
    canvas = torch.zeros(1, 3, 96, 96)
    canvas[:, :, 0] = canvas[:, :, -1] = canvas[:, :, :, 0] = canvas[:, :, :, -1] = 1
    for end in RANGES["rotation"]:
        widest = changed(1, zoom=RANGES["zoom"][0], rotation=end)
        assert (apply_factors(canvas, widest, 64) == 0).all()
    assert (apply_factors(canvas, changed(1, zoom=0.6), 64) > 0).any()  # and the test can tell


@pytest.mark.parametrize(("side", "columns", "size"), [(24, 5, 16), (23, 6, 16), (12, 6, 16)])
def test_other_shapes_are_refused(side, columns, size):
    with pytest.raises(ValueError, match="even"):
        apply_factors(torch.zeros(2, 3, side, side), torch.zeros(2, columns), size)


# how they are drawn


def test_draws_fill_their_ranges_independently():
    table = sample(4000, gen())
    assert torch.equal(table, sample(4000, gen()))
    low, high = torch.tensor(list(RANGES.values())).T
    assert (table >= low - 1e-6).all() and (table <= high + 1e-6).all()
    assert ((table.amax(0) - table.amin(0)) > 0.99 * (high - low)).all()
    assert table[:, 5].unique().tolist() == [0, 1]
    middle = torch.cat([(low + high)[:3] / 2, (low * high).sqrt()[3:4], torch.zeros(1), torch.tensor([0.5])])
    close(table.quantile(0.5, dim=0)[:5], middle[:5], atol=0.15)  # the hue's has a deviation of 0.05
    assert (torch.corrcoef(table.T) - torch.eye(6)).abs().max() < 4 / math.sqrt(4000)


# the data set


def test_without_augmentation_the_crops_of_the_photographs_come(data):
    source = load("photos", "test", 24, short_side=5 * SIZE)
    rows = torch.tensor([0, 70, len(data) - 1])
    assert torch.equal(data.images(rows), middle(source.images(rows)))
    assert data.render(rows, data.draw(rows, None, False))["factors"].tolist() == neutral(3).tolist()


def test_a_batch_is_its_canvas_with_its_factors(data):
    batch = next(data.batches(8, seed=3))
    draws = data.draw(batch["index"], derived_generator(3, "batch", 0), True)
    assert torch.equal(batch["factors"], draws.factors)
    canvas = data.source.render(batch["index"], draws)["image"]
    assert torch.equal(batch["image"], apply_factors(canvas, batch["factors"], SIZE))
    assert batch["photo"].tolist() == data.labels["photo"][batch["index"]].tolist()
    again = next(data.batches(8, seed=3))
    assert torch.equal(batch["image"], again["image"]) and torch.equal(batch["factors"], again["factors"])
    assert not torch.equal(batch["factors"], next(data.batches(8, seed=4))["factors"])


def test_splits_are_the_photographs_own(data):
    train = photo_factors.load("train", SIZE)
    assert train.hash != data.hash and train.label_names == data.label_names
    assert train.source.hash == load("photos", "train", 24, short_side=80, flip=False).hash


def test_a_subset_keeps_its_rows(data):
    rows = torch.tensor([5, 200, 64])
    part = data.subset(rows)
    assert torch.equal(part.images(torch.arange(3)), data.images(rows)) and len(part) == 3
    assert part.labels["photo"].tolist() == data.labels["photo"][rows].tolist() and part.hash != data.hash
    assert len(data) != 3  # the whole is left alone


def test_outputs_keep_views_and_factors(data, tmp_path, monkeypatch):
    monkeypatch.setattr("cvlib.data.outputs.cache_root", lambda: tmp_path)
    part = data.subset(torch.arange(0, len(data), 50))
    found = Outputs(part, ["mean"], lambda x: {"mean": x.mean((2, 3))}, {}, 2)
    everything = part.draw(torch.arange(len(part)), derived_generator(0, "view", 1), augment=True)
    rows = len(part) + torch.arange(3)
    torch.testing.assert_close(found.column("factors", rows), everything.factors[:3], rtol=1e-3, atol=1e-3)
    close(found.column("mean", rows), found.pictures(rows).mean((2, 3)), atol=1e-3)
    assert torch.equal(found.labels["photo"][rows], part.labels["photo"][:3])


def test_wrong_options_are_told():
    with pytest.raises(BookError, match="image_size 30; wanted a multiple of 4"):
        photo_factors.load("train", 30)
    with pytest.raises(BookError, match="split"):
        photo_factors.load("all", 32)
    with pytest.raises(BookError, match="data 'emoji'; wanted one of photos, imagenet"):
        photo_factors.load("train", 32, data="emoji")
    with pytest.raises(BookError, match=r"no folder for animal_faces; .*pass data_root"):
        photo_factors.load("train", 32, data="animal_faces")


def test_options_are_those_of_the_data_set():
    part = photo_factors.load("test", SIZE, kinds=["texture"], short_side=120)
    source = load("photos", "test", 24, kinds=["texture"], short_side=120, flip=False)
    assert part.source.hash == source.hash and part.label_names["photo"] == ["brick", "grass", "gravel"]
