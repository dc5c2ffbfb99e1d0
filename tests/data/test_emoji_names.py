from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from cvlib.data import emoji_names
from cvlib.data.emoji_names import GENDERS, GROUPS, SETS, TONES, catalogue, svg, unify
from cvlib.errors import BookError


@pytest.fixture(scope="module")
def drawings():
    return catalogue()


def test_every_set_gives_its_drawings(drawings):
    """14,297 in all; a search for "skin-tone" alone would leave 3,075 toned ones of Fluent as well."""
    assert Counter(d.set for d in drawings) == {
        "noto": 1689,
        "noto-v1": 1272,
        "twemoji": 1943,
        "openmoji": 2504,
        "fluent-emoji": 1590,
        "fluent-emoji-flat": 1594,
        "emojione": 1409,
        "emojione-v1": 1262,
        "fxemoji": 1034,
    }


def test_concepts_unite_the_sets(drawings):
    sets = defaultdict(set)
    for d in drawings:
        sets[d.concept].add(d.set)
    common = {concept for concept, names in sets.items() if len(names) >= 4}
    assert len(sets) == 2680
    assert (len(common), sum(d.concept in common for d in drawings)) == (1879, 13249)
    everywhere = {concept for concept, names in sets.items() if len(names) == len(SETS)}
    assert {"grinning-face", "alarm-clock", "taxi", "snail", "face-with-tears-of-joy"} <= everywhere


def test_one_set_draws_a_concept_twice_only_where_the_committed_table_says_so(drawings):
    twice = Counter((d.set, d.concept) for d in drawings)
    assert {name for (name, _), n in twice.items() if n > 1} <= {"fxemoji", "emojione-v1"}
    assert sum(n - 1 for n in twice.values()) == 17


def test_every_row_of_the_table_is_used_and_leads_to_a_known_concept(drawings):
    squeeze = emoji_names.squeeze
    names = {(d.set, squeeze(emoji_names.without_tone(d.icon, set())[0])) for d in catalogue(tones=True)}
    others = {squeeze(word) for d in drawings for word in (d.concept, d.icon)}
    others |= {squeeze(a) for s in SETS for a in emoji_names.icon_set(s).get("aliases", {})}
    table = emoji_names._spellings()
    assert len(table) > 350
    assert [row for row in table if row not in names and row[0] == "fxemoji"] == []
    assert [common for common in table.values() if common not in others] == []


def test_fields_hold_known_values(drawings):
    assert {d.group for d in drawings} == set(GROUPS)
    assert {d.tone for d in catalogue(tones=True)} == set(TONES) and {d.tone for d in drawings} == {"none"}
    assert {d.gender for d in drawings} == set(GENDERS)
    of = {d.concept: d.group for d in drawings}
    assert (
        of["snail"] == "Animals & Nature"
        and of["taxi"] == "Travel & Places"
        and of["acorn"] == "Animals & Nature"
    )
    assert [d.group for d in drawings if d.icon == "flag-for-norway"] == ["Flags"] * 2


def test_toned_variants_keep_the_concept_of_the_plain_drawing():
    toned = [d for d in catalogue(tones=True) if d.tone != "none"]
    plain = {d.concept for d in catalogue()}
    assert len(toned) == 24_812 - 14_297  # all visible drawings less the plain ones
    # two-person kisses exist in two tones only; the third is EmojiOne's swatches of the tones themselves
    assert {d.concept for d in toned} - plain == {
        "couple-with-heart-person-person",
        "kiss-person-person",
        "skin-tone",
    }


def test_unknown_set_is_refused():
    with pytest.raises(BookError, match="emoji sets"):
        catalogue(["noto", "nato"])
    with pytest.raises(BookError, match="emoji sets"):
        catalogue([])


def test_unify_on_a_small_case(iconify):
    """Alias of one set joins names of others; what a set draws apart, or mirrors, stays apart."""
    a = iconify(
        {"old-person": None, "cat": None, "gone": {"hidden": True}},
        aliases={"elder": {"parent": "old-person"}, "tac": {"parent": "cat", "hFlip": True}},
        categories={"People & Body": ["old-person"], "Animals & Nature": ["cat"]},
    )
    b = iconify({"elder": None, "c-at": None, "tac": None, "dog": None}, categories={"Nature": ["dog"]})
    c = iconify({"dog": None, "hound": None, "flag-for-x": None}, aliases={"cat": {"parent": "hound"}})
    d = iconify(
        {"puppy": None, "flag-x": None}, aliases={"dog": {"parent": "puppy"}, "hound": {"parent": "puppy"}}
    )
    found = {(x.set, x.icon): (x.concept, x.group) for x in unify({"a": a, "b": b, "c": c, "d": d})}
    assert ("a", "gone") not in found
    assert found["a", "old-person"] == found["b", "elder"] == ("old-person", "People & Body")
    assert found["a", "cat"] == found["b", "c-at"] == ("cat", "Animals & Nature")
    assert found["b", "tac"] == ("tac", "Extras")
    assert found["d", "puppy"][0] in (found["c", "dog"][0], found["c", "hound"][0])
    assert found["c", "dog"][0] != found["c", "hound"][0]
    assert found["c", "flag-for-x"][0] == found["d", "flag-x"][0]


@pytest.mark.parametrize(
    ("entry", "box"),
    [
        ({}, '"0 0 16 16"'),
        ({"width": 32}, '"0 -8 32 32"'),
        ({"height": 20, "left": 2, "top": -1}, '"0 -1 20 20"'),
    ],
)
def test_view_boxes_are_squared_about_the_drawing(iconify, entry, box):
    assert f"viewBox={box}" in svg(iconify({"x": entry}), "x")


def test_view_boxes_follow_the_defaults_of_the_set(iconify):
    assert 'viewBox="1 0 72 72"' in svg(iconify({"x": None}, width=72, height=72, left=1), "x")
