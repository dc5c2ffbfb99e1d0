from __future__ import annotations

import pytest
import torch

from cvlib.data import emoji, load
from cvlib.data.emoji_names import catalogue
from cvlib.errors import BookError

ONE = {"sets": ["fxemoji"]}  # the set that is drawn fastest, at the size of the smallest chapter


@pytest.fixture(scope="module")
def data() -> emoji.EmojiDataset:
    return load("emoji", "train", 32, **ONE)


def on_white(rgba):
    p = rgba.float() / 255
    return 2 * (p[:, :3] + 1 - p[:, 3:]) - 1


def test_splits_part_the_concepts_80_10_10():
    of = emoji.splits()
    concepts = {d.concept for d in catalogue(tones=True)}
    assert set(of) == concepts
    count = {split: sum(value == split for value in of.values()) for split in ("train", "validation", "test")}
    assert sum(count.values()) == len(concepts) == 2683
    assert all(
        abs(count[s] / 2683 - share) < 0.01
        for s, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1))
    )


def test_splits_share_no_concept_and_make_up_the_whole(data):
    parts = {split: load("emoji", split, 32, **ONE) for split in ("train", "validation", "test", "all")}
    names = {split: set(part.label_names["concept"]) for split, part in parts.items()}
    assert not names["train"] & names["validation"] and not names["test"] & (
        names["train"] | names["validation"]
    )
    assert sum(len(parts[split]) for split in ("train", "validation", "test")) == len(parts["all"]) == 1034


def test_labels_tell_the_drawing(data):
    at = data.label_names["concept"].index("snail") if "snail" in data.label_names["concept"] else 0
    row = int((data.labels["concept"] == at).nonzero()[0])
    concept = data.label_names["concept"][at]
    (drawing,) = [d for d in catalogue(["fxemoji"]) if d.concept == concept][:1]
    assert data.label_names["group"][data.labels["group"][row]] == drawing.group
    assert data.label_names["gender"][data.labels["gender"][row]] == drawing.gender
    assert data.label_names["set"] == ["fxemoji"] and set(data.labels) == {
        "set",
        "group",
        "concept",
        "tone",
        "gender",
    }


def test_images_are_the_drawings_on_white_clear_at_the_rim(data):
    index = torch.arange(0, len(data), 11)
    rgba, image = data.rgba(index), data.images(index)
    assert rgba.shape == (len(index), 4, 32, 32) and (rgba[:, :3] <= rgba[:, 3:]).all()
    torch.testing.assert_close(image, on_white(rgba), atol=1e-6, rtol=0)
    assert (image[:, :, 0] == image[:, :, 0].max()).all() and image[:, :, 0].min() > 1 - 1e-6
    assert (image.flatten(1).std(1) > 0.02).float().mean() > 0.97  # few drawings are white on white


def test_augmentation_without_factors_is_a_small_shift(data):
    index = torch.arange(64)
    draws = data.draw(index, torch.Generator().manual_seed(0), True)
    got, fixed = data.render(index, draws)["image"], data.images(index)
    down, right = 2 - draws.top, 2 - draws.left  # the canvas is 2 pixels larger on each side
    assert set(down.tolist()) == set(right.tolist()) == {-2, -1, 0, 1, 2} and not draws.flip.any()
    for k in range(64):
        y, x = int(down[k]), int(right[k])
        a = got[k, :, max(0, y) : 32 + min(0, y), max(0, x) : 32 + min(0, x)]
        b = fixed[k, :, max(0, -y) : 32 + min(0, -y), max(0, -x) : 32 + min(0, -x)]
        assert torch.equal(a, b)


@pytest.mark.parametrize("factors", ["background", "full"])
def test_batches_with_factors_are_the_composition_of_their_drawings(factors):
    data = load("emoji", "train", 32, factors=factors, **ONE)
    batch = next(data.batches(48, seed=0))
    known = emoji.Factors.from_tensor(batch["factors"])
    if factors == "full":
        wanted = emoji.compose(data.rgba(batch["index"]), known)
        torch.testing.assert_close(batch["image"], wanted, atol=1e-6, rtol=0)
    else:
        assert (known.scale == 1).all() and (known.tensor()[:, [3, 5, 6, 7]] == 0).all()
    clear = data.rgba(batch["index"])[:, 3, 0, 0] == 0
    corner = batch["image"][:, :, 0, 0] - known.background
    assert clear.all() and (corner.abs().amax(1) < 1e-5).float().mean() > 0.9
    assert "factors" not in next(data.batches(4, seed=0, augment=False))


def test_ranks_see_the_factors_of_one_process():
    data = load("emoji", "train", 32, factors="full", **ONE)
    whole = next(data.batches(8, seed=0))
    part = next(data.batches(8, seed=0, rank=1, world=2))
    torch.testing.assert_close(part["image"], whole["image"][1::2], atol=1e-6, rtol=0)
    assert torch.equal(part["factors"], whole["factors"][1::2])


def test_background_of_still_images_can_be_chosen():
    data = load("emoji", "train", 32, background=(-1.0, 0.0, 1.0), **ONE)
    assert torch.allclose(data.images([0])[0, :, 0, 0], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6)


def test_min_sets_keeps_common_concepts():
    data = load("emoji", "train", 32, sets=["fxemoji", "emojione-v1"], min_sets=2)
    both = {c: set() for c in data.label_names["concept"]}
    for c, s in zip(data.labels["concept"].tolist(), data.labels["set"].tolist(), strict=True):
        both[data.label_names["concept"][c]].add(s)
    assert both and all(len(sets) == 2 for sets in both.values())


def test_hash_names_content_and_options(data):
    again = load("emoji", "train", 32, **ONE)
    others = [
        load("emoji", "train", 32, **ONE, **o)
        for o in ({"factors": "full"}, {"flip": True}, {"background": (0, 0, 0)})
    ]
    assert again.hash == data.hash and len({data.hash, *(o.hash for o in others)}) == 4
    assert data.hash != load("emoji", "test", 32, **ONE).hash


@pytest.mark.parametrize(
    ("split", "size", "options", "word"),
    [
        ("train", 32, {"factors": "all"}, "factors 'all'"),
        ("train", 32, {"sets": ["apple"]}, "emoji sets"),
        ("train", 32, {"sets": ["fxemoji"], "min_sets": 2}, "min_sets=2"),
        ("training", 32, {}, "split 'training'"),
        ("train", 0, {}, "image_size 0"),
        ("train", 32.0, {}, "image_size 32.0"),
        ("train", 32, {"factor": "full"}, "option factor of emoji; wanted some of background, factors"),
    ],
)
def test_wrong_options_are_told(split, size, options, word):
    with pytest.raises(BookError, match=word):
        load("emoji", split, size, **options)


def test_unknown_data_set_is_told():
    with pytest.raises(BookError, match="data 'svhn'; wanted one of emoji"):
        load("svhn", "train", 32)
