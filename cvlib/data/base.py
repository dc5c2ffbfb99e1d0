"""Data sets as memory-mapped bytes, and batches that are a pure function of (seed, t)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from cvlib.data.store import Pixels, digest
from cvlib.errors import BookError

__all__ = ["Batches", "Dataset", "Draws", "Items", "derived_generator", "to_float"]

STEP = 0.00784313678741455  # the float32 next below 2 / 255
_PIECE = 32  # images converted at a time
SPLITS = ("train", "validation", "test")


def derived_generator(seed: int, *words: object) -> torch.Generator:
    """Return a CPU generator whose state depends on ``seed`` and ``words`` only (through SHA-256).

    >>> a, b = (torch.rand((), generator=derived_generator(0, "epoch", 3)) for _ in range(2))
    >>> bool(a == b)
    True
    """
    text = "\x1f".join(map(str, (seed, *words)))
    value = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(value)


def to_float(pixels: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return uint8 ``pixels`` as float32 in [-1, 1], in one pass over memory.

    0 becomes -1; 255 becomes 1 less one rounding: the step is 2 / 255 rounded down, so that 1 is not passed.
    """
    minus_one = torch.tensor(-1.0, device=pixels.device)
    return torch.add(minus_one, pixels, alpha=STEP, out=out)  # the kernel itself promotes the bytes


@dataclass(frozen=True)
class Items:
    """Where each image lies: planar (C, height, width) bytes from ``base`` on, and its fixed crop corner.

    All fields are int64 arrays of shape (N,); several items may share the same bytes.
    """

    base: np.ndarray
    height: np.ndarray
    width: np.ndarray
    top: np.ndarray
    left: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Items:
        return Items(self.base[rows], self.height[rows], self.width[rows], self.top[rows], self.left[rows])

    @classmethod
    def uniform(cls, n: int, channels: int, side: int, margin: int = 0) -> Items:
        """``n`` square images one after the other; the fixed crop leaves ``margin`` pixels on each side."""
        fill = np.full(n, side, dtype=np.int64)
        corner = np.full(n, margin, dtype=np.int64)
        return cls(np.arange(n, dtype=np.int64) * channels * side * side, fill, fill, corner, corner)


@dataclass(frozen=True)
class Draws:
    """The random part of a batch, one row per image: crop corner, mirror or not, and named factors."""

    top: Tensor
    left: Tensor
    flip: Tensor
    factors: Tensor | None = None

    def __getitem__(self, rows: slice) -> Draws:
        factors = None if self.factors is None else self.factors[rows]
        return Draws(self.top[rows], self.left[rows], self.flip[rows], factors)


class Dataset:
    """Images held as memory-mapped uint8, cut and converted batch-wise.

    ``labels`` maps a field to a LongTensor (N,), ``label_names`` the same field to its names; ``hash`` is a
    digest of content and options, equal on every machine, meant for run configurations.
    """

    channels = 3

    def __init__(
        self,
        name: str,
        split: str,
        image_size: int,
        pixels: Pixels,
        items: Items,
        *,
        content: Any,
        labels: dict[str, Tensor] | None = None,
        label_names: dict[str, list[str]] | None = None,
        random_crop: bool = True,
        flip: bool = False,
    ) -> None:
        self.name, self.split, self.image_size = name, split, image_size
        self.labels, self.label_names = labels or {}, label_names or {}
        self.random_crop, self.flip = random_crop, flip
        self._pixels, self._items = pixels, items
        described = {"name": name, "split": split, "image_size": image_size, "content": content}
        self.hash = digest({**described, "random_crop": random_crop, "flip": flip}, 16)

    def __len__(self) -> int:
        return len(self._items.base)

    def __repr__(self) -> str:
        kind = f"{self.name}/{self.split}"
        return f"<{kind}: {len(self):,} images of {self.image_size} px, hash {self.hash}>"

    def subset(self, rows: Tensor) -> Self:
        """Return the images ``rows`` (LongTensor (B,)) as a data set of their own, on the same pixels.

        Raises: BookError for no rows at all; IndexError for one outside.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        if not len(rows):
            raise BookError("a subset without images", "at least one")
        part = copy.copy(self)
        part._items = self._items[rows.numpy()]
        part.labels = {field: values[rows] for field, values in self.labels.items()}
        part.hash = digest([self.hash, rows.tolist()], 16)
        return part

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        """Return the random choices for the images ``index`` (fixed ones when ``augment`` is false)."""
        items = self._items[index.numpy()]
        n, no = len(index), torch.zeros(len(index), dtype=torch.bool)
        if not augment:
            return Draws(torch.from_numpy(items.top), torch.from_numpy(items.left), no)
        if generator is None:
            raise ValueError("augment=True wants a torch.Generator, so that the draw can be repeated")
        u = torch.rand(3, n, generator=generator, dtype=torch.float64)
        top, left = torch.from_numpy(items.top), torch.from_numpy(items.left)
        if self.random_crop:
            top = (u[0] * torch.from_numpy(items.height - self.image_size + 1)).long()
            left = (u[1] * torch.from_numpy(items.width - self.image_size + 1)).long()
        return Draws(top, left, u[2] < 0.5 if self.flip else no)

    def _gather(self, index: Tensor, draws: Draws) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the crops a few at a time as uint8: they stay in the processor's cache until they are floats.

        A gather copies contiguous pieces: whole images where nothing is cut, else rows of a crop.
        """
        items, size, c = self._items[index.numpy()], self.image_size, self.channels
        area = items.height * items.width
        if (area == size * size).all():  # nothing to cut: an image is one run of bytes
            starts, run = items.base, c * size * size
        else:
            corner = items.base + draws.top.numpy() * items.width + draws.left.numpy()
            planes = corner[:, None] + np.arange(c) * area[:, None]
            starts, run = planes[:, :, None] + np.arange(size) * items.width[:, None, None], size
        shape = (self._pixels.size - run + 1, run)
        windows = np.lib.stride_tricks.as_strided(self._pixels, shape, (1, 1), writeable=False)
        for first in range(0, len(starts), _PIECE):
            rows = slice(first, first + _PIECE)
            yield rows, np.asarray(windows[starts[rows]]).reshape(-1, c, size, size)

    def crops(self, index: Tensor, draws: Draws) -> Tensor:
        """Return the crops of the images as uint8 (B, C, image_size, image_size), not mirrored."""
        return torch.from_numpy(np.concatenate([piece for _, piece in self._gather(index, draws)]))

    def finish(self, pixels: Tensor, draws: Draws, out: Tensor) -> None:
        """Write crops (B, C, H, W), uint8 and already mirrored, into ``out``, float (B, 3, H, W)."""
        to_float(pixels, out=out)

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return {"image": float (B, 3, H, W) in [-1, 1]} for given draws; bytes travel, floats do not."""
        out = torch.empty(len(index), 3, self.image_size, self.image_size, device=device)
        for rows, piece in self._gather(index, draws):
            pixels = mirrored(torch.from_numpy(piece).to(out.device), draws.flip[rows])
            self.finish(pixels, draws[rows], out[rows])
        return {"image": out}

    def images(
        self, index: Tensor, *, generator: torch.Generator | None = None, augment: bool = False
    ) -> Tensor:
        """Return the images ``index`` (LongTensor (B,)) as float (B, 3, H, W) in [-1, 1].

        Without ``augment`` always the same crop, unmirrored; with it, drawn from ``generator``.
        Raises: IndexError for an index outside; ValueError if augment is asked without a generator.
        """
        index = torch.as_tensor(index, dtype=torch.long)
        return self.render(index, self.draw(index, generator, augment))["image"]

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        augment: bool = True,
        device: torch.device | str = "cpu",
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Batches:
        """Return an infinite iterator of batches; see :class:`Batches`."""
        return Batches(self, batch_size, seed, augment, device, start, rank, world)


def mirrored(pixels: Tensor, flip: Tensor) -> Tensor:
    """Return uint8 ``pixels`` (B, C, H, W) with the images marked in ``flip`` (B,) mirrored left to right."""
    if not flip.any():
        return pixels
    # a ^ ((a ^ b) & mask) takes b where the mask is all ones: eight times as fast as torch.where on bytes
    mask = (flip.to(pixels.device, torch.uint8) * 255)[:, None, None, None]
    return pixels.flip(-1).bitwise_xor_(pixels).bitwise_and_(mask).bitwise_xor_(pixels)


class Batches(Iterator[dict[str, Tensor]]):
    """Endless batches; batch ``t`` depends on (seed, t) alone, never on what was drawn before.

    Each epoch is a permutation derived from (seed, epoch); a batch may run over an epoch's end. Augmentation
    of batch t is drawn from a generator derived from (seed, t), for the whole global batch, of which a rank
    takes the rows ``rank::world``: many processes see exactly what one process would.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        augment: bool = True,
        device: torch.device | str = "cpu",
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world or not 0 <= rank < world:
            seen = f"batch_size {batch_size} for rank {rank} of {world} processes"
            raise BookError(seen, "a positive multiple of the number of processes, and 0 <= rank < world")
        self.dataset, self.batch_size, self.seed, self.augment = dataset, batch_size, seed, augment
        self.device, self.position = device, start
        self._rows = slice(rank, None, world)
        self._permutation: tuple[int, Tensor] = (-1, torch.empty(0))

    def _epoch(self, epoch: int) -> Tensor:
        if self._permutation[0] != epoch:
            generator = derived_generator(self.seed, "epoch", epoch)
            self._permutation = (epoch, torch.randperm(len(self.dataset), generator=generator))
        return self._permutation[1]

    def indices(self, t: int) -> Tensor:
        """Return the image indices of the whole global batch ``t`` as LongTensor (batch_size,)."""
        n, at, missing = len(self.dataset), t * self.batch_size, self.batch_size
        parts = []
        while missing:
            epoch, first = divmod(at, n)
            parts.append(self._epoch(epoch)[first : first + missing])
            at, missing = at + len(parts[-1]), missing - len(parts[-1])
        return torch.cat(parts)

    def __next__(self) -> dict[str, Tensor]:
        t, data = self.position, self.dataset
        index = self.indices(t)
        draws = data.draw(index, derived_generator(self.seed, "batch", t), self.augment)
        index, draws = index[self._rows], draws[self._rows]
        batch = data.render(index, draws, self.device)
        fields = {"index": index, **{field: values[index] for field, values in data.labels.items()}}
        self.position = t + 1
        return batch | {field: values.to(self.device) for field, values in fields.items()}

    def state_dict(self) -> dict[str, int]:
        """Return {"position": number of the next batch, "seed": seed}."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position of a :meth:`state_dict`. Raises: BookError if its seed is another one."""
        if state["seed"] != self.seed:
            raise BookError(f"batches saved with seed {state['seed']}", f"seed {self.seed}", "pass that seed")
        self.position = state["position"]
