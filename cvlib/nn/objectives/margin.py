"""Margin loss with a learned boundary between classmates and others.

Source: Wu et al. 2017, Sec. 4; the regularised sampling of Roth et al. 2020.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.nn.objectives.pairs import Objective
from cvlib.nn.objectives.sampling import Triplets, distance_weighted_triplets, push_classmates

__all__ = ["MarginLoss", "RMarginLoss"]


class MarginLoss(Objective):
    """Sum of (d_ap - beta + m)_+ and (beta - d_an + m)_+ over triplets, divided by how many are active.

    d = sqrt(|a - b|^2 + 1e-8) of unit vectors, beta = ``beta[class of the anchor]``, learned. Source: Wu et
    al. 2017, Sec. 4. Triplets are drawn by :func:`distance_weighted_triplets` (``lower``, ``upper``,
    ``per_anchor``) unless the caller brings some: ``loss(e, labels, triplets=...)``.

    ``divisor="terms"`` counts active terms, up to two a triplet, as Wu et al. did; ``"triplets"`` counts
    triplets with at least one, which is what the CompVis code does on current PyTorch (adding booleans is a
    logical or), and gives up to twice the loss. ``n_classes=None`` shares one beta.

    beta wants its own learning rate, 5e-4 beside a network at 1e-5: at the network's it stays frozen in
    practice. :meth:`parameter_groups` says so to the optimiser.
    """

    def __init__(
        self,
        n_classes: int | None,
        margin: float = 0.2,
        beta: float = 1.2,
        divisor: Literal["terms", "triplets"] = "terms",
        lower: float = 0.5,
        upper: float | None = 1.4,
        per_anchor: int = 1,
    ) -> None:
        super().__init__()
        self.n_classes, self.margin, self.divisor = n_classes, margin, divisor
        self.lower, self.upper, self.per_anchor = lower, upper, per_anchor
        self.beta = nn.Parameter(torch.full((n_classes or 1,), float(beta)))

    def own_lr(self, lr: float) -> float:
        """Return 5e-4, whatever the network's (Roth et al. 2020)."""
        return 5e-4

    def draw(self, e: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Triplets:
        """Return the triplets of a batch of embeddings (B, d)."""
        return distance_weighted_triplets(e, labels, self.lower, self.upper, self.per_anchor, generator)

    def loss(
        self,
        e: Tensor,
        labels: Tensor,
        triplets: Triplets | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, d); ``generator`` makes the draw repeatable."""
        a, p, n, valid = self.draw(e, labels, generator) if triplets is None else triplets
        beta = self.beta if self.n_classes is None else self.beta[labels[a].long()]
        # differences, not 2 - 2 cos: the distance of near duplicates would drown in rounding
        d_ap, d_an = ((e[a] - e[other]).square().sum(1).add(1e-8).sqrt() for other in (p, n))
        pull = F.relu(d_ap - beta + self.margin) * valid
        push = F.relu(beta - d_an + self.margin) * valid
        if self.divisor == "terms":
            active = (pull > 0).sum() + (push > 0).sum()
        else:
            active = ((pull > 0) | (push > 0)).sum()
        return (pull + push).sum() / active.clamp(min=1)


class RMarginLoss(MarginLoss):
    """Margin loss that also pushes classmates apart: with probability ``p`` a classmate is the negative.

    Source: Roth et al. 2020. Their runs use p = 0.4 / 0.35 / 0.15 (CUB / CARS / SOP) with beta 0.6;
    p = 0 is :class:`MarginLoss`.
    """

    def __init__(self, n_classes: int | None, p: float = 0.2, beta: float = 0.6, **options: Any) -> None:
        super().__init__(n_classes, beta=beta, **options)
        self.p = p

    def draw(self, e: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Triplets:
        """Return distance-weighted triplets, a share ``p`` of them with a classmate as the negative."""
        return push_classmates(super().draw(e, labels, generator), self.p, generator)
