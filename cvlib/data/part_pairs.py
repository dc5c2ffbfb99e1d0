"""Pairs of pictures that share appearance, with part masks where there are any, for part discovery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from cvlib.data.base import Dataset, Draws, Items, derived_generator, mirrored, to_float
from cvlib.data.part_masks import UNKNOWN, MaskReader
from cvlib.data.part_pictures import PartPicture, open_pictures
from cvlib.data.sources import Source
from cvlib.data.warps import WarpRange, resample, sampling_grid

__all__ = ["PairDataset", "PairDraws", "paired", "rows_of"]

T = TypeVar("T")
_NAN = float("nan")
_UNLABELLED = -1  # that of cvlib.metrics.segmentation, which a data set need not import


@dataclass(frozen=True)
class PairDraws(Draws):
    """The random part of a batch: mirrored or not, partners, and warps of both images."""

    partner: Tensor | None = None  #: int64 (B,)
    warp: Tensor | None = None  #: float (B, 16, 2), from where control points take; None leaves as it is
    partner_warp: Tensor | None = None

    def __getitem__(self, rows: slice) -> PairDraws:
        plain = super().__getitem__(rows)
        own = (None if one is None else one[rows] for one in (self.partner, self.warp, self.partner_warp))
        return PairDraws(plain.top, plain.left, plain.flip, None, *own)


class PairDataset(Dataset):
    """Square pictures in pairs; a batch holds, beside the labels,

    - "image" and "partner", float (B, 3, S, S) in [-1, 1], and "partner_index";
    - "mask" and "partner_mask", int64 (B, S, S): ids of ``names``, or -1 where no mask says anything. Scores
      of :mod:`cvlib.metrics.segmentation` leave such pixels out.

    Label "identity" (N,) tells what the images of a pair share. Without ``warps``, the partner is an image of
    the same identity; an identity with one image pairs it with itself. With ``warps``, it is the same image
    in another warp. When augmenting, both images of a pair are mirrored together, where ``flip`` is set, and
    colours stay as they are: the authors' colour augmentation is off in the configurations that they shipped.
    """

    channels = 4
    names: tuple[str, ...]  #: labels of the masks; 0 is the background
    joint_names: tuple[str, ...]
    joints: Tensor  #: float (N, K, 2), right and down in pixels, NaN where hidden
    paths: Sequence[str]
    is_masked: Tensor  #: bool (N,), whether an image has a mask
    warps: WarpRange | None = None
    avoid_identity = False  #: whether an image is its own partner only where there is no other
    _fixed: Tensor | None = None

    def subset(self, rows: Tensor) -> Self:
        part = super().subset(rows)
        rows = torch.as_tensor(rows, dtype=torch.long)
        part.joints, part.is_masked = self.joints[rows], self.is_masked[rows]
        part.paths = [self.paths[row] for row in rows.tolist()]
        part._fixed = None if self._fixed is None else self._fixed[rows]
        part._group()
        return part

    def _group(self) -> None:
        """Sort the images by identity, so that partners can be looked up for a whole batch at once."""
        identity = self.labels["identity"]
        _, inverse, counts = identity.unique(return_inverse=True, return_counts=True)
        self._order = torch.argsort(inverse, stable=True)
        first = counts.cumsum(0) - counts
        self._first, self._count = first[inverse], counts[inverse]
        self._rank = torch.empty_like(self._order)
        self._rank[self._order] = torch.arange(len(identity))
        self._rank -= self._first

    def partner(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images that ``index`` (B,) are paired with, LongTensor (B,).

        Any of the same identity, drawn from ``generator``, or the next one; with ``avoid_identity`` another
        one, if there is one. With ``warps``, the image itself.
        """
        index = torch.as_tensor(index, dtype=torch.long)
        if self.warps is not None:
            return index
        count = self._count[index]
        step = torch.ones_like(index)
        if generator is not None:
            least = int(self.avoid_identity)
            share = torch.rand(len(index), generator=generator, dtype=torch.float64)
            step = least + (share * (count - least)).long()
        return self._order[self._first[index] + (self._rank[index] + step) % count]

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> PairDraws:
        """Return partners, mirrors and warps: fixed ones, or with ``augment`` drawn from ``generator``.

        Fixed: never mirrored, the image unwarped, its partner the next one or in a warp of its own.
        """
        plain = super().draw(index, generator, augment)
        partner = self.partner(index, generator if augment else None)
        warp = other = None
        if self.warps is not None and self._fixed is not None:
            other = self._fixed[index]
            if augment and generator is not None:
                warp, other = self.warps.draw(2 * len(index), generator).chunk(2)
        return PairDraws(plain.top, plain.left, plain.flip, None, partner, warp, other)

    def masks(self, index: Tensor) -> Tensor:
        """Return the masks of the images ``index`` (B,) as they are, int64 (B, S, S), -1 where unknown."""
        index = torch.as_tensor(index, dtype=torch.long)
        return _ids(self.crops(index, super().draw(index, None, False))[:, 3])

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        if not isinstance(draws, PairDraws) or draws.partner is None:
            raise ValueError("these draws are not of pairs; wanted those of PairDataset.draw")
        batch: dict[str, Tensor] = {"partner_index": draws.partner.to(device)}
        both = (("", index, draws.warp), ("partner_", draws.partner, draws.partner_warp))
        for prefix, rows, warp in both:
            pixels = mirrored(self.crops(rows, draws).to(device), draws.flip)
            image, mask = to_float(pixels[:, :3]), _ids(pixels[:, 3])
            if warp is not None:
                grid = sampling_grid(warp, self.image_size).to(device)
                image = resample(image, grid)
                mask = resample(mask[:, None].float(), grid, "nearest")[:, 0].long()
            batch |= {"partner" if prefix else "image": image, f"{prefix}mask": mask}
        return batch


def _ids(stored: Tensor) -> Tensor:
    """Return stored bytes as int64, with -1 for what nobody knows."""
    ids = stored.long()
    return torch.where(ids == UNKNOWN, _UNLABELLED, ids)


def rows_of(split: str, rows: Sequence[T], key: Callable[[T], str], every: int = 10) -> list[T]:
    """Return the rows of ``split``, "train" or "validation", out of those that are for training.

    Validation is one different key out of ``every``, in sorted order, so that no key is in both; "test" is
    all rows.

    >>> rows_of("validation", "abcdefghijjkl", str)
    ['j', 'j']
    """
    if split == "test":
        return list(rows)
    aside = set(sorted({key(row) for row in rows})[every - 1 :: every])
    return [row for row in rows if (key(row) in aside) == (split == "validation")]


def paired(
    name: str,
    split: str,
    image_size: int,
    source: Source,
    folder: Path,
    pictures: Sequence[PartPicture],
    *,
    names: tuple[str, ...],
    read: MaskReader,
    joint_names: tuple[str, ...] = (),
    margin: float = 0.0,
    flip: bool = True,
    avoid_identity: bool = False,
    warps: WarpRange | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> PairDataset:
    """Return pictures below ``folder`` as a data set of pairs; ``labels`` are names, one for each picture.

    Raises: BookError for no picture at all, and as :func:`cvlib.data.part_pictures.open_pictures` does.
    """
    if not pictures:
        raise source.error(f"no picture for {split} in {folder}", "at least one")
    stored = open_pictures(source, name, split, folder, pictures, read, image_size=image_size, margin=margin)
    known = {"identity": [one.identity for one in pictures], **(labels or {})}
    label_names = {field: sorted(set(values)) for field, values in known.items()}
    places = {field: {one: k for k, one in enumerate(found)} for field, found in label_names.items()}
    content: dict[str, Any] = {
        "files": stored.digest,
        "pictures": [[one.path, one.identity, bool(one.mask), one.box] for one in pictures],
        "margin": margin,
        "names": names,
        "avoid_identity": avoid_identity,
        "warps": repr(warps),
    }
    data = PairDataset(
        name,
        split,
        image_size,
        stored.pixels,
        Items.uniform(len(pictures), PairDataset.channels, image_size),
        content=content,
        labels={f: torch.tensor([places[f][one] for one in values]) for f, values in known.items()},
        label_names=label_names,
        random_crop=False,
        flip=flip,
    )
    data.names, data.joint_names = names, joint_names
    data.paths, data.is_masked = [one.path for one in pictures], torch.tensor(stored.is_masked)
    where = [
        [square.place(x, y, image_size) for x, y in one.joints or [(_NAN, _NAN)] * len(joint_names)]
        for one, square in zip(pictures, stored.squares, strict=True)
    ]
    data.joints = torch.tensor(where, dtype=torch.float32).view(len(pictures), len(joint_names), 2)
    data.warps, data.avoid_identity = warps, avoid_identity
    if warps is not None:
        data._fixed = warps.draw(len(pictures), derived_generator(0, "warp", name, split))
    data._group()
    return data
