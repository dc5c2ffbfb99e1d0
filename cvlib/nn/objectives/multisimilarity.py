"""Multi-similarity loss. Source: Wang et al. 2019."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.nn.objectives.pairs import Objective, masked_mean, pair_masks

__all__ = ["MultiSimilarityLoss"]


class MultiSimilarityLoss(Objective):
    """Pull of hard positives and push of hard negatives, each softly weighted by all others of its anchor.

    For anchor i with cosines s_ij: log(1 + sum_p exp(-alpha (s_ip - lambda))) / alpha
    + log(1 + sum_n exp(beta (s_in - lambda))) / beta, over the positives with s_ip - epsilon < max_n s_in and
    the negatives with s_in + epsilon > min_p s_ip. Source: Wang et al. 2019, with the values of
    the S2SD code, beta = 40 among them (pytorch-metric-learning has 50).

    The mean runs over the anchors that keep a pair, as in the CompVis code. (Others average over all anchors,
    so that their loss is smaller by the share of the kept.)
    """

    def __init__(
        self, alpha: float = 2.0, beta: float = 40.0, threshold: float = 0.5, epsilon: float = 0.1
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.threshold, self.epsilon = alpha, beta, threshold, epsilon

    def loss(self, e: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, d)."""
        s = e @ e.T
        positives, negatives = pair_masks(labels)
        with torch.no_grad():
            hardest_positive = s.masked_fill(~positives, torch.inf).amin(1, keepdim=True)
            hardest_negative = s.masked_fill(~negatives, -torch.inf).amax(1, keepdim=True)
            positives &= s - self.epsilon < hardest_negative
            negatives &= s + self.epsilon > hardest_positive
        s = s - self.threshold
        pull = _log1p_sum_exp(-self.alpha * s, positives) / self.alpha
        push = _log1p_sum_exp(self.beta * s, negatives) / self.beta
        return masked_mean(pull + push, positives.any(1) & negatives.any(1))


def _log1p_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
    """Return log(1 + sum of exp(x) where mask) for each row; the appended 0 is the 1, and keeps it finite."""
    return F.pad(x.masked_fill(~mask, -torch.inf), (0, 1)).logsumexp(dim=1)
