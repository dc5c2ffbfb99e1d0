from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from cvlib.data.base import Batches, Dataset, Items, mirrored, to_float
from cvlib.errors import BookError


def small(n=10, side=8, size=8, **options) -> tuple[Dataset, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    items = Items.uniform(n, 3, side, (side - size) // 2)
    labels = {"class": torch.arange(n) % 3}
    data = Dataset("small", "train", size, images.reshape(-1), items, content="x", labels=labels, **options)
    return data, images


def test_to_float_hits_the_ends_and_is_linear():
    x = to_float(torch.arange(256, dtype=torch.uint8))
    assert x[0] == -1 and 1 - 3e-7 <= x[255] <= 1
    torch.testing.assert_close(x, torch.arange(256) / 127.5 - 1, atol=1e-6, rtol=0)


def test_mirrored_mirrors_exactly_the_marked_images():
    x = torch.randint(0, 256, (5, 3, 4, 7), dtype=torch.uint8)
    flip = torch.tensor([True, False, True, False, False])
    wanted = torch.stack([one.flip(-1) if f else one for one, f in zip(x, flip, strict=True)])
    assert torch.equal(mirrored(x, flip), wanted)


def test_images_are_the_stored_bytes():
    data, images = small(n=70)  # more than one piece
    index = torch.tensor([69, 0, 33, 33])
    wanted = torch.from_numpy(images[index.numpy()]) / 127.5 - 1
    torch.testing.assert_close(data.images(index), wanted, atol=1e-6, rtol=0)


def test_fixed_crop_is_the_centre():
    data, images = small(side=12, size=8)
    wanted = torch.from_numpy(images[[4], :, 2:10, 2:10]) / 127.5 - 1
    torch.testing.assert_close(data.images([4]), wanted, atol=1e-6, rtol=0)


def test_random_crops_are_cut_out_of_the_image_mirrored_half_the_time_and_reach_every_corner():
    data, images = small(n=1, side=11, size=8, flip=True)
    draws = data.draw(torch.zeros(800, dtype=torch.long), torch.Generator().manual_seed(0), True)
    got = data.render(torch.zeros(800, dtype=torch.long), draws)["image"]
    places = Counter(zip(draws.top.tolist(), draws.left.tolist(), draws.flip.tolist(), strict=True))
    assert set(places) == {(y, x, f) for y in range(4) for x in range(4) for f in (True, False)}
    assert max(places.values()) < 60  # uniform: 25 expected in each of 32
    for k in range(0, 800, 7):
        y, x = int(draws.top[k]), int(draws.left[k])
        crop = torch.from_numpy(images[0, :, y : y + 8, x : x + 8].copy())
        crop = crop.flip(-1) if draws.flip[k] else crop
        torch.testing.assert_close(got[k], crop / 127.5 - 1, atol=1e-6, rtol=0)


def test_images_of_different_sizes_lie_behind_one_another():
    rng = np.random.default_rng(1)
    stored = [rng.integers(0, 256, (3, h, w), dtype=np.uint8) for h, w in ((8, 13), (9, 8), (8, 8))]
    base = np.cumsum([0, *(one.size for one in stored)])[:-1]
    height, width = (np.array([one.shape[d] for one in stored]) for d in (1, 2))
    items = Items(base, height, width, height - 8, width - 8)
    flat = np.concatenate([one.reshape(-1) for one in stored])
    data = Dataset("mixed", "train", 8, flat, items, content=0)
    wanted = np.stack([one[:, -8:, -8:] for one in stored])
    torch.testing.assert_close(
        data.images([0, 1, 2]), torch.from_numpy(wanted) / 127.5 - 1, atol=1e-6, rtol=0
    )


def test_augmentation_wants_a_generator_and_an_index_must_exist():
    data, _ = small()
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        data.images([0], augment=True)
    with pytest.raises(IndexError):
        data.images([10])


def test_a_batch_depends_on_seed_and_number_alone():
    data, _ = small(side=12, flip=True)
    one, other = data.batches(4, seed=3), data.batches(4, seed=3, start=5)
    for _ in range(5):
        next(one)
    a, b = next(one), next(other)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["image"], next(data.batches(4, seed=4, start=5))["image"])


def test_every_batch_draws_its_own_augmentation():
    data, _ = small(n=1, side=40, size=8)
    images = [next(data.batches(1, seed=3, start=t))["image"] for t in range(6)]
    assert not any(torch.equal(images[0], other) for other in images[1:])


def test_state_goes_over_to_another_iterator():
    data, _ = small(side=12)
    one, other = data.batches(4, seed=3), data.batches(4, seed=3)
    for _ in range(7):
        next(one)
    other.load_state_dict(one.state_dict())
    assert one.state_dict() == {"position": 7, "seed": 3}
    assert torch.equal(next(one)["image"], next(other)["image"])
    with pytest.raises(BookError, match="seed 3"):
        data.batches(4, seed=0).load_state_dict(one.state_dict())


@pytest.mark.parametrize("batch_size", [3, 10, 23])
def test_every_epoch_holds_every_image_once(batch_size):
    data, _ = small()
    batches = data.batches(batch_size, seed=0)
    seen = torch.cat([next(batches)["index"] for _ in range(30)])
    epochs = [seen[k : k + 10] for k in range(0, len(seen) - 9, 10)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert any(not torch.equal(epochs[0], epoch) for epoch in epochs[1:])


def test_labels_follow_their_images():
    data, images = small()
    batch = next(data.batches(7, seed=0, augment=False))
    assert torch.equal(batch["class"], batch["index"] % 3)
    wanted = torch.from_numpy(images[batch["index"].numpy()]) / 127.5 - 1
    torch.testing.assert_close(batch["image"], wanted, atol=1e-6, rtol=0)


def test_ranks_together_see_the_batch_of_one_process():
    data, _ = small(side=12, flip=True)
    whole = next(data.batches(6, seed=1, start=2))
    parts = [next(data.batches(6, seed=1, start=2, rank=rank, world=3)) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert all(torch.equal(part[key], whole[key][rank::3]) for key in whole)


@pytest.mark.parametrize(("batch_size", "rank", "world"), [(0, 0, 1), (5, 0, 2), (4, 2, 2)])
def test_impossible_shares_are_refused(batch_size, rank, world):
    with pytest.raises(BookError, match="multiple of the number of processes"):
        Batches(small()[0], batch_size, 0, rank=rank, world=world)


def test_hash_tells_content_and_options_apart():
    base = small()[0].hash
    assert base == small()[0].hash == "38258760cff89cbb"  # the same on every machine
    assert base != small(flip=True)[0].hash != small(side=12)[0].hash


def test_subset_shows_the_chosen_images_under_their_labels_and_has_its_own_hash():
    data, images = small(n=12)
    rows = torch.tensor([7, 2, 11])
    part = data.subset(rows)
    assert len(part) == 3 and len(data) == 12
    wanted = torch.from_numpy(images[[11, 7]]) / 127.5 - 1
    torch.testing.assert_close(part.images([2, 0]), wanted, atol=1e-6, rtol=0)
    assert part.labels["class"].tolist() == (rows % 3).tolist()
    hashes = {data.hash, part.hash, data.subset(rows[:2]).hash, data.subset(rows.flip(0)).hash}
    assert len(hashes) == 4 and data.subset(rows).hash == part.hash
    drawn = next(part.batches(3, seed=0))["index"]
    assert sorted(drawn.tolist()) == [0, 1, 2]
    with pytest.raises(BookError, match="without images"):
        data.subset(torch.empty(0, dtype=torch.long))
    with pytest.raises(IndexError):
        data.subset(torch.tensor([12]))
