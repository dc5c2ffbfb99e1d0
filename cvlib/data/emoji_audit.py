"""Which emoji are nearly the same picture, and the split by concept that keeps them together.

``python -m cvlib.data.emoji_audit`` writes `emoji_splits.txt` and `emoji_near_duplicates.txt` beside this
file; a test regenerates both and compares. Two drawings are near-duplicates when at most HASH_SIGNS of the 63
signs of their perceptual hash differ *and* their relative pixel distance is at most DISTANCE: either alone
takes too much for equal (the distance: all letters on one kind of button).
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import dctn

from cvlib.data.emoji import open_pixels
from cvlib.data.emoji_names import SETS, Drawing, catalogue
from cvlib.errors import BookError
from cvlib.files import atomic_write

__all__ = ["DISTANCE", "HASH_SIGNS", "SHARES", "audit", "make_splits", "near_pairs", "perceptual_hash"]

SIDE = 32  # size at which drawings are compared
HASH_SIGNS = 6
DISTANCE = 0.1
_ZERO = 0.03  # a frequency with less than this share of the amplitude has no sign
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_HERE = Path(__file__).parent
_PERSON = re.compile(r"^(man|woman|person|men|women|people)-")


def perceptual_hash(rgba: np.ndarray) -> np.ndarray:
    """Return int8 (N, 63): the signs of the low frequencies of the grey image on white, 0 where negligible.

    ``rgba``: premultiplied uint8 (N, 4, S, S). The usual two-valued hash compares with the median, which is
    near 0 for a symmetric drawing, so that half its bits are noise; a third value for "none" mends that.
    """
    grey = (rgba[:, :3].astype(np.int64).sum(1) + 3 * (255 - rgba[:, 3].astype(np.int64))).astype(np.float64)
    low = dctn(grey, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(len(rgba), 64)[:, 1:]
    floor = _ZERO * np.linalg.norm(low, axis=1, keepdims=True) + 1e-6
    return (np.sign(low) * (np.abs(low) > floor)).astype(np.int8)


def near_pairs(rgba: np.ndarray) -> np.ndarray:
    """Return the near-duplicate pairs (i < j) among premultiplied drawings (N, 4, S, S) as rows (M, 2).

    The relative distance is |a - b| / sqrt((|a|^2 + |b|^2) / 2) over half-size RGBA, in exact integers.
    """
    n, _, side, _ = rgba.shape
    signs = perceptual_hash(rgba)
    one_hot = np.concatenate([signs == value for value in (-1, 0, 1)], axis=1).astype(np.float32)
    small = rgba.reshape(n, 4, side // 2, 2, side // 2, 2).sum((3, 5), dtype=np.int32).reshape(n, -1)
    energy = np.einsum("ij,ij->i", small, small, dtype=np.int64)
    found = []
    for first in range(0, n, 1000):
        equal = one_hot[first : first + 1000] @ one_hot.T
        i, j = np.nonzero(equal >= 63 - HASH_SIGNS)
        i, j = i[j > i + first] + first, j[j > i + first]
        gap = np.concatenate([_squared(small[a], small[b]) for a, b in _pieces(i, j)] or [np.zeros(0, int)])
        near = 2 * gap <= DISTANCE**2 * (energy[i] + energy[j])
        found.append(np.stack([i[near], j[near]], 1))
    return np.concatenate(found)


def _pieces(i: np.ndarray, j: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    return ((i[k : k + 2000], j[k : k + 2000]) for k in range(0, len(i), 2000))


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    difference = (a - b).astype(np.int64)
    return np.einsum("ij,ij->i", difference, difference)


def kin(concept: str) -> str:
    """Return a concept's name without who does it and where they look: such drawings differ in the hair.

    >>> kin("woman-running-facing-right"), kin("person-running"), kin("runner")
    ('running', 'running', 'runner')
    """
    return _PERSON.sub("", concept).removesuffix("-facing-right")


def families(concepts: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the concepts in groups that must share a split: near-duplicates, and kin by name."""
    parent = {concept: concept for concept in concepts}

    def find(one: str) -> str:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    by_name = defaultdict(list)
    for concept in concepts:
        by_name[kin(concept)].append(concept)
    named = [(group[0], other) for group in by_name.values() for other in group[1:]]
    for a, b in [*pairs, *named]:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    groups = defaultdict(list)
    for concept in sorted(concepts):
        groups[find(concept)].append(concept)
    return list(groups.values())


def make_splits(
    group_of: dict[str, str],
    pairs: Iterable[tuple[str, str]],
    shares: dict[str, float] = SHARES,
    kept: dict[str, str] | None = None,
) -> dict[str, list[str]]:
    """Return split -> concepts: whole families, near ``shares`` within every Unicode group.

    Large families first, then in the order of a hash of their first name; each goes where its group has
    the largest relative deficit. ``group_of``: concept -> Unicode group; ``shares``: split -> share, one of
    them "train"; ``kept``: concept -> split for those that stay where they are, and their families with them.
    Raises: BookError if ``kept`` tears a family apart.
    """
    kept = kept or {}

    def stays(family: list[str]) -> str | None:
        found = sorted({kept[concept] for concept in family if concept in kept})
        if len(found) > 1:
            raise BookError(f"the family {', '.join(family)} kept in {' and '.join(found)}", "one split")
        return found[0] if found else None

    def order(family: list[str]) -> tuple[int, str]:
        return -len(family), hashlib.sha256(family[0].encode()).hexdigest()

    total, have = Counter(group_of.values()), Counter[tuple[str, str]]()
    result: dict[str, list[str]] = {split: [] for split in shares}
    # families whose split stays come first, so that the others see what is already taken
    for family in sorted(families(list(group_of), pairs), key=lambda f: (stays(f) is None, order(f))):
        group = Counter(group_of[concept] for concept in family).most_common(1)[0][0]
        deficit = {s: share * total[group] - have[group, s] for s, share in shares.items()}
        # a family that is larger than what a small split still lacks would crowd it: train takes it
        fits = [s for s in shares if deficit[s] >= len(family)] or ["train"]
        split = stays(family) or max(fits, key=lambda s: deficit[s] / shares[s])
        result[split] += family
        have[group, split] += len(family)
    return {split: sorted(concepts) for split, concepts in result.items()}


def shared_outlines(
    drawings: Sequence[Drawing], hashes: np.ndarray
) -> dict[tuple[str, str], tuple[int, int]]:
    """Return for each pair of sets (concepts both draw, those among them with at most 10 differing signs)."""
    where = {(d.set, d.concept): k for k, d in enumerate(drawings)}
    concepts: dict[str, set[str]] = {name: {d.concept for d in drawings if d.set == name} for name in SETS}
    result = {}
    for a, b in combinations(SETS, 2):
        both = sorted(concepts[a] & concepts[b])
        rows = [[where[a, c] for c in both], [where[b, c] for c in both]]
        differ = (hashes[rows[0]] != hashes[rows[1]]).sum(1)
        result[a, b] = len(both), int((differ <= 10).sum())
    return result


def audit() -> tuple[str, str]:
    """Return the texts of `emoji_splits.txt` and `emoji_near_duplicates.txt`, made from the drawings."""
    pixels, meta = open_pixels(SETS, False, SIDE)
    rgba = _middle(pixels, len(meta["icon"]))
    drawings = [Drawing(*row) for row in zip(*(meta[f] for f in Drawing.__annotations__), strict=True)]
    pairs = [(drawings[i], drawings[j]) for i, j in near_pairs(rgba)]
    across = {tuple(sorted((a.concept, b.concept))) for a, b in pairs if a.concept != b.concept}
    alike = [(a.concept, a, b) for a, b in pairs if a.concept == b.concept]
    within = sorted((concept, f"{a.set}:{a.icon}", f"{b.set}:{b.icon}") for concept, a, b in alike)
    group_of = {d.concept: d.group for d in catalogue(tones=True)}
    splits = make_splits(group_of, sorted((a, b) for a, b in across))
    lines = ["# Made by cvlib/data/emoji_audit.py: the split of every emoji concept"]
    for split, concepts in splits.items():
        lines += [f"[{split}]", *textwrap.wrap(" ".join(concepts), 110, break_on_hyphens=False)]
    shares = shared_outlines(drawings, perceptual_hash(rgba))
    near = [
        "# Made by cvlib/data/emoji_audit.py: drawings that are nearly the same picture",
        "# [sets] two sets, concepts both draw, those with nearly the same outline (at most 10 of 63 signs)",
        "[sets]",
        *(f"{a} {b} {n} {k}" for (a, b), (n, k) in shares.items()),
        "# [drawings] one concept, two sets: set:icon set:icon",
        "[drawings]",
        *(f"{a} {b}" for _, a, b in within),
        "# [concepts] two concepts that some set draws nearly alike; always in the same split",
        "[concepts]",
        *(f"{a} {b}" for a, b in sorted(across)),
    ]
    return "\n".join(lines) + "\n", "\n".join(near) + "\n"


def _middle(pixels: Any, n: int) -> np.ndarray:
    edge = round((pixels.size / (4 * n)) ** 0.5)
    margin = (edge - SIDE) // 2
    return np.asarray(pixels).reshape(n, 4, edge, edge)[:, :, margin:-margin, margin:-margin]


if __name__ == "__main__":
    for name, text in zip(("emoji_splits.txt", "emoji_near_duplicates.txt"), audit(), strict=True):
        atomic_write(_HERE / name, text)
