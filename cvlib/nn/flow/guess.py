"""Where a conditional flow starts: at the best linear guess that its condition allows."""

from __future__ import annotations

import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["LinearGuess"]


class LinearGuess(nn.Module):
    """Return W c + b (B, dim) for conditions c (B, dim_in), or maps with as many entries.

    Both are zero before :meth:`fit`. A flow that takes this away first explains what is left, x - W c - b,
    which costs no determinant. Its nets then need not find out what linear algebra knows at once. W and b
    learn on with the flow.
    Raises: BookError at a condition of another width, or of integers.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(dim_in, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, cond: Tensor) -> Tensor:
        width = self.linear.in_features
        if not cond.is_floating_point() or cond.shape[1:].numel() != width:
            seen = f"a condition {tuple(cond.shape)} of {cond.dtype}"
            raise BookError(seen, f"floating, {width} numbers each")
        return self.linear(cond.flatten(1).to(self.linear.weight.dtype))

    @torch.no_grad()
    def fit(self, cond: Tensor, x: Tensor, strength: float = 1e-3) -> None:
        """Set W and b by ridge regression from ``cond`` (N, ...) to ``x`` (N, dim).

        The penalty is ``strength`` times N times the mean variance of an entry of the condition: the same
        whatever its scale. Raises: BookError if the numbers of rows differ or something is not finite.
        """
        if len(cond) != len(x):
            raise BookError(f"{len(cond)} conditions for {len(x)} samples", "one each")
        if not (cond.isfinite().all() and x.isfinite().all()):
            raise BookError("conditions or samples that are not finite", "finite numbers to regress on")
        rows = cond.flatten(1).double()
        alpha = strength * rows.var(0, correction=0).sum().item() / rows.shape[1] * len(rows)
        found = Ridge(alpha=max(alpha, 1e-12)).fit(rows.cpu().numpy(), x.flatten(1).double().cpu().numpy())
        self.linear.weight.copy_(torch.from_numpy(found.coef_))
        self.linear.bias.copy_(torch.from_numpy(found.intercept_))
