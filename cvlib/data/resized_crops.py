"""Training crops of random size and shape, resized to one size, as metric-learning papers augment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data.base import _PIECE, Dataset, Draws

__all__ = ["RATIO", "SCALE", "ResizedCrops", "crop_sizes"]

SCALE = (0.08, 1.0)  # share of the image's area
RATIO = (3 / 4, 4 / 3)  # width / height
TRIES = 10


def crop_sizes(height: Tensor, width: Tensor, generator: torch.Generator) -> Tensor:
    """Return the height and width of a random crop of each image, int64 (N, 2), for images (N,) x (N,).

    The area is uniform in ``SCALE``, the logarithm of width / height in that of ``RATIO``. What does not fit
    is drawn again, up to ten times in all; then the largest crop of an allowed shape is taken.

    Source: Szegedy et al. 2015, "Going deeper with convolutions", Sec. 6; the ten tries are torchvision's.

    >>> crop_sizes(torch.tensor([20]), torch.tensor([90]), torch.Generator().manual_seed(0)).shape
    torch.Size([1, 2])
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    u = torch.rand(2, TRIES, len(height), generator=generator, dtype=torch.float64)
    area = (SCALE[0] + u[0] * (SCALE[1] - SCALE[0])) * height * width
    ratio = torch.exp(low + u[1] * (high - low))
    tries = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()]).long()
    fits = (tries[0] <= height) & (tries[1] <= width) & (tries > 0).all(0)
    first = fits.to(torch.uint8).argmax(0)  # of several equal maxima the first one, where there is any
    drawn = tries.gather(1, first.expand(2, 1, -1))[:, 0]
    widest = torch.minimum(width, (height * RATIO[1]).round().long())
    highest = torch.minimum(height, (width / RATIO[0]).round().long())
    return torch.where(fits.any(0), drawn, torch.stack([highest, widest])).T


class ResizedCrops(Dataset):
    """A data set whose training crops are drawn by :func:`crop_sizes`, anywhere in the image, and resized.

    Bilinear with antialiasing, to bytes. Without ``augment`` it is the fixed crop, as in :class:`Dataset`.
    ``Draws.factors`` holds the crops' heights and widths, (B, 2). Where ten tries fail, the place of the crop
    is random too (torchvision: the centre).
    """

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        """Return size, corner and mirroring of the crops of the images ``index`` (B,)."""
        fixed = super().draw(index, generator, augment=False)
        if not augment:
            sizes = torch.full((len(index), 2), self.image_size)
            return Draws(fixed.top, fixed.left, fixed.flip, sizes)
        if generator is None:
            raise ValueError("augment=True wants a torch.Generator, so that the draw can be repeated")
        items = self._items[index.numpy()]
        shape = torch.from_numpy(np.stack([items.height, items.width], 1))
        sizes = crop_sizes(shape[:, 0], shape[:, 1], generator)
        u = torch.rand(3, len(index), generator=generator, dtype=torch.float64)
        top, left = (u[:2].T * (shape - sizes + 1)).long().unbind(1)
        return Draws(top, left, u[2] < 0.5 if self.flip else fixed.flip, sizes)

    def _gather(self, index: Tensor, draws: Draws) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the crops a few at a time as uint8; several threads, since resizing frees the interpreter."""
        items, size = self._items[index.numpy()], self.image_size
        if draws.factors is None:
            raise ValueError("draws without sizes; take them from the draw of this data set")
        boxes = torch.stack(
            [draws.top, draws.left, draws.top + draws.factors[:, 0], draws.left + draws.factors[:, 1]], 1
        )

        def cut(row: int) -> Tensor:
            base, height, width = (int(field[row]) for field in (items.base, items.height, items.width))
            top, left, bottom, right = boxes[row].tolist()
            planes = self._pixels[base : base + self.channels * height * width]
            crop = np.array(planes.reshape(self.channels, height, width)[:, top:bottom, left:right])
            if crop.shape[1:] == (size, size):
                return torch.from_numpy(crop)
            # on bytes, before they travel: a third of the time of floats, and the same on every device
            pixels = torch.from_numpy(crop)[None]
            return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)[0]

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for first in range(0, len(index), _PIECE):
                rows = range(len(index))[first : first + _PIECE]
                yield slice(rows.start, rows.stop), torch.stack(list(pool.map(cut, rows))).numpy()
