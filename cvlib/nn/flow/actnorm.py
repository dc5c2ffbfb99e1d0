"""Affine normalisation whose first batch decides where it starts.

Source: Kingma and Dhariwal 2018, Sec. 3.1; Rombach et al. 2020a (Making Sense of CNNs), blocks of the flow.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["ActNorm"]


class ActNorm(nn.Module):
    """Return ``scale * (x + loc)`` per feature; the first batch in training mode gets mean 0 and variance 1.

    Afterwards ``loc`` and ``scale`` are parameters like all others and no statistic is taken again: whether
    that batch was seen is a buffer and travels with the weights. A feature that does not vary in it keeps
    scale 1. With several processes all take the start of the first.

    Shapes: (B, dim) or (B, dim, H, W).
    Raises: BookError before the first batch in evaluation mode or in :meth:`inverse`, and if the first batch
    is a single value a feature, since its variance is unknown, or not finite; it then still waits for one.
    """

    initialized: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.ones(dim))
        self.register_buffer("initialized", torch.tensor(False))
        self._is_ready = False  # the buffer as Python knows it: asking a device at every pass is slow
        self.register_load_state_dict_post_hook(_ask_again)

    @property
    def is_initialized(self) -> bool:
        """Whether the first batch was seen, here or before the weights were saved."""
        self._is_ready = self._is_ready or bool(self.initialized)
        return self._is_ready

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y like ``x`` and H W log|scale| (dim,), whose sum is log|det dy/dx|."""
        if not self._is_ready and not self.is_initialized:
            if not self.training:
                raise no_batch_yet()
            self.initialize(x)
        log_diag = self.scale.abs().log()
        if x.dim() == 2:
            return (x + self.loc) * self.scale, log_diag
        return (x + self.loc[:, None, None]) * self.scale[:, None, None], log_diag * x[0, 0].numel()

    def inverse(self, y: Tensor) -> Tensor:
        """Return x with ``forward(x)[0] == y``."""
        if not self._is_ready and not self.is_initialized:
            raise no_batch_yet()
        if y.dim() == 2:
            return y / self.scale - self.loc
        return y / self.scale[:, None, None] - self.loc[:, None, None]

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set ``loc`` and ``scale`` so that ``x`` gets mean 0 and (unbiased) standard deviation 1."""
        rows = x.transpose(0, 1).flatten(1)
        if rows.shape[1] < 2:
            raise too_few_values(rows.shape[1])
        if not rows.isfinite().all():
            bad = (~x.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
            seen = f"a first batch that is not finite in row(s) {bad[:5]} in ActNorm"
            raise BookError(seen, "finite values, which decide where it starts")
        mean, std = rows.mean(1), rows.std(1)
        is_flat = std <= 1e-6 * (1 + mean.abs())  # constant up to rounding: 1 / std would only be noise
        self.loc.copy_(-mean)
        self.scale.copy_(torch.where(is_flat, torch.ones_like(std), 1 / (std + 1e-6)))
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.loc.data, src=0)
            dist.broadcast(self.scale.data, src=0)
        self.initialized.fill_(True)
        self._is_ready = True


def _ask_again(module: nn.Module, _: object) -> None:
    """After loading: what Python remembers about the buffer may be wrong."""
    module._is_ready = False  # type: ignore[assignment]


def no_batch_yet() -> BookError:
    """The error of a pass that needs what the first batch decides."""
    return BookError(
        "ActNorm before its first batch", "weights to load, or one batch in training mode (forward) first"
    )


def too_few_values(count: int) -> BookError:
    """The error of a first batch of ``count`` values a feature."""
    return BookError(
        f"a first batch of {count} value(s) a feature in ActNorm",
        "at least 2, to know a variance",
        "run one larger batch through the network first",
    )
