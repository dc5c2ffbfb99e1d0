from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest

from cvlib.data.class_batches import ClassBatches
from cvlib.data.pictures import items_of
from cvlib.data.resized_crops import ResizedCrops, crop_sizes
from cvlib.data.views import PictureViews

SHAPES = [(40, 60), (32, 32), (70, 32)]  # height, width


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, h, w), dtype=np.uint8) for h, w in SHAPES]


@pytest.fixture
def data(pictures):
    pixels = np.concatenate([one.ravel() for one in pictures])
    labels = {"class": torch.tensor([0, 1, 1])}
    shapes = [list(shape) for shape in SHAPES]
    return ResizedCrops("x", "train", 28, pixels, items_of(shapes, 28), content=0, labels=labels, flip=True)


def one_crop(height, width, rng):
    """The papers' draw, one image at a time: ten tries, then the largest allowed shape."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return h, w
    if width / height < 3 / 4:
        return round(width / (3 / 4)), width
    if width / height > 4 / 3:
        return height, round(height * (4 / 3))
    return height, width


@pytest.mark.parametrize("shape", [(256, 256), (256, 384), (500, 256), (256, 1400)])
def test_sizes_are_distributed_as_drawn_one_by_one(shape):
    n, rng = 4000, random.Random(0)
    ours = crop_sizes(*torch.tensor(shape)[:, None].expand(2, n), torch.Generator().manual_seed(0)).double()
    theirs = torch.tensor([one_crop(*shape, rng) for _ in range(n)], dtype=torch.float64)
    assert (ours <= torch.tensor(shape)).all() and (ours >= 1).all()
    for of in (lambda s: s.prod(1), lambda s: s[:, 1] / s[:, 0]):
        # one seed each: a false alarm has probability 0.001 once, then never
        assert ks_2samp(of(ours).numpy(), of(theirs).numpy()).pvalue > 0.001


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 1), (3, 400)])
def test_what_never_fits_gets_the_largest_allowed_shape(shape):
    sizes = crop_sizes(*torch.tensor(shape)[:, None].expand(2, 500), torch.Generator().manual_seed(0))
    limits = torch.tensor(shape)
    assert (sizes >= 1).all() and (sizes <= limits).all()
    if shape[0] != shape[1]:  # 0.08 of the area at 4 / 3 is too long: no try can succeed
        largest = {(10, 1000): (10, 13), (1000, 10): (13, 10), (3, 400): (3, 4)}[shape]
        assert (sizes == torch.tensor(largest)).all()


def test_places_are_uniform_and_half_are_mirrored(data):
    index = torch.zeros(6000, dtype=torch.long)
    draws = data.draw(index, torch.Generator().manual_seed(0), True)
    assert draws.factors is not None
    for corner, size, whole in zip((draws.top, draws.left), draws.factors.T, SHAPES[0], strict=True):
        assert (corner >= 0).all() and (corner + size <= whole).all()
        room = whole - size
        wide = (
            room >= 8
        )  # conditional on its room a corner is uniform on 0 ... room; blur it to a real number
        blur = torch.rand(int(wide.sum()), generator=torch.Generator().manual_seed(1))
        assert kstest(((corner[wide] + blur) / (room[wide] + 1)).numpy(), "uniform").pvalue > 0.001
    assert abs(draws.flip.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(6000)  # four standard deviations


def test_pixels_are_what_pillow_makes_of_the_crop(data, pictures):
    index = torch.tensor([0, 1, 2] * 20)
    draws = data.draw(index, torch.Generator().manual_seed(0), True)
    images = ((data.render(index, draws)["image"] + 1) * 127.5).round()
    for k, row in enumerate(index.tolist()):
        (top, left), (h, w) = (int(draws.top[k]), int(draws.left[k])), draws.factors[k].tolist()
        crop = pictures[row][:, top : top + h, left : left + w].transpose(1, 2, 0)
        wanted = np.asarray(Image.fromarray(crop).resize((28, 28), Image.Resampling.BILINEAR)).astype(float)
        wanted = wanted[:, ::-1] if draws.flip[k] else wanted
        assert np.abs(images[k].permute(1, 2, 0).numpy() - wanted).max() <= 1  # roundings of bytes


def test_evaluation_takes_the_centre_untouched(data, pictures):
    got = ((data.images([2]) + 1) * 127.5).round().byte()[0].numpy()
    assert np.array_equal(got, pictures[2][:, 21:49, 2:30])
    batch = next(data.batches(3, seed=1, augment=False))
    assert torch.equal(batch["image"], data.images(batch["index"]))


def test_batches_depend_on_seed_and_position_alone(data):
    batches = data.batches(6, seed=3)
    first, second = next(batches), next(batches)
    later = data.batches(6, seed=3, start=1)
    again = next(later)
    assert torch.equal(again["image"], second["image"]) and torch.equal(again["class"], second["class"])
    assert not torch.equal(first["image"], second["image"])
    assert not torch.equal(next(data.batches(6, seed=4))["image"], first["image"])
    ranks = [next(data.batches(6, seed=3, start=1, rank=rank, world=2)) for rank in range(2)]
    assert torch.equal(torch.stack([rank["image"] for rank in ranks], 1).flatten(0, 1), second["image"])


def test_two_views_of_a_picture_differ(data):
    views = PictureViews(data)
    batch = next(ClassBatches(views, 4, seed=0, n_views=2))
    assert batch["views"][0].shape == (4, 3, 28, 28)
    assert not torch.equal(*batch["views"])
    assert torch.equal(views.fixed(torch.tensor([1])), data.images([1]))
    drawn = PictureViews(data, is_random_at_test=True)
    fixed = drawn.fixed(torch.tensor([0, 2]))
    assert torch.equal(fixed, drawn.fixed(torch.tensor([0, 2])))
    assert not torch.equal(fixed, data.images([0, 2]))


def test_misuse_is_told(data):
    with pytest.raises(ValueError, match=r"wants a torch\.Generator"):
        data.images([0], augment=True)
    plain = super(ResizedCrops, data).draw(torch.tensor([0]), None, False)
    with pytest.raises(ValueError, match="draws without sizes"):
        data.render(torch.tensor([0]), plain)


def test_crops_are_bytes_of_the_asked_size(data):
    index = torch.arange(3)
    draws = data.draw(index, torch.Generator().manual_seed(0), True)
    crops = data.crops(index, draws)
    assert crops.dtype == torch.uint8 and crops.shape == (3, 3, 28, 28)
    kept = ~draws.flip
    images = ((data.render(index, draws)["image"] + 1) * 127.5).round().byte()
    assert kept.any() and torch.equal(images[kept], crops[kept])
