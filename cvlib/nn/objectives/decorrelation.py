"""Adversarial separation of embeddings that share an encoder. Source: Milbich et al. 2020 (DiVA)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.objectives.pairs import unit
from cvlib.nn.precision import without_autocast

__all__ = ["agreement", "decorrelation_loss", "reverse_gradient"]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def reverse_gradient(x: Tensor) -> Tensor:
    """Return ``x``; in the backward pass its gradient changes sign (Ganin and Lempitsky 2015).

    >>> x = torch.ones(2, requires_grad=True)
    >>> reverse_gradient(x).sum().backward(); x.grad
    tensor([-1., -1.])
    """
    reversed_: Tensor = _Reverse.apply(x)
    return reversed_


def agreement(target: Tensor, source: Tensor, regressor: nn.Module) -> Tensor:
    """Return the mean over batch and width of (target * regressor(source))^2, rows scaled to length 1.

    Shapes: target and source (B, d). About 1 / d^2 for unrelated vectors, 3 / (d (d + 2)) for equal random
    ones: a weight chosen for 128 dimensions keeps its pressure in d with a factor (d / 128)^2. Computed in
    fp32, the regressor too.
    """
    with without_autocast(target):
        target, source = (unit(x.to(torch.promote_types(x.dtype, torch.float32))) for x in (target, source))
        return (target * unit(regressor(source))).square().mean()


def decorrelation_loss(
    embeddings: Mapping[str, Tensor], regressors: nn.ModuleDict, rho: Mapping[str, float]
) -> Tensor:
    """Return -sum of rho * agreement over the pairs named by ``regressors``: an adversarial scalar, <= 0.

    A key "source-target" names two of ``embeddings`` (B, d). Minimising lets each regressor predict the
    target from the source as well as it can, while the reversed gradient lets encoder and heads make that
    harder.

    Raises: BookError unless ``rho`` has a weight for every pair and no other. (In the authors' code weights
    are zipped with pairs, and a single value silently switches off all pairs but the first.)
    Source: Milbich et al. 2020; their rho is 100 to 1500 at d = 128.
    """
    if set(rho) != set(regressors):
        raise BookError(f"rho for {sorted(rho)}", f"one weight for each of {sorted(regressors)}")
    pairs = {name: name.split("-") for name in regressors}
    unknown = [name for name, ends in pairs.items() if len(ends) != 2 or not set(ends) <= set(embeddings)]
    if unknown:
        raise BookError(f"pairs {unknown}", f"source-target out of {sorted(embeddings)}")
    reversed_ = {name: reverse_gradient(e) for name, e in embeddings.items()}
    terms = [
        rho[name] * agreement(reversed_[target], reversed_[source], regressors[name])
        for name, (source, target) in pairs.items()
    ]
    return -torch.stack(terms).sum()
