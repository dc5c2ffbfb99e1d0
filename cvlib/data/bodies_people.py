"""Who is drawn: proportions of the body, and a look (skin, hair and clothes with patterns)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvlib.data.base import derived_generator
from cvlib.data.mocap_skeleton import JOINTS, OFFSETS

__all__ = [
    "GARMENTS",
    "PATTERNS",
    "SHAPE",
    "Outfits",
    "draw_looks",
    "draw_shapes",
    "limb_offsets",
    "textures",
]

#: what a shape says, each a factor with its largest deviation from 1
SHAPE: dict[str, float] = {
    "height": 0.06,
    "legs": 0.05,
    "shoulders": 0.12,
    "hips": 0.12,
    "girth": 0.2,
    "head": 0.1,
}
#: what has a colour of its own; shirt and trousers span several links
GARMENTS = ("skin", "hair", "shirt", "trousers", "shoes")
PATTERNS = ("plain", "hoops", "stripes", "dots", "checks")
TILE = 16  # texels of a pattern, which repeats
_PATTERNED = ("shirt", "trousers")
_DARKEST_SKIN, _LIGHTEST_SKIN = (0.30, 0.19, 0.13), (0.97, 0.80, 0.70)
_DARKEST_HAIR, _LIGHTEST_HAIR = (0.08, 0.06, 0.05), (0.85, 0.70, 0.45)


@dataclass(frozen=True)
class Outfits:
    """The looks of B people; a garment is its first colour where its pattern is plain."""

    colours: Tensor  #: (B, 5, 2, 3) in [0, 1], two for each of GARMENTS
    patterns: Tensor  #: int64 (B, 5), rows of PATTERNS

    def __len__(self) -> int:
        return len(self.patterns)

    def __getitem__(self, rows: Tensor) -> Outfits:
        return Outfits(self.colours[rows], self.patterns[rows])


def draw_shapes(n: int, seed: int, *words: object) -> Tensor:
    """Return ``n`` shapes (n, 6), columns as in :data:`SHAPE`, uniform around 1.

    Shape i is the same for any n.
    """
    bound = torch.tensor(list(SHAPE.values()))
    u = [torch.rand(len(SHAPE), generator=derived_generator(seed, "shape", *words, i)) for i in range(n)]
    return 1 + (2 * torch.stack(u) - 1) * bound


def _hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB (..., 3) in [0, 1] of colours in the hexagonal cone, hue in turns."""
    k = (hue[..., None] * 6 + hue.new_tensor([5.0, 3.0, 1.0])) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def _look(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    u = torch.rand(8, 4, generator=generator)
    colours, patterns = torch.zeros(5, 2, 3), torch.zeros(5, dtype=torch.long)
    for row, (dark, light) in enumerate([(_DARKEST_SKIN, _LIGHTEST_SKIN), (_DARKEST_HAIR, _LIGHTEST_HAIR)]):
        colours[row] = torch.lerp(torch.tensor(dark), torch.tensor(light), u[row, 0])
    for row, garment in enumerate(GARMENTS[2:], start=2):
        first = _hsv(u[row, 0], 0.15 + 0.8 * u[row, 1], 0.35 + 0.6 * u[row, 2])
        # the second colour is light where the first is dark, so that a pattern can be seen
        is_light = first @ first.new_tensor([0.299, 0.587, 0.114]) > 0.45
        value = torch.where(is_light, 0.05 + 0.25 * u[row + 3, 2], 0.8 + 0.2 * u[row + 3, 2])
        colours[row] = torch.stack([first, _hsv(u[row + 3, 0], 0.7 * u[row + 3, 1], value)])
        if garment in _PATTERNED:
            patterns[row] = max(0, int(u[row, 3] * (len(PATTERNS) + 1)) - 1)
    return colours, patterns


def draw_looks(n: int, seed: int, *words: object) -> Outfits:
    """Return ``n`` looks; look i is the same for any n.

    Skin and hair lie between two tones, clothes anywhere in the colour cone but its grey core; shirt and
    trousers have one of :data:`PATTERNS`, plain twice as often as each other.
    """
    looks = [_look(derived_generator(seed, "look", *words, i)) for i in range(n)]
    return Outfits(*(torch.stack(one) for one in zip(*looks, strict=True)))


def limb_offsets(shapes: Tensor) -> Tensor:
    """Return the joints' offsets (B, 15, 3) in metres of bodies of ``shapes`` (B, 6)."""
    factor = dict(zip(SHAPE, shapes.unbind(-1), strict=True))
    stretch = torch.ones(len(shapes), len(JOINTS), 3, dtype=shapes.dtype)
    for joint, name in enumerate(JOINTS):
        if name.endswith(("knee", "ankle")):
            stretch[:, joint, 1] = factor["legs"]
        if name.endswith("shoulder"):
            stretch[:, joint, 2] = factor["shoulders"]
        if name.endswith("hip"):
            stretch[:, joint, 2] = factor["hips"]
    return OFFSETS.to(shapes.dtype) * stretch * factor["height"][:, None, None]


def _tiles() -> Tensor:
    """Where the second colour is, (5, TILE, TILE), in the order of PATTERNS; u goes right, v down."""
    at = (torch.arange(TILE) + 0.5) / TILE
    v, u = torch.meshgrid(at, at, indexing="ij")
    dots = (u - 0.5).square() + (v - 0.5).square() < 0.11
    return torch.stack([u < 0, v < 0.5, u < 0.5, dots, (u < 0.5) ^ (v < 0.5)]).float()


def textures(looks: Outfits) -> Tensor:
    """Return the garments' textures (5 B, 3, TILE, TILE) in [0, 1]: of person b, garment g row 5 b + g."""
    where = _tiles()[looks.patterns][:, :, None]
    first, second = looks.colours.unbind(2)
    return torch.lerp(first[..., None, None], second[..., None, None], where).flatten(0, 1)
