from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cvlib.data import emoji, views
from cvlib.data.base import Dataset, Items, derived_generator
from cvlib.data.views import ClassSubset, PictureViews, StageViews
from cvlib.errors import BookError
from cvlib.nn.backbones import Backbone, BatchNorm, SmallCNN

N = 20
EVERY = torch.arange(N)


class Tiny(Backbone):
    """Three stages, statistics away from 0 and 1, so that training mode would give something else."""

    name, width, image_size, resize_to = "tiny", 8, 16, 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        widths, generator = (3, 4, 6, 8), torch.Generator().manual_seed(seed)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), BatchNorm(b), nn.ReLU()) for a, b in pairwise(widths)
        )
        for tensor in self.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.ndim == 4))

    @property
    def stages(self):
        return list(self.parts)


@pytest.fixture
def make():
    """A data set of random pictures, cut and mirrored at random; other options on request."""

    def build(n: int = N, **options) -> Dataset:
        pixels = np.random.default_rng(0).integers(0, 256, n * 3 * 40 * 40, dtype=np.uint8)
        labels = {"class": torch.arange(n) % 5, "colour": torch.arange(n) % 2}
        items = Items.uniform(n, 3, 40, 12)  # 2 x 25 x 25 views: hardly two alike
        return Dataset("toy", "train", 16, pixels, items, content=n, labels=labels, flip=True, **options)

    return build


@pytest.fixture
def toy(make) -> Dataset:
    return make()


@pytest.fixture(scope="module")
def drawings() -> emoji.EmojiDataset:
    """Loaded before a test gets a cache of its own, in which nothing is drawn."""
    return emoji.load("validation", 32, sets=["fxemoji"], factors="full")


@pytest.fixture(autouse=True)
def _pieces(monkeypatch):
    monkeypatch.setattr(views, "_ROWS", 8)  # the last piece is smaller


def pictures(data: Dataset, view: int, is_random: bool) -> torch.Tensor:
    """The pictures of a view, straight from the data set: drawn for all in order, from (0, "view", v)."""
    every = torch.arange(len(data))
    if view == 0 and not is_random:
        return data.images(every)
    return data.images(every, generator=derived_generator(0, "view", view), augment=True)


@torch.no_grad()
def truth(data: Dataset, net: Backbone, stage: int, view: int, is_random: bool) -> torch.Tensor:
    """What the stages make of them in float64, one picture at a time."""
    net = net.double().eval()
    found = [net.run(one[None].double(), stop=stage) for one in pictures(data, view, is_random)]
    return torch.cat(found)


def near(found, wanted) -> torch.Tensor:
    """For each row, whether it is the wanted one: off by less than 2 % of the wanted map's own norm.

    bfloat16 rounds to 2^-9 = 0.2 %, at every input, weight and output of the few convolutions; another
    view of the same picture is off by tens of per cent.
    """
    error = (found.double() - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert ((error < 0.02) | (error > 0.05)).all()
    return error < 0.02


def which(found, all_views) -> list[int]:
    """For each row the one view among (n_views, N, ...) that it is."""
    hits = torch.stack([near(found, wanted) for wanted in all_views], 1)
    assert (hits.sum(1) == 1).all()
    return hits.int().argmax(1).tolist()


# ---- StageViews


@pytest.mark.parametrize("is_random", [False, True])
def test_views_are_the_network_on_the_drawn_pictures(toy, own_cache, is_random):
    cached = StageViews(toy, Tiny(), 2, 3, is_random_at_test=is_random)
    wanted = torch.stack([truth(toy, Tiny(), 2, v, is_random) for v in range(3)])
    assert near(cached.fixed(EVERY), wanted[0]).all()
    seen, generator = set(), torch.Generator().manual_seed(0)
    for _ in range(30):
        (found,) = cached.take(EVERY, generator)
        assert found.dtype == torch.float32 and found.shape == (N, 6, 4, 4)
        seen |= set(enumerate(which(found, wanted)))
    assert len(seen) == 3 * N  # all views of all items; one is missed with a chance of 3 N (2/3)^30 < 4e-4
    assert len(cached) == N and cached.stage == 2 and torch.equal(cached.labels, toy.labels["class"])


def test_views_of_drawings_have_their_factors(drawings, own_cache):
    torch.manual_seed(0)
    net, some = SmallCNN(), torch.arange(0, len(drawings), 9)
    cached = StageViews(drawings, net, 1, 2, "concept", is_random_at_test=True)
    with torch.no_grad():
        wanted = [net.run(pictures(drawings, v, True)[some], stop=1).double() for v in (0, 1)]
    assert near(cached.fixed(some), wanted[0]).all()
    (found,) = cached.take(some, torch.Generator().manual_seed(0))
    assert {*which(found, wanted)} == {0, 1}


def test_taking_is_repeatable_and_independent(toy, own_cache):
    """Two views of 20 items, 60 times: each of 9 pairs 133 times, with a deviation of 10.9."""
    cached = StageViews(toy, Tiny(), 2, 3)
    wanted = torch.stack([truth(toy, Tiny(), 2, v, False) for v in range(3)])
    a, b = (cached.take(EVERY, torch.Generator().manual_seed(7), 2) for _ in range(2))
    assert all(map(torch.equal, a, b))
    pairs, generator = Counter(), torch.Generator().manual_seed(0)
    for _ in range(60):
        left, right = (which(part, wanted) for part in cached.take(EVERY, generator, 2))
        pairs.update(zip(left, right, strict=True))
    assert len(pairs) == 9 and all(abs(n - 1200 / 9) < 4.5 * 10.9 for n in pairs.values())


def test_any_rows_can_be_asked(toy, own_cache):
    cached = StageViews(toy, Tiny(), 1, 2)
    index = torch.tensor([19, 3, 3, 0])
    assert torch.equal(cached.fixed(index), cached.fixed(EVERY)[index])
    assert len(cached.fixed(index[:0])) == 0
    before = cached.fixed(index)
    before.zero_()  # what is given belongs to the asker, not to the cache
    assert cached.fixed(index).any()


# ---- the cache


def refuse(*_):
    raise AssertionError("computed again without need")


def test_views_are_found_again_and_the_network_is_left_alike(toy, own_cache, monkeypatch):
    nets = [Tiny().train(), Tiny().train()]
    first = StageViews(toy, nets[0], 2, 2)
    monkeypatch.setattr(views, "_write", refuse)
    again = StageViews(toy, nets[1], 2, 2)
    assert again.hash == first.hash and torch.equal(again.fixed(EVERY), first.fixed(EVERY))
    for net in nets:
        assert not any(module.training for module in net.modules())
        assert net.parts[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(AssertionError, match="computed again"):
        StageViews(toy, Tiny(1), 2, 2)


def test_what_the_views_depend_on_gives_another_hash(make, toy, own_cache):
    def found(data=toy, net=None, stage=2, n=1, **options):
        return StageViews(data, net or Tiny(), stage, n, **options).hash

    statistics, later, renamed = Tiny(), Tiny(), Tiny()
    statistics.parts[1][1].running_mean[0] += 1e-3
    later.parts[2][0].weight.data += 1  # the third stage is not among the first two
    renamed.name = "other"
    changed = [
        found(data=make(19)),
        found(data=make(random_crop=False)),
        found(net=Tiny(1)),
        found(net=statistics),
        found(net=renamed),
        found(net=Tiny().bfloat16()),
        found(stage=1),
        found(stage=3),
        found(n=2),
        found(is_random_at_test=True),
    ]
    assert len({found(), *changed}) == 1 + len(changed)
    assert found(net=later) == found(label="colour") == found()
    assert len([*(own_cache / "views").iterdir()]) == 1 + len(changed)


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_views_are_computed_again(toy, own_cache, capsys, damage):
    wanted = StageViews(toy, Tiny(), 2, 2).fixed(EVERY).clone()
    (file,) = own_cache.glob("views/*/pixels.u8")
    data = bytearray(file.read_bytes())
    assert len(data) == 2 * N * 4 * 4 * 6 * 2  # views, pictures, h, w, channels, bytes
    data[5] ^= 0x40
    file.unlink()
    file.write_bytes(data if damage == "flip" else data[:-1])
    assert torch.equal(StageViews(toy, Tiny(), 2, 2).fixed(EVERY), wanted)
    assert "damaged" in capsys.readouterr().err


def test_a_long_computation_tells_how_far_it_is(toy, own_cache, monkeypatch, capsys):
    ticks = iter(range(0, 10_000, 9))  # every second piece comes more than 15 s after the last word
    monkeypatch.setattr(views, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    StageViews(toy, Tiny(), 2, 2)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "views of toy/train: 16 of 40" and 2 <= len(told) <= 3


# ---- PictureViews


def test_pictures_are_augmented_as_their_data_does(toy):
    source, index = PictureViews(toy), torch.tensor([4, 0, 19, 4])
    a, b = source.take(index, torch.Generator().manual_seed(3), 2)
    generator = torch.Generator().manual_seed(3)
    for found in (a, b):
        assert torch.equal(found, toy.images(index, generator=generator, augment=True))
    assert not torch.equal(a, b) and not torch.equal(a[0], a[3])
    assert torch.equal(source.fixed(index), toy.images(index))
    assert len(source) == N and source.stage == 0 and source.hash == toy.hash
    assert torch.equal(PictureViews(toy, "colour").labels, EVERY % 2)


@pytest.mark.parametrize("kind", ["toy", "drawings"])
def test_a_random_test_picture_is_drawn_once(request, kind):
    data = request.getfixturevalue(kind)
    source = PictureViews(data, next(iter(data.labels)), is_random_at_test=True)
    index = torch.tensor([7, 2, 2, 0])
    wanted = pictures(data, 0, True)[index]
    for _ in range(2):
        torch.testing.assert_close(source.fixed(index), wanted, atol=1e-6, rtol=0)
    assert not torch.equal(wanted, data.images(index)) and source.hash != data.hash


def test_stages_look_at_the_same_test_pictures(toy, own_cache):
    """What the cache holds for evaluation is what the network makes of the pictures themselves."""
    for is_random in (False, True):
        source = PictureViews(toy, is_random_at_test=is_random)
        cached = StageViews(toy, Tiny(), 2, 1, is_random_at_test=is_random)
        with torch.no_grad():
            wanted = Tiny().double().eval().run(source.fixed(EVERY).double(), stop=2)
        assert near(cached.fixed(EVERY), wanted).all()


# ---- errors


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"n_views": 0}, "0 views; wanted at least 1"),
        ({"stage": 0}, "stage 0 of tiny; wanted 1 to 3"),
        ({"stage": 4}, "stage 4 of tiny; wanted 1 to 3"),
        ({"stage": -1}, "stage -1 of tiny"),
        ({"label": "concept"}, "no label 'concept' in toy; wanted one of class, colour"),
    ],
)
def test_wrong_options_are_told(toy, own_cache, options, word):
    with pytest.raises(BookError, match=word):
        StageViews(toy, Tiny(), **{"stage": 2, "n_views": 1, **options})
    assert not (own_cache / "views").exists()


def test_unusable_data_is_told(make, toy, own_cache):
    with pytest.raises(BookError, match="toy/train without a picture"):
        StageViews(make(0), Tiny(), 1, 1)
    toy.labels = {}
    with pytest.raises(BookError, match="no label 'class' in toy; wanted a data set with labels"):
        PictureViews(toy)


def test_values_beyond_half_precision_are_told(toy, own_cache):
    net = Tiny()
    net.parts[1][1].weight.data.fill_(1e6)
    with pytest.raises(BookError, match=r"after stage 2 of tiny; wanted at most 65504"):
        StageViews(toy, net, 2, 1)
    assert not [*(own_cache / "views").glob("*")]  # nothing half-made stays


def test_a_subset_has_whole_classes_numbered_anew(toy, own_cache):
    whole = StageViews(toy, Tiny(), 2, 2)
    few = ClassSubset(whole, 3, seed=1)
    old = whole.labels[few.rows]
    kept = old.unique()
    assert len(kept) == 3 and len(few) == len(few.labels) == 3 * N // 5  # all items of each
    assert few.labels.unique().tolist() == [0, 1, 2] and (kept[few.labels] == old).all()
    index = torch.tensor([4, 0, 4])
    assert torch.equal(few.fixed(index), whole.fixed(few.rows[index]))
    ours = few.take(index, derived_generator(0, "t"), 2)
    theirs = whole.take(few.rows[index], derived_generator(0, "t"), 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert few.stage == 2 and torch.equal(ClassSubset(whole, 3, seed=1).rows, few.rows)


def test_subsets_differ_by_seed_and_are_told_apart():
    whole = SimpleNamespace(labels=torch.arange(200) % 50, stage=0, hash="x")
    subsets = [ClassSubset(whole, 10, seed) for seed in range(5)]
    assert len({tuple(s.rows.tolist()) for s in subsets}) == len({s.hash for s in subsets}) == 5
    everything = ClassSubset(whole, 50)
    assert everything.rows.tolist() == list(range(200)) and torch.equal(everything.labels, whole.labels)


@pytest.mark.parametrize("n", [1, 51])
def test_a_subset_of_too_few_or_too_many_classes_is_told(n):
    whole = SimpleNamespace(labels=torch.arange(100) % 50, stage=0, hash="x")
    with pytest.raises(BookError, match=f"{n} classes.*2 to 50"):
        ClassSubset(whole, n)
