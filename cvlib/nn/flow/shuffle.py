"""A fixed random order of the features, so that the next coupling meets other halves.

Source: Dinh et al. 2017, Sec. 3.5 (there a reversal); Rombach et al. 2020a (Making Sense of CNNs).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Shuffle"]


class Shuffle(nn.Module):
    """Reorder the features of (B, dim): y[:, i] = x[:, order[i]]; log|det| is 0.

    ``order`` and its inverse ``back`` are buffers: weights make sense only together with them.
    """

    order: Tensor
    back: Tensor

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        order = torch.randperm(dim, generator=generator)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x with ``forward(x) == y``."""
        return y.index_select(1, self.back)
