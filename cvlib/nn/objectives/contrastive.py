"""Contrastive loss. Source: Hadsell et al. 2006."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from cvlib.nn.objectives.pairs import Objective, distances, masked_mean, pair_masks

__all__ = ["ContrastiveLoss"]


class ContrastiveLoss(Objective):
    """Mean of (d - m_pos)_+ over pairs of one class plus mean of (m_neg - d)_+ over pairs of two classes.

    d is the distance of unit vectors, not squared (Hadsell et al. 2006 square both terms; metric learning
    dropped that). Each mean runs over its active pairs, those with a positive term.
    """

    def __init__(self, pos_margin: float = 0.0, neg_margin: float = 1.0) -> None:
        super().__init__()
        self.pos_margin, self.neg_margin = pos_margin, neg_margin

    def loss(self, e: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, d)."""
        d = distances(e @ e.T)
        positives, negatives = pair_masks(labels)
        pull, push = F.relu(d - self.pos_margin), F.relu(self.neg_margin - d)
        return masked_mean(pull, positives & (pull > 0)) + masked_mean(push, negatives & (push > 0))
