"""The nine emoji sets under one set of names: which drawing shows which concept, in which group.

The sets come as Iconify JSON (https://iconify.design/docs/types/iconify-json.html): ``icons`` maps a name to
an SVG body, ``aliases`` further names to icons, ``hidden`` marks names that were renamed or withdrawn.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cvlib.assets import member
from cvlib.errors import BookError

__all__ = ["GENDERS", "GROUPS", "SETS", "TONES", "Drawing", "catalogue", "icon_set", "svg", "unify"]

SETS = (  # asset "emoji-<set>"; the order decides whose spelling of a name and whose group is kept
    "noto",
    "twemoji",
    "openmoji",
    "fluent-emoji-flat",
    "fluent-emoji",
    "noto-v1",
    "emojione",
    "emojione-v1",
    "fxemoji",
)
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
    "Extras",  # what OpenMoji draws beyond Unicode's emoji
)
TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark", "several")
GENDERS = ("none", "man", "woman", "both")

_CATEGORIES = {
    **{group: group for group in GROUPS},
    **{group.replace(" &", ""): group for group in GROUPS},
    "Extras Openmoji": "Extras",
    "Extras Unicode": "Extras",
    "Food": "Food & Drink",
    "Nature": "Animals & Nature",
    "Travel": "Travel & Places",
    "Places": "Travel & Places",
    "People": "People & Body",
    "Modifiers": "People & Body",
}
_TONE = "(?:medium-light|medium-dark|light|medium|dark)"
_SKIN = re.compile(rf"-?({_TONE})-skin-tone")
_SUFFIX = re.compile(rf"-({_TONE})$")  # as Fluent writes it
_MAN = re.compile(r"\b(man|men|boy|boys|mr|father|prince|merman|grandfather|husband|guy)\b")
_WOMAN = re.compile(r"\b(woman|women|girl|girls|mrs|mother|princess|mermaid|grandmother|wife|bride|womans)\b")


@dataclass(frozen=True)
class Drawing:
    """One drawing: its set, its name there, and what the sets together say about it."""

    set: str
    icon: str
    concept: str
    group: str
    tone: str
    gender: str


@lru_cache(maxsize=len(SETS))
def icon_set(name: str) -> dict[str, Any]:
    """Return the Iconify JSON of a set, with its ``categories`` (name of category -> icon names) added."""
    data = json.loads(member(f"emoji-{name}", "icons.json").read_text(encoding="utf-8"))
    metadata = json.loads(member(f"emoji-{name}", "metadata.json").read_text(encoding="utf-8"))
    return {**data, "categories": metadata.get("categories", {})}


def svg(data: dict[str, Any], icon: str) -> str:
    """Return one icon as a whole SVG file; its view box is squared so that nothing is stretched."""
    entry = data["icons"][icon]
    width, height = (entry.get(side, data.get(side, 16)) for side in ("width", "height"))
    left, top = (entry.get(side, data.get(side, 0)) for side in ("left", "top"))
    side = max(width, height)
    box = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side:g}" height="{side:g}" viewBox="{box}">{entry["body"]}</svg>'
    )


@lru_cache(maxsize=1)
def _spellings() -> dict[tuple[str, str], str]:
    """The committed table of names that only some sets use: (set, squeezed name) -> squeezed common name."""
    table, sets = {}, []
    for line in Path(__file__).with_name("emoji_names.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sets = line.strip("[]").split()
        elif line and not line.startswith("#"):
            own, common = line.split()
            table.update({(name, own): squeeze(common) for name in sets})
    return table


def squeeze(name: str) -> str:
    """Return a name without hyphens and without what only some sets write.

    >>> squeeze("flag-for-norway"), squeeze("alarm-clock")
    ('flagnorway', 'alarmclock')
    """
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^flag-for-", "flag-", name))


def without_tone(icon: str, names: set[str]) -> tuple[str, str]:
    """Return (name without skin tone, tone); Fluent's bare suffix counts only where all five tones exist.

    >>> without_tone("police-car-light", {"police-car"}), without_tone("cook-medium-light-skin-tone", set())
    (('police-car-light', 'none'), ('cook', 'medium-light'))
    """
    tones = _SKIN.findall(icon)
    if tones:
        plain = _SKIN.sub("", icon).strip("-") or "skin-tone"
        return plain, tones[0] if len(set(tones)) == 1 else "several"
    suffix = _SUFFIX.search(icon)
    if suffix and {icon[: suffix.start()] + f"-{tone}" for tone in TONES[1:6]} <= names:
        return icon[: suffix.start()], suffix.group(1)
    return icon, "none"


class _Union:
    """Disjoint sets of squeezed names; two that one set draws apart are never joined."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.drawn: defaultdict[str, set[str]] = defaultdict(set)

    def find(self, name: str) -> str:
        while name in self.parent:
            name = self.parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        a, b = self.find(a), self.find(b)
        if a != b and not self.drawn[a] & self.drawn[b]:
            self.parent[a] = b
            self.drawn[b] |= self.drawn[a]


def unify(data: dict[str, dict[str, Any]]) -> list[Drawing]:
    """Return every visible drawing of the given sets (set -> Iconify JSON) under common concept names.

    Names are compared without hyphens; names that any set lists as aliases are one concept, unless some set
    draws them apart. The spelling and the group of a concept come from the first set (order of ``data``) that
    knows it. Order of the result: by set, then by icon name.
    """
    union, seen = _Union(), []
    for name, icons in data.items():
        plain = {icon for icon, entry in icons["icons"].items() if not entry.get("hidden")}
        for icon in sorted(plain):
            base, tone = without_tone(icon, plain | set(icons.get("aliases", {})))
            key = _spellings().get((name, squeeze(base)), squeeze(base))
            seen.append((name, icon, base, key, tone))
            union.drawn[key].add(name)
    for icons in data.values():
        for alias, entry in sorted(icons.get("aliases", {}).items()):
            if set(entry) == {"parent"}:  # a mirrored or turned alias is another picture
                union.join(squeeze(alias), squeeze(entry["parent"]))
    spelling: dict[str, str] = {}
    group: dict[str, str] = {}
    category = {
        (name, icon): _CATEGORIES[word]
        for name, icons in data.items()
        for word, members in icons["categories"].items()
        for icon in members
    }
    for name, icon, base, key, _ in seen:
        spelling.setdefault(union.find(key), base)
        if (name, icon) in category:
            group.setdefault(union.find(key), category[name, icon])
    return [
        Drawing(n, i, spelling[k], group.get(k, "Extras"), tone, gender(spelling[k]))
        for n, i, _, key, tone in seen
        for k in (union.find(key),)
    ]


def gender(concept: str) -> str:
    """Return which gendered words a name holds: "none", "man", "woman" or "both".

    >>> [gender(name) for name in ("man-cook", "woman-cook", "cook", "woman-and-man-holding-hands")]
    ['man', 'woman', 'none', 'both']
    """
    words = concept.replace("-", " ")
    man, woman = bool(_MAN.search(words)), bool(_WOMAN.search(words))
    return GENDERS[man + 2 * woman]


def catalogue(sets: Sequence[str] = SETS, *, tones: bool = False) -> list[Drawing]:
    """Return the drawings of the named sets, names always unified over all nine, toned variants on request.

    Raises: BookError for an unknown set.
    """
    unknown = [name for name in sets if name not in SETS]
    if unknown or not sets:
        raise BookError(f"emoji sets {list(sets)}", f"some of {', '.join(SETS)}")
    return [d for d in _everything() if d.set in sets and (tones or d.tone == "none")]


@lru_cache(maxsize=1)
def _everything() -> list[Drawing]:
    return unify({name: icon_set(name) for name in SETS})
