"""Triplet loss. Source: Schroff et al. 2015."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from cvlib.nn.objectives.pairs import Objective, distances, masked_mean, pair_masks
from cvlib.nn.objectives.sampling import Triplets

__all__ = ["TripletLoss"]


class TripletLoss(Objective):
    """Mean of (d_ap - d_an + m)_+ over triplets, d the squared distance of unit vectors, or the plain one.

    ``mining="all"`` takes every triplet of the batch, ``"semihard"`` those with 0 < d_an - d_ap <= m; a
    caller may bring drawn ones instead: ``loss(e, labels, triplets=...)``. The mean runs over all these, or
    with ``mean_over="active"`` over those with a positive loss (Hermans et al. 2017), which keeps the
    gradient's size when most margins are met. Source: Schroff et al. 2015.

    Work and memory grow with (pairs of one class) x (batch), not with the cube of the batch.
    """

    def __init__(
        self,
        margin: float = 0.2,
        squared: bool = True,
        mining: Literal["all", "semihard"] = "all",
        mean_over: Literal["mined", "active"] = "mined",
    ) -> None:
        super().__init__()
        self.margin, self.squared, self.mining, self.mean_over = margin, squared, mining, mean_over

    def loss(self, e: Tensor, labels: Tensor, triplets: Triplets | None = None, **options: Any) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, d)."""
        s = e @ e.T
        d = 2 - 2 * s if self.squared else distances(s)
        if triplets is not None:
            a, p, n, mined = triplets
            gap = d[a, n] - d[a, p]
        else:
            positives, negatives = pair_masks(labels)
            a, p = positives.nonzero(as_tuple=True)
            gap = d[a] - d[a, p][:, None]  # (pairs, B): every item as the negative
            mined = negatives[a]
            if self.mining == "semihard":
                mined = mined & (gap > 0) & (gap <= self.margin)
        losses = F.relu(self.margin - gap)
        return masked_mean(losses, mined & (losses > 0) if self.mean_over == "active" else mined)
