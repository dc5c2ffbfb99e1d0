"""A leaky ReLU that can be undone.

Source: option ``lrelu`` in the authors' code of Rombach et al. 2020a (Making Sense of CNNs), where its
log-determinant is left out.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["InvertibleLeakyReLU"]


class InvertibleLeakyReLU(nn.Module):
    """Return x where x >= 0 and ``alpha`` x elsewhere; each negative value adds log(alpha) to log|det|.

    Raises: BookError if ``alpha`` is not positive: zero forgets a half-line, below it two values meet.
    """

    def __init__(self, alpha: float = 0.9) -> None:
        super().__init__()
        if not alpha > 0:
            raise BookError(f"alpha {alpha} of a leaky ReLU", "a positive one, so that it can be undone")
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and the log of the Jacobian's diagonal, both like ``x``."""
        return F.leaky_relu(x, self.alpha), (x < 0).to(x.dtype) * math.log(self.alpha)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x with ``forward(x)[0] == y``."""
        return F.leaky_relu(y, 1 / self.alpha)
