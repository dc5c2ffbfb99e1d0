from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from cvlib.data import emoji, emoji_naming, load
from cvlib.errors import BookError

# which sets are one hand, written down from looking at them
HAND = {"fluent-emoji": "fluent-emoji-flat", "emojione-v1": "twemoji"}


@pytest.fixture(scope="module")
def parts():
    return {split: emoji_naming.load(split, 64) for split in ("train", "validation", "test", "all")}


def drawings(data) -> set[tuple[str, str, str]]:
    """(concept, hand, set) of every drawing, by name."""
    concepts, sets = data.label_names["concept"], data.label_names["set"]
    rows = zip(data.labels["concept"].tolist(), data.labels["set"].tolist(), strict=True)
    return {(concepts[c], HAND.get(sets[s], sets[s]), sets[s]) for c, s in rows}


def test_of_each_class_one_hand_is_validation_and_another_test(parts):
    who = {split: defaultdict(set) for split in ("train", "validation", "test")}
    for split, found in who.items():
        for concept, hand, _ in drawings(parts[split]):
            found[concept].add(hand)
    assert who["train"].keys() == who["validation"].keys() == who["test"].keys()
    for concept, hands in who["train"].items():
        held = who["validation"][concept], who["test"][concept]
        assert len(held[0]) == len(held[1]) == 1
        assert len(hands) >= emoji_naming.MIN_HANDS - 2
        assert not hands & (held[0] | held[1]) and held[0] != held[1]


def test_all_is_the_three_together_and_every_class_is_of_the_training_split(parts):
    three = [drawings(parts[split]) for split in ("train", "validation", "test")]
    assert set.union(*three) == drawings(parts["all"])
    assert sum(len(parts[split]) for split in ("train", "validation", "test")) == len(parts["all"])
    assert {emoji.split_of(name) for name in parts["all"].label_names["concept"]} == {"train"}


def test_labels_are_numbered_from_nought_and_name_the_drawing(parts):
    data = parts["test"]
    names = data.label_names
    assert data.labels["concept"].unique().tolist() == list(range(len(names["concept"])))
    plain = load("emoji", "train", 64)
    at = {(c, s) for c, s in zip(plain.labels["concept"].tolist(), plain.labels["set"].tolist(), strict=True)}
    known = {(plain.label_names["concept"][c], plain.label_names["set"][s]) for c, s in at}
    assert {(concept, name) for concept, _, name in drawings(data)} <= known
    for hand, name in zip(data.labels["hand"].tolist(), data.labels["set"].tolist(), strict=True):
        assert names["hand"][hand] == HAND.get(names["set"][name], names["set"][name])


def test_held_drawings_are_marked_and_others_are_to_learn_from(parts):
    data = load("emoji", "train", 64)
    marks = emoji_naming.parts_of(data)
    assert marks.bincount().tolist()[1:] == [len(parts["validation"]), len(parts["test"])]
    few = data.subset(torch.arange(200))
    assert torch.equal(emoji_naming.parts_of(few), marks[:200])


def test_the_choice_does_not_depend_on_size_or_options(parts):
    assert drawings(emoji_naming.load("test", 32, factors="none")) == drawings(parts["test"])


def test_unknown_splits_are_refused():
    with pytest.raises(BookError, match="split 'dev'"):
        emoji_naming.load("dev", 64)
    with pytest.raises(BookError, match="the test split"):
        emoji_naming.parts_of(load("emoji", "test", 64))


def test_few_classes_are_spread_evenly_and_keep_all_their_drawings(parts):
    data = parts["train"]
    part = emoji_naming.few(data, 100)
    kept = part.labels["concept"].unique()
    assert len(kept) == 100 and kept[0] == 0 and kept[-1] == len(data.label_names["concept"]) - 1
    assert kept.diff().min() >= 8 and kept.diff().max() <= 9
    for k in kept.tolist():
        assert (part.labels["concept"] == k).sum() == (data.labels["concept"] == k).sum()
    assert part.label_names["concept"] == data.label_names["concept"]
    for count in (1, 878):
        with pytest.raises(BookError, match=f"{count} concepts; wanted 2 to 877"):
            emoji_naming.few(data, count)
