"""Retrieval on emoji: given one drawing of a concept, find those by other hands.

The benchmark has the shape of Stanford Online Products: many classes (concepts drawn in at least four sets),
few images of each, and classes at test that training never saw. ``emoji_retrieval.txt`` lists the split; it
divides the book's own further, so that what is validation or test everywhere is the same here.
``python -m cvlib.data.emoji_retrieval`` writes it and ``emoji_hands.txt``; tests make the split again, and
one row of the latter.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvlib.data import emoji
from cvlib.data import load as load_data
from cvlib.data.emoji_audit import make_splits
from cvlib.data.emoji_names import SETS, catalogue
from cvlib.errors import BookError
from cvlib.files import atomic_write

__all__ = ["PROTOCOLS", "hands", "load", "protocol"]

MIN_SETS = 4
SHARES = {"train": 0.5, "validation": 0.15, "test": 0.35}
SAME_HAND = 0.2  # share of their common concepts that two sets may draw nearly alike
ALIKE = 0.9  # cosine of EfficientNet-Lite0 features, 64 px on white, from which two drawings are alike
PROTOCOLS = ("all sets", "cross-set", "hard")
_HERE = Path(__file__).parent


def load(split: str, image_size: int, **options: Any) -> emoji.EmojiDataset:
    """Return a split of the benchmark; the drawings have random background, hue, scale, shift and rotation.

    ``split``: "train", "validation", "test" or "all"; label "concept" is the class, "set" who drew it.
    ``options`` are those of :func:`cvlib.data.emoji.load`; ``factors="none"`` gives plain drawings on white.
    Raises: BookError for an unknown split or option.
    """
    data = load_data("emoji", split, image_size, **{"factors": "full", "splits": "retrieval", **options})
    assert isinstance(data, emoji.EmojiDataset)
    return data


@lru_cache(maxsize=1)
def _first_of_hand() -> dict[str, str]:
    """Return set -> the first set of its hand (itself, for most), from ``emoji_hands.txt``."""
    first = {name: name for name in SETS}
    for line in (_HERE / "emoji_hands.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            a, b, *_, verdict = line.split()
            if verdict == "one":  # whoever shared a hand with either shares one with both
                low, high = sorted((first[a], first[b]), key=SETS.index)
                first = {name: low if hand == high else hand for name, hand in first.items()}
    return first


def hands(sets: Tensor, names: Sequence[str] = SETS) -> Tensor:
    """Return the hand of each drawing (N,) from its set (N,), both int64: sets that copy each other are one.

    Two of the nine sets are the flat and the shaded rendering of one design, two others share their outlines:
    finding the one from the other is no feat. ``emoji_hands.txt`` lists what was measured.

    ``names``: the sets that the numbers stand for, ``label_names["set"]`` of data with fewer than nine. A
    hand is told by the number, in ``SETS``, of its first set.
    """
    first = _first_of_hand()
    return torch.tensor([SETS.index(first[name]) for name in names], device=sets.device)[sets]


def protocol(name: str, data: emoji.EmojiDataset) -> dict[str, Any]:
    """Return the options of :func:`cvlib.metrics.retrieval_scores` for one of ``PROTOCOLS``.

    - "all sets": every other drawing is in a query's gallery.
    - "cross-set": those of the query's own set are left out; only the concept can help.
    - "hard": right answers must come from another hand, and all wrong ones of the own hand stay as
      distractors: who goes by style alone is lost.

    Raises: BookError for another name.
    """
    if name not in PROTOCOLS:
        raise BookError(f"protocol {name!r}", f"one of {', '.join(PROTOCOLS)}")
    if name == "all sets":
        return {}
    if name == "cross-set":
        return {"sets": data.labels["set"], "own_set": "leave out"}
    return {"sets": hands(data.labels["set"], data.label_names["set"]), "own_set": "distractors"}


def _near_duplicates(section: str) -> list[list[str]]:
    """Return the rows of one section of ``emoji_near_duplicates.txt``, split at spaces."""
    text = (_HERE / "emoji_near_duplicates.txt").read_text(encoding="utf-8")
    rows = text.split(f"[{section}]\n")[1].split("\n[")[0].splitlines()
    return [row.split() for row in rows if not row.startswith("#")]


def make_retrieval_splits() -> str:
    """Return the text of ``emoji_retrieval.txt``."""
    drawn = Counter(concept for concept, _ in {(d.concept, d.set) for d in catalogue(tones=False)})
    chosen = {concept for concept, n in drawn.items() if n >= MIN_SETS}
    group_of = {d.concept: d.group for d in catalogue(tones=False) if d.concept in chosen}
    pairs = [(a, b) for a, b in _near_duplicates("concepts") if a in chosen and b in chosen]
    book = emoji.splits()
    # a family lies in one split of the book, so its first member speaks for it
    kept = {concept: book[concept] for concept in chosen if book[concept] != "train"}
    lines = ["# Made by cvlib/data/emoji_retrieval.py: the split of the retrieval benchmark, by concept"]
    for split, concepts in make_splits(group_of, pairs, SHARES, kept).items():
        lines += [f"[{split}]", *textwrap.wrap(" ".join(concepts), 110, break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


@torch.no_grad()
def alike_by_features() -> dict[tuple[str, str], float]:
    """Return for each pair of sets the share of common concepts whose features have a cosine >= ALIKE.

    Over the concepts of the benchmark; of a set that draws a concept twice, the first drawing counts.
    """
    from cvlib.nn.backbones import efficientnet_lite0  # only the audit wants a network

    data, net = emoji.load("all", 64, splits="retrieval"), efficientnet_lite0()
    parts = torch.arange(len(data)).split(256)
    z = torch.cat([net(data.images(part)).mean((2, 3)) for part in parts])
    z = torch.nn.functional.normalize(z, dim=1)
    where: dict[tuple[int, int], int] = {}
    for row, key in enumerate(zip(*(data.labels[f].tolist() for f in ("set", "concept")), strict=True)):
        where.setdefault(key, row)
    names, shares = data.label_names["set"], {}
    for a, b in combinations(range(len(names)), 2):
        both = [(r, where[b, c]) for (s, c), r in where.items() if s == a and (b, c) in where]
        left, right = torch.tensor(both).T
        alike = (z[left] * z[right]).sum(1) >= ALIKE
        shares[names[a], names[b]] = alike.double().mean().item()
    return shares


def make_hands() -> str:
    """Return the text of ``emoji_hands.txt``: how much any two sets share, by hash and by features."""
    outlines, features = _near_duplicates("sets"), alike_by_features()
    lines = [
        "# Made by cvlib/data/emoji_retrieval.py: which sets are one hand. Two sets; the share of the",
        "# concepts both draw that have nearly the same outline; of those in the benchmark, the share with",
        f"# alike features (cosine at least {ALIKE}); with {SAME_HAND} in either they are one hand.",
    ]
    for a, b, n, k in outlines:
        shares = int(k) / int(n), features[a, b]
        verdict = "one" if max(shares) >= SAME_HAND else "two"
        lines.append(f"{a} {b} {shares[0]:.2f} {shares[1]:.2f} {verdict}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    atomic_write(_HERE / "emoji_retrieval.txt", make_retrieval_splits())
    atomic_write(_HERE / "emoji_hands.txt", make_hands())
