"""Emoji: one concept drawn by up to nine hands, as pictures whose factors are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
from torch import Tensor

from cvlib.assets import ASSETS, cache_root, fetch
from cvlib.data.base import Dataset, Draws, Items
from cvlib.data.emoji_names import GENDERS, GROUPS, SETS, TONES, catalogue, icon_set, svg
from cvlib.data.factors import Factors, compose, lay_on, sample_factors
from cvlib.data.render import render_all
from cvlib.data.store import Pixels, digest, open_store
from cvlib.errors import BookError
from cvlib.files import sha256

__all__ = ["SETS", "EmojiDataset", "Factors", "compose", "load", "sample_factors", "split_of"]

_FORMAT = 1  # raise when the drawing changes, so that old caches are not read
_NAMES = Path(__file__).with_name("emoji_names.txt")
_SPLIT_FILES = {"book": "emoji_splits.txt", "retrieval": "emoji_retrieval.txt"}
_FACTORS = ("none", "background", "full")


def margins(image_size: int) -> tuple[int, int]:
    """Return (side of the drawing, clear pixels around it on the cached canvas) for an image size.

    An image shows the drawing with 1/32 of its side free all around; the canvas is 1/16 larger on each side,
    so that a crop shifted to the limit cuts at most 1/32 off the drawing.

    >>> margins(32), margins(64)
    ((30, 3), (60, 6))
    """
    pad = max(1, image_size // 16)
    inset = pad // 2
    return image_size - 2 * inset, pad + inset


@cache
def splits(name: str = "book") -> dict[str, str]:
    """Return the committed split of every concept: concept -> "train", "validation" or "test".

    ``name``: "book", which every chapter keeps to, or "retrieval", which divides the concepts of at least
    four sets further, so that more of them are left for the test (`cvlib.data.emoji_retrieval`).
    Raises: BookError for another name.
    """
    if name not in _SPLIT_FILES:
        raise BookError(f"splits {name!r}", f"one of {', '.join(_SPLIT_FILES)}")
    found, split = {}, ""
    for line in Path(__file__).with_name(_SPLIT_FILES[name]).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        if line.startswith("["):
            split = line.strip("[]")
        found.update(dict.fromkeys(line.split() if split and line[:1] != "[" else (), split))
    return found


_committed_splits = splits  # `load` has an option of the same name


def split_of(concept: str) -> str:
    """Return the split a concept belongs to. Raises: KeyError for a concept that is not listed."""
    return splits()[concept]


def open_pixels(sets: Sequence[str], tones: bool, image_size: int) -> tuple[Pixels, dict[str, Any]]:
    """Return the premultiplied RGBA canvases of the named sets and one record of fields per drawing.

    Drawn on the first call, into ``cache_root()/emoji/<size>-<digest>``; see `cvlib.data.store.open_store`.
    """
    sources = {name: ASSETS[f"emoji-{name}"].sha256 for name in SETS}
    key = {"sets": list(sets), "tones": tones, "sources": sources, "format": [_FORMAT, sha256(_NAMES)[:12]]}
    key["renderer"] = getattr(resvg_py, "__resvg_version__", resvg_py.__version__)
    folder = cache_root() / "emoji" / f"{image_size}-{digest([key, image_size], 12)}"

    def build(aside: Path) -> dict[str, Any]:
        fetch("emoji")
        drawings = catalogue(sets, tones=tones)
        side, margin = margins(image_size)
        names = [f"{d.set}:{d.icon}" for d in drawings]
        render_all(names, (svg(icon_set(d.set), d.icon) for d in drawings), aside / "pixels.u8", side, margin)
        fields = ("set", "icon", "concept", "group", "tone", "gender")
        return {"key": key, **{field: [getattr(d, field) for d in drawings] for field in fields}}

    return open_store(folder, build)


class EmojiDataset(Dataset):
    """Drawings as premultiplied RGBA; batches are composed with the factors that were asked for.

    With ``factors="full"`` and augmentation a batch also holds "factors", float (B, 8), columns as in
    ``Factors.NAMES``; with "background" only the background is drawn, the others are neutral.
    """

    channels = 4
    factors = "none"
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def rgba(self, index: Tensor) -> Tensor:
        """Return premultiplied RGBA bytes (B, 4, H, W) of the images ``index``, unshifted."""
        index = torch.as_tensor(index, dtype=torch.long)
        return self.crops(index, self.draw(index, None, False))

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        draws = super().draw(index, generator, augment)
        if not augment or generator is None or self.factors == "none":
            return draws
        drawn = sample_factors(len(index), generator)
        if self.factors == "background":
            neutral = Factors.neutral(len(index))
            drawn = Factors(drawn.background, neutral.hue, neutral.scale, neutral.shift, neutral.rotation)
            return Draws(draws.top, draws.left, draws.flip, drawn.tensor())
        fixed = super().draw(index, None, False)  # the shift is a factor now, and known
        return Draws(fixed.top, fixed.left, draws.flip, drawn.tensor())

    def finish(self, pixels: Tensor, draws: Draws, out: Tensor) -> None:
        if draws.factors is None:
            lay_on(pixels, torch.tensor([self.background], device=pixels.device), out=out)
            return
        known = Factors.from_tensor(draws.factors.to(pixels.device))
        if self.factors == "background":
            lay_on(pixels, known.background, out=out)
        else:
            out.copy_(compose(pixels, known))

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        batch = super().render(index, draws, device)
        return batch if draws.factors is None else batch | {"factors": draws.factors.to(device)}


def load(
    split: str,
    image_size: int,
    *,
    sets: Sequence[str] = SETS,
    factors: str = "none",
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    min_sets: int = 1,
    tones: bool = False,
    flip: bool = False,
    splits: str = "book",
) -> EmojiDataset:
    """Return the emoji of a split (``train``, ``validation``, ``test``, or ``all``), split by concept.

    ``sets``: which hands; ``factors``: "none" lays every drawing on ``background`` (augmentation shifts it by
    at most 1/16), "background" on a random colour, "full" also draws hue, scale, shift and rotation;
    ``min_sets`` keeps concepts drawn in at least that many of ``sets``; ``tones`` adds skin-tone variants;
    ``flip`` mirrors at random, off because letters, arrows, flags and clocks change their meaning;
    ``splits``: "book", or "retrieval", which has only the concepts that it lists.
    Labels: set, group, concept, tone, gender. Raises: BookError for an option outside its values.
    """
    if factors not in _FACTORS:
        raise BookError(f"factors {factors!r}", f"one of {', '.join(_FACTORS)}")
    sets = tuple(name for name in SETS if name in sets) if set(sets) <= set(SETS) else tuple(sets)
    pixels, meta = open_pixels(sets, tones, image_size)
    count = Counter({c: len(set(s)) for c, s in _sets_of(meta).items()})
    of = _committed_splits(splits)
    rows = [
        row
        for row, concept in enumerate(meta["concept"])
        if concept in of and (split == "all" or of[concept] == split) and count[concept] >= min_sets
    ]
    if not rows:
        raise BookError(f"no emoji in {', '.join(sets)} with min_sets={min_sets}", "at least one concept")
    side, margin = margins(image_size)
    canvas = side + 2 * margin
    items = Items.uniform(len(meta["concept"]), 4, canvas, (canvas - image_size) // 2)[np.array(rows)]
    concepts = sorted({meta["concept"][row] for row in rows})
    names = {"set": list(sets), "group": list(GROUPS), "concept": concepts}
    names |= {"tone": list(TONES), "gender": list(GENDERS)}
    place = {field: {value: k for k, value in enumerate(values)} for field, values in names.items()}
    labels = {f: torch.tensor([place[f][meta[f][row]] for row in rows]) for f in names}
    options = {"factors": factors, "background": list(background), "min_sets": min_sets, "tones": tones}
    options |= {} if splits == "book" else {"splits": splits}
    drawn = [[meta[field][row] for field in ("set", "icon", "concept", "group")] for row in rows]
    content = {"key": meta["key"], "drawings": digest(drawn), **options}
    data = EmojiDataset(
        "emoji",
        split,
        image_size,
        pixels,
        items,
        content=content,
        labels=labels,
        label_names=names,
        flip=flip,
    )
    data.factors, data.background = factors, background
    return data


def _sets_of(meta: dict[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for concept, name in zip(meta["concept"], meta["set"], strict=True):
        found.setdefault(concept, []).append(name)
    return found
