from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cvlib.data import emoji, emoji_audit
from cvlib.data.emoji_audit import families, make_splits, near_pairs, perceptual_hash
from cvlib.data.emoji_names import svg
from cvlib.data.render import draw_svg

HERE = Path(emoji.__file__).parent


def drawn(iconify, *bodies) -> np.ndarray:
    icons = iconify({str(k): {"body": body} for k, body in enumerate(bodies)})
    return np.stack([draw_svg(svg(icons, name), 30, 1) for name in icons["icons"]])


def test_the_same_shape_is_near_and_another_is_not(iconify):
    disc = '<circle cx="8" cy="8" r="7" fill="#fc0"/>'
    eyes = '<path d="M4 6h2v2H4zM10 6h2v2h-2z"/>'
    rgba = drawn(
        iconify,
        disc + eyes,
        disc + eyes.replace("6h2v2H4", "6h2v2.1H4"),  # 0.1 of 16 lower: the same to the eye
        disc.replace("#fc0", "#00f") + eyes,  # same outline, another colour
        '<path fill="#fc0" d="M2 2h5v12H2zM9 2h5v12H9z"/>',
    )
    assert near_pairs(rgba).tolist() == [[0, 1]]


def test_distance_is_the_stated_one(iconify, monkeypatch):
    """Two halves of one square: |a - b|^2 equals |a|^2 + |b|^2 over 2, doubled."""
    rgba = drawn(iconify, '<path d="M0 0h8v16H0z"/>', '<path d="M8 0h8v16H8z"/>')
    a, b = (one.astype(float).reshape(4, 16, 2, 16, 2).sum((2, 4)) for one in rgba)
    ratio = np.sqrt(((a - b) ** 2).sum() / (((a**2).sum() + (b**2).sum()) / 2))
    monkeypatch.setattr(emoji_audit, "HASH_SIGNS", 63)
    for distance, found in ((ratio * 1.001, 1), (ratio * 0.999, 0)):
        monkeypatch.setattr(emoji_audit, "DISTANCE", distance)
        assert len(near_pairs(rgba)) == found


def test_hash_is_the_sign_of_what_a_symmetric_drawing_has(iconify):
    """A centred square is even both ways: every odd frequency is nothing, and has no sign."""
    signs = perceptual_hash(drawn(iconify, '<path d="M4 4h8v8H4z"/>'))[0]
    table = np.concatenate([[0], signs]).reshape(8, 8)
    assert not table[1::2].any() and not table[:, 1::2].any() and table[0, 2] == table[2, 0] == 1


def test_families_follow_pairs_and_names():
    concepts = ["a", "b", "c", "man-d", "woman-d", "woman-d-facing-right", "e"]
    found = families(concepts, [("a", "b"), ("c", "b")])
    assert sorted(map(sorted, found)) == [
        ["a", "b", "c"],
        ["e"],
        ["man-d", "woman-d", "woman-d-facing-right"],
    ]


def test_splits_keep_families_whole_and_shares_near():
    group_of = {f"c{k}": "g" for k in range(200)} | {f"d{k}": "h" for k in range(50)}
    pairs = [(f"c{k}", f"c{k + 1}") for k in range(60)] + [("d1", "d2")]
    of = {c: split for split, members in make_splits(group_of, pairs).items() for c in members}
    assert len(of) == 250 and all(of[a] == of[b] for a, b in pairs)
    for group, n in (("g", 200), ("h", 50)):
        got = [
            sum(of[c] == s for c, g in group_of.items() if g == group) / n
            for s in ("train", "validation", "test")
        ]
        assert np.allclose(got, [0.8, 0.1, 0.1], atol=0.021)


def committed() -> dict[str, list[list[str]]]:
    part, found = "", {}
    for line in (HERE / "emoji_near_duplicates.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            part = line.strip("[]")
        elif not line.startswith("#"):
            found.setdefault(part, []).append(line.split())
    return found


def test_no_near_duplicates_of_different_concepts_lie_in_different_splits():
    of, pairs = emoji.splits(), committed()["concepts"]
    assert len(pairs) > 300
    assert [pair for pair in pairs if of[pair[0]] != of[pair[1]]] == []
    assert of["one-oclock"] == of["two-oclock"] and of["flag-norway"] == of["flag-svalbard-and-jan-mayen"]


def test_the_two_fluent_sets_share_their_outlines_and_others_do_not():
    share = {(a, b): int(k) / int(n) for a, b, n, k in committed()["sets"]}
    assert share.pop(("fluent-emoji-flat", "fluent-emoji")) > 0.4
    assert len(share) == 35 and max(share.values()) < 0.3


@pytest.mark.slow
def test_committed_lists_are_what_the_audit_finds():
    """Draws all nine sets at 32 px when the cache lacks them (15 s of two cores), then compares them all."""
    for name, text in zip(
        ("emoji_splits.txt", "emoji_near_duplicates.txt"), emoji_audit.audit(), strict=True
    ):
        assert (HERE / name).read_text(encoding="utf-8") == text, (
            f"run python -m cvlib.data.emoji_audit ({name})"
        )
