"""Naming emoji: which concept does a drawing show, when its hand has never been seen drawing it?

A benchmark for networks that are to be taken apart: concepts that many hands draw are the classes, and of
each class one hand is kept for validation and one for the test. All its concepts lie in the training split
of the book; what the book tests on stays unseen by whoever learns here.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cvlib.data import emoji
from cvlib.data import load as load_data
from cvlib.data.base import SPLITS, derived_generator
from cvlib.data.emoji_names import SETS, catalogue
from cvlib.data.emoji_retrieval import hands
from cvlib.errors import BookError

__all__ = ["MIN_HANDS", "few", "load", "parts_of"]

MIN_HANDS = 6  # of the seven: at least four remain to learn from


@cache
def _kept() -> dict[str, tuple[int, int]]:
    """Return concept -> (hand kept for validation, hand kept for the test) of every class."""
    drawn = defaultdict(set)
    of_set = hands(torch.arange(len(SETS))).tolist()
    for drawing in catalogue(tones=False):
        if emoji.split_of(drawing.concept) == "train":
            drawn[drawing.concept].add(of_set[SETS.index(drawing.set)])
    found = {}
    for concept, who in sorted(drawn.items()):
        if len(who) >= MIN_HANDS:
            order = torch.randperm(len(who), generator=derived_generator(0, "naming", concept)).tolist()
            validation, test = (sorted(who)[k] for k in order[:2])
            found[concept] = (validation, test)
    return found


def parts_of(data: emoji.EmojiDataset) -> Tensor:
    """Return for each drawing (N,) int64: 0 to learn from, 1 kept for validation, 2 kept for the test.

    ``data``: drawings of the book's training split, with any options. A concept that is no class of the
    benchmark is there to learn from. Raises: BookError for another split.
    """
    if data.split != "train":
        raise BookError(f"the {data.split} split", "the training split", "no other has classes to name")
    who = hands(data.labels["set"], data.label_names["set"])
    names = data.label_names["concept"]
    kept = torch.tensor([_kept().get(name, (-1, -1)) for name in names])[data.labels["concept"]]
    return (who == kept[:, 0]).long() + 2 * (who == kept[:, 1]).long()


def load(split: str, image_size: int, **options: Any) -> emoji.EmojiDataset:
    """Return a split of the benchmark; the drawings have random background, hue, scale, shift and rotation.

    ``split``: "train", "validation", "test" or "all". Label "concept" is the class, "hand" who drew it, both
    numbered from 0. ``options`` are those of :func:`cvlib.data.emoji.load`.
    Raises: BookError for an unknown split or option.
    """
    if split not in (*SPLITS, "all"):
        raise BookError(f"split {split!r}", f"one of {', '.join(SPLITS)}, all")
    data = load_data("emoji", "train", image_size, **{"factors": "full", **options})
    assert isinstance(data, emoji.EmojiDataset)
    classes = [name for name in data.label_names["concept"] if name in _kept()]
    place = {name: number for number, name in enumerate(classes)}
    number = torch.tensor([place.get(name, -1) for name in data.label_names["concept"]])[
        data.labels["concept"]
    ]
    is_part = (parts_of(data) == SPLITS.index(split)) if split in SPLITS else number >= 0
    rows = (is_part & (number >= 0)).nonzero()[:, 0]
    part = data.subset(rows)
    part.split = split
    names = part.label_names["set"]
    of_set, first = hands(torch.arange(len(names)), names).unique(return_inverse=True)
    part.labels |= {"concept": number[rows], "hand": first[part.labels["set"]]}
    part.label_names = {**part.label_names, "concept": classes, "hand": [SETS[k] for k in of_set.tolist()]}
    return part


def few(data: emoji.EmojiDataset, n_concepts: int) -> emoji.EmojiDataset:
    """Return the drawings of ``n_concepts`` classes of ``data``, evenly spread over their list.

    Numbers and names of the classes stay as they are. Raises: BookError for fewer than two, or more than all.
    """
    count = len(data.label_names["concept"])
    if not 2 <= n_concepts <= count:
        raise BookError(f"{n_concepts} concepts", f"2 to {count}")
    kept = torch.linspace(0, count - 1, n_concepts).round().long()
    return data.subset(torch.isin(data.labels["concept"], kept).nonzero()[:, 0])
