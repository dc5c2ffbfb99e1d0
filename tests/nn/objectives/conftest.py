"""A batch like those of training, and the comparison of two objectives by loss and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor


@pytest.fixture
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Embeddings around one centre per class, not scaled, and their labels, in a shuffled order."""

    def make(sizes: Sequence[int] = (3,) * 8, dim: int = 16, spread: float = 1.0) -> tuple[Tensor, Tensor]:
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        labels = labels[torch.randperm(len(labels))]
        e = torch.randn(len(sizes), dim)[labels] + spread * torch.randn(len(labels), dim)
        return (e * (1 + torch.rand(len(e), 1))).requires_grad_(), labels

    return make


@pytest.fixture
def agree() -> Callable[..., None]:
    """Compare two scalars and their gradients; a leaf may be a pair, where each has its own parameter."""

    def check(
        ours: Tensor, truth: Tensor, *leaves: Tensor | tuple[Tensor, Tensor], factor: float = 1
    ) -> None:
        torch.testing.assert_close(ours, factor * truth, rtol=1e-5, atol=1e-6)
        pairs = [leaf if isinstance(leaf, tuple) else (leaf, leaf) for leaf in leaves]
        mine = torch.autograd.grad(ours, [a for a, _ in pairs])
        theirs = torch.autograd.grad(truth, [b for _, b in pairs])
        for a, b in zip(mine, theirs, strict=True):
            assert b.abs().max() > 1e-4  # else there is nothing to compare
            torch.testing.assert_close(a, factor * b, rtol=1e-4, atol=1e-6)

    return check
