from __future__ import annotations

import numpy as np
import pytest
import torch

from cvlib.assets import member
from cvlib.data import load, photos
from cvlib.data.pictures import read_picture
from cvlib.errors import BookError

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("shape", [(512, 512), (300, 451), (451, 300), (101, 99)])
@pytest.mark.parametrize("mirror", [False, True])
def test_regions_share_no_pixel_and_leave_none_out(shape, mirror):
    times = np.zeros(shape, dtype=int)
    for split in SPLITS:
        times[photos.region(*shape, split, mirror)] += 1
    assert (times == 1).all()
    train = np.zeros(shape)[photos.region(*shape, "train", mirror)].size
    assert abs(train / times.size - 0.5) < 0.01


def test_crops_come_from_their_region_alone(own_cache, monkeypatch):
    """Paint every pixel with its split; then no crop, however resized, may hold another split's colour."""

    def painted(path):
        picture = read_picture(path).copy()
        height, width = picture.shape[:2]
        mirror = order.index(path.name) % 2 == 1
        for split, grey in zip(SPLITS, (0, 100, 200), strict=True):
            picture[photos.region(height, width, split, mirror)] = grey
        return picture

    order = [name for kind in photos.KINDS.values() for name in kind]
    paths = {name: member(photos._ASSET[name], name) for name in order}  # from the cache of every day
    monkeypatch.setattr(photos, "member", lambda _, name: paths[name])
    monkeypatch.setattr(photos, "read_picture", painted)
    for split, grey in zip(SPLITS, (0, 100, 200), strict=True):
        data = load("photos", split, 32, kinds=["photo", "texture"])
        batch = next(data.batches(256, seed=0))["image"]
        assert ((batch + 1) * 127.5 - grey).abs().max() < 1e-3


def test_items_are_places_spread_over_each_photograph():
    data = load("photos", "test", 32)
    names = data.label_names["photo"]
    assert {"astronaut", "chelsea", "china", "grass"} <= set(names) and len(data) == 64 * len(names)
    assert data.label_names["kind"][data.labels["kind"][64 * names.index("grass")]] == "texture"
    items = data._items
    places = {(int(t), int(b)) for t, b in zip(items.top[:64], items.left[:64], strict=True)}
    assert len(places) > 60
    x = data.images(torch.arange(len(data)))
    assert torch.equal(x, data.images(torch.arange(len(data)))) and x.std() > 0.3


def test_photographs_are_not_enlarged_and_too_small_ones_are_left_out_of_all_splits():
    names = [load("photos", split, 200, short_side=10_000).label_names["photo"] for split in SPLITS]
    assert names[0] == names[1] == names[2] and "astronaut" in names[0] and "clock_motion" not in names[0]


def test_wrong_options_are_told():
    with pytest.raises(BookError, match="kinds"):
        load("photos", "train", 32, kinds=["paintings"])
    with pytest.raises(BookError, match=r"no photograph has three parts of 2000 px"):
        load("photos", "train", 2000)
