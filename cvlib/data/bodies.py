"""Posed bodies with true part masks, drawn from known factors; the images of a pair differ in one of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvlib.assets import ASSETS, cache_root
from cvlib.data.base import STEP, Dataset, Draws, Items, derived_generator
from cvlib.data.bodies_backgrounds import KINDS, Backgrounds, Drawn
from cvlib.data.bodies_figure import MERGED, PARTS, merge
from cvlib.data.bodies_people import draw_looks, draw_shapes
from cvlib.data.bodies_scenes import (
    Viewpoints,
    draw_bodies,
    frames_of,
    joint_places,
    rotations_of,
    sample_views,
)
from cvlib.data.mocap import CLIPS
from cvlib.data.mocap_skeleton import JOINTS
from cvlib.data.store import digest, open_store
from cvlib.errors import BookError

__all__ = ["JOINTS", "KINDS", "MERGED", "PAIRS", "PARTS", "BodyDataset", "BodyDraws", "load", "merge"]

PAIRS = ("none", "pose", "clothes")
SIZES = {"train": (48, 40), "validation": (8, 40), "test": (8, 40)}  #: shapes, and poses of each
_LOOKS = 2  # in which every posed shape is drawn
_CHUNK = 128  # bodies that are drawn together
_FORMAT = 1  # raise when the drawing changes, so that old caches are not read


@dataclass(frozen=True)
class BodyDraws(Draws):
    """The random part of a batch: backgrounds, and for pairs the images they are paired with."""

    background: Drawn | None = None
    partner: Tensor | None = None  #: int64 (B,)

    def __getitem__(self, rows: slice) -> BodyDraws:
        plain = super().__getitem__(rows)
        background = None if self.background is None else self.background[rows]
        partner = None if self.partner is None else self.partner[rows]
        return BodyDraws(plain.top, plain.left, plain.flip, plain.factors, background, partner)


class BodyDataset(Dataset):
    """Images of bodies; a batch holds, beside the labels,

    - "image" float (B, 3, S, S) in [-1, 1] and "mask" int64 (B, S, S), ids of :data:`PARTS` at the pixels'
      centres (:func:`merge` gives those of :data:`MERGED`);
    - "joints" float (B, 15, 2), the places of :data:`JOINTS`, right and down in pixels, the first pixel's
      centre at (.5, .5); hidden ones too;
    - for pairs, the same of another image before the same background: "partner", "partner_mask",
      "partner_joints" and "partner_index".

    Image i shows shape and pose i // 2 in look i % 2 of the shape's two. Labels (N,): shape, person (a shape
    in a look), pose (a mocap frame in a view, unlike any other's), clip, frame and mirrored (where the pose
    comes from).
    """

    channels = 5
    names = PARTS  #: labels of the masks; 0 is the background
    joint_names = JOINTS
    pairs = "none"
    poses = 0  #: of each shape
    joints: Tensor  #: float (N, 15, 2)
    backgrounds: Backgrounds

    def partner(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images that ``index`` (B,) are paired with, LongTensor (B,).

        "clothes": same shape, pose, camera and light, other look (skin, hair and clothes); the masks are
        equal. "pose": same shape and look in another of its poses, drawn from ``generator``, or the next one.
        Raises: BookError for data without pairs.
        """
        index = torch.as_tensor(index, dtype=torch.long)
        if self.pairs == "none":
            raise BookError("pairs 'none'", "'pose' or 'clothes'", "load the data with pairs=...")
        if self.pairs == "clothes":
            return index ^ 1
        n = self.poses
        step = torch.ones_like(index)
        if generator is not None:
            step = torch.randint(1, n, (len(index),), generator=generator)
        first = index // (_LOOKS * n) * n  # pose numbers of a shape follow each other
        pose = first + (index // _LOOKS - first + step) % n
        return _LOOKS * pose + index % _LOOKS

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> BodyDraws:
        """Return backgrounds and partners: each image's own ones, or with ``augment`` new ones."""
        plain = super().draw(index, None, False)
        if augment and generator is None:
            raise ValueError("augment=True wants a torch.Generator, so that the draw can be repeated")
        partner = None
        if self.pairs != "none":
            partner = self.partner(index, generator if augment else None)
        if augment and generator is not None:
            background = self.backgrounds.draw(len(index), generator)
        else:
            background = self._own_backgrounds(index)
        return BodyDraws(plain.top, plain.left, plain.flip, None, background, partner)

    def masks(self, index: Tensor) -> Tensor:
        """Return the masks of the images ``index`` (B,), int64 (B, S, S), without drawing the images."""
        index = torch.as_tensor(index, dtype=torch.long)
        return self.crops(index, super().draw(index, None, False))[:, 4].long()

    def _own_backgrounds(self, index: Tensor) -> Drawn:
        """Those of the poses, so that the two looks of a pose have the same one."""
        every = self.backgrounds.fixed(len(self) // _LOOKS, self.split)
        pose = index // _LOOKS
        places = every.places
        if places is not None:
            places = Draws(places.top[pose], places.left[pose], places.flip[pose])
        return Drawn(every.numbers[pose], every.photo[pose], places)

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        if not isinstance(draws, BodyDraws) or draws.background is None:
            raise ValueError("these draws are not of bodies; wanted those of BodyDataset.draw")
        behind = self.backgrounds.paint(draws.background, device)
        batch = self._lay_on(index, draws, behind)
        if draws.partner is None:
            return batch
        other = self._lay_on(draws.partner, draws, behind)
        there = {f"partner_{name}": value for name, value in other.items() if name != "image"}
        there |= {"partner": other["image"], "partner_index": draws.partner.to(device)}
        return batch | there

    def _lay_on(self, index: Tensor, draws: Draws, behind: Tensor) -> dict[str, Tensor]:
        """Lay the bodies ``index`` on backgrounds in [-1, 1]: (2 colour - 1) + (1 - alpha) (behind + 1)."""
        b, size, device = len(index), self.image_size, behind.device
        image = torch.empty(b, 3, size, size, device=device)
        mask = torch.empty(b, size, size, dtype=torch.long, device=device)
        one = torch.ones((), device=device)
        for rows, piece in self._gather(index, draws):
            drawn = torch.from_numpy(piece).to(device)
            clear = torch.add(one, drawn[:, 3:4], alpha=-1 / 255)
            torch.add(-one, drawn[:, :3], alpha=STEP, out=image[rows])
            image[rows].addcmul_(clear, behind[rows] + 1)
            mask[rows] = drawn[:, 4]
        return {"image": image, "mask": mask, "joints": self.joints[index].to(device)}


def _factors(split: str, shapes: int, poses: int, seed: int, clips: Sequence[str]) -> dict[str, Any]:
    """Return what is drawn: frames, rotations and views of the poses, shapes and looks of the people."""
    frames = [one for one in frames_of(split) if one[0] in clips]
    order = torch.randperm(len(frames), generator=derived_generator(seed, "frames", split)).tolist()
    chosen = [frames[order[k % len(frames)]] for k in range(shapes * poses)]
    return {
        "frames": chosen,
        "rotations": rotations_of(chosen),
        "views": sample_views(len(chosen), seed, split),
        "shapes": draw_shapes(shapes, seed, split),
        "looks": draw_looks(_LOOKS * shapes, seed, split),
    }


def _build(path: Path, factors: dict[str, Any], image_size: int) -> None:
    """Draw all images into ``path``, with a line of progress every 10 s."""
    n_shapes, n = len(factors["shapes"]), _LOOKS * len(factors["rotations"])
    start = told = time.monotonic()
    with path.open("wb") as file:
        for first in range(0, n, _CHUNK):
            image = torch.arange(first, min(first + _CHUNK, n))
            pose = image // _LOOKS
            shape = pose // (n // _LOOKS // n_shapes)
            people = factors["looks"][_LOOKS * shape + image % _LOOKS]
            view = Viewpoints(factors["views"].table[pose])
            drawn = draw_bodies(
                factors["rotations"][pose], factors["shapes"][shape], people, view, image_size
            )
            file.write(drawn.numpy().tobytes())
            if time.monotonic() - told > 10:
                told = time.monotonic()
                left = (told - start) / (first + len(image)) * (n - first)
                print(f"bodies: {first:,} of {n:,} drawn, {left:.0f} s left", file=sys.stderr, flush=True)
    print(f"bodies: {n:,} drawn in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def load(
    split: str,
    image_size: int,
    *,
    background: str = "plain",
    pairs: str = "none",
    shapes: int = 0,
    poses: int = 0,
    clips: Sequence[str] = CLIPS,
    seed: int = 0,
) -> BodyDataset:
    """Return posed bodies with part masks; made for 64 and 128 pixels, drawn once and kept in the cache.

    ``background``: "plain", "gradient" or "photo", each pose's own one, or with augmentation any; ``pairs``:
    "none", "pose" (same person, other pose) or "clothes" (same pose, other look), see
    :meth:`BodyDataset.partner`; ``shapes`` and ``poses`` of each, 0 for those of :data:`SIZES`; ``clips``:
    the motions that poses are taken from. Shapes, looks and views are drawn anew for each split; poses come
    from mocap frames, and photographs from places, that serve no other split.
    Raises: BookError for an option outside its values.
    """
    if pairs not in PAIRS:
        raise BookError(f"pairs {pairs!r}", f"one of {', '.join(PAIRS)}")
    if not clips or not set(clips) <= set(CLIPS):
        raise BookError(f"clips {list(clips)}", f"some of {', '.join(CLIPS)}")
    shapes, poses = shapes or SIZES[split][0], poses or SIZES[split][1]
    if shapes < 1 or poses < 2:
        raise BookError(f"{shapes} shapes in {poses} poses", "at least 1 shape in 2 poses")
    behind = Backgrounds(background, split, image_size)
    clips = [name for name in CLIPS if name in clips]
    key = {"split": split, "size": image_size, "shapes": shapes, "poses": poses, "clips": clips, "seed": seed}
    key |= {"mocap": ASSETS["mocap"].sha256, "format": _FORMAT}
    factors = _factors(split, shapes, poses, seed, clips)

    def build(aside: Path) -> dict[str, Any]:
        _build(aside / "pixels.u8", factors, image_size)
        return key

    folder = cache_root() / "bodies" / f"{split}-{image_size}-{digest(key, 12)}"
    pixels, _ = open_store(folder, build)
    pose = torch.arange(_LOOKS * shapes * poses) // _LOOKS
    shape = pose // poses
    source = torch.tensor([(CLIPS.index(name), frame, int(flip)) for name, frame, flip in factors["frames"]])
    labels = {"shape": shape, "person": _LOOKS * shape + torch.arange(len(pose)) % _LOOKS, "pose": pose}
    labels |= dict(zip(("clip", "frame", "mirrored"), source[pose].unbind(1), strict=True))
    data = BodyDataset(
        "bodies",
        split,
        image_size,
        pixels,
        Items.uniform(len(pose), BodyDataset.channels, image_size),
        content={"key": key, "background": behind.content, "pairs": pairs},
        labels=labels,
        label_names={"clip": list(CLIPS)},
        random_crop=False,
    )
    where = joint_places(
        factors["rotations"], factors["shapes"][shape[::_LOOKS]], factors["views"], image_size
    )
    data.joints, data.backgrounds = where[pose], behind
    data.pairs, data.poses = pairs, poses
    return data
