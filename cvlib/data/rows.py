"""Tensors of equal length as a data set, for stages that train on what an earlier stage computed."""

from __future__ import annotations

import torch
from torch import Tensor

from cvlib.data.base import Dataset, Draws
from cvlib.errors import BookError

__all__ = ["Rows"]


class Rows(Dataset):
    """Columns (N, ...) such as tokens and labels; a batch holds the same rows of each, and ``index``.

    >>> rows = Rows({"tokens": torch.arange(6).view(3, 2), "class": torch.tensor([0, 1, 0])})
    >>> sorted(next(rows.batches(2, seed=0)))
    ['class', 'index', 'tokens']
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        if len({len(column) for column in columns.values()}) != 1:
            lengths = {name: len(column) for name, column in columns.items()}
            raise BookError(f"columns of lengths {lengths}", "one length for all")
        self.labels = columns

    def __len__(self) -> int:
        return len(next(iter(self.labels.values())))

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {', '.join(self.labels)}>"

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        """Return empty draws: nothing about a row is random."""
        none = torch.zeros(len(index))
        return Draws(none, none, none)

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return nothing beyond the columns."""
        return {}
