"""Objectives that compare embeddings with one learned proxy per class instead of with each other.

Source: Movshovitz-Attias et al. 2017; Kim et al. 2020; Zhai and Wu 2019.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.objectives.pairs import Objective, masked_mean, unit

__all__ = ["NormSoftmaxLoss", "ProxyAnchorLoss", "ProxyNCALoss"]


class _Proxies(Objective):
    """Holds ``proxies`` (n_classes, dim), scaled to length 1 at each use; the label is the row."""

    n_classes: int

    def __init__(self, n_classes: int, dim: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.proxies = nn.Parameter(torch.randn(n_classes, dim) * dim**-0.5)  # lengths near 1

    def cosines(self, e: Tensor) -> Tensor:
        """Return cosines (B, n_classes) of unit vectors ``e`` (B, dim) with all proxies."""
        if e.shape[1] != self.proxies.shape[1]:
            raise BookError(f"embeddings of width {e.shape[1]}", f"{self.proxies.shape[1]} as the proxies")
        return e @ unit(self.proxies).T


class ProxyNCALoss(_Proxies):
    """-log softmax of -scale d^2 to the proxy of the own class, mean over the batch.

    d^2 is the squared distance of unit vectors. The softmax runs over all proxies, which makes it a
    probability (Teh et al. 2020); with ``negatives_only`` the denominator leaves out the own proxy,
    as in Movshovitz-Attias et al. 2017 (that loss may be negative, and wants two classes).
    Proxies learn at 50 times the network's rate.
    """

    def __init__(self, n_classes: int, dim: int, scale: float = 1.0, negatives_only: bool = False) -> None:
        super().__init__(n_classes, dim)
        if negatives_only and n_classes < 2:
            raise BookError("negatives_only with one class", "two classes, so that there is a negative")
        self.scale, self.negatives_only = scale, negatives_only

    def own_lr(self, lr: float) -> float:
        """Return 50 times the network's learning rate."""
        return 50 * lr

    def loss(self, e: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, dim)."""
        logits = self.scale * (2 * self.cosines(e) - 2)
        labels = labels.long()
        if not self.negatives_only:
            return F.cross_entropy(logits, labels)
        own = F.one_hot(labels, self.n_classes).bool()
        return (
            logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]
        ).mean()


class ProxyAnchorLoss(_Proxies):
    """Each proxy is an anchor that pulls the batch's items of its class and pushes all others.

    mean over the proxies present of log(1 + sum_pos exp(-alpha (s - delta))) + mean over all proxies of
    log(1 + sum_neg exp(alpha (s + delta))). Source: Kim et al. 2020; its proxies learn at 100 times
    the network's rate.
    """

    def __init__(self, n_classes: int, dim: int, delta: float = 0.1, alpha: float = 32.0) -> None:
        super().__init__(n_classes, dim)
        self.delta, self.alpha = delta, alpha

    def own_lr(self, lr: float) -> float:
        """Return 100 times the network's learning rate."""
        return 100 * lr

    def loss(self, e: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, dim)."""
        s = self.cosines(e)
        own = F.one_hot(labels.long(), self.n_classes).bool()

        def log1p_sum_exp(x: Tensor, mask: Tensor) -> Tensor:
            return F.pad(x.masked_fill(~mask, -torch.inf), (0, 0, 0, 1)).logsumexp(dim=0)

        pull = log1p_sum_exp(-self.alpha * (s - self.delta), own)
        push = log1p_sum_exp(self.alpha * (s + self.delta), ~own)
        return masked_mean(pull, own.any(0)) + push.mean()


class NormSoftmaxLoss(_Proxies):
    """Cross-entropy of cosines with one proxy per class, divided by ``temperature``.

    Source: Zhai and Wu 2019 (temperature 0.05). The proxies learn at the network's rate.
    """

    def __init__(self, n_classes: int, dim: int, temperature: float = 0.05) -> None:
        super().__init__(n_classes, dim)
        self.temperature = temperature

    def loss(self, e: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the loss of unit vectors ``e`` (B, dim)."""
        return F.cross_entropy(self.cosines(e) / self.temperature, labels.long())
