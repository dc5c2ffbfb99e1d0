"""Features of many images through a frozen network, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["feature_batches"]


@torch.no_grad()
def feature_batches(net: nn.Module, images: Tensor | Iterable[Tensor], *, batch_size: int = 64) -> Tensor:
    """Return the features of all images, (N, D) float32 on the CPU.

    Maps (B, C, H, W) are averaged over their pixels; several outputs (a list, tuple or dict of maps) are
    averaged and set side by side. The net is run in eval mode and put back as it was.

    Args: images: (N, 3, H, W) in [-1, 1], or batches of them.
    Raises: BookError if there is no image or an output is neither (B, D) nor (B, C, H, W).
    """
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    weight = next(chain(net.parameters(), net.buffers()), None)  # frozen nets may keep theirs as buffers
    was_training = net.training
    net.eval()
    try:
        pieces = [_pooled(net(b if weight is None else b.to(weight.device))).float().cpu() for b in batches]
    finally:
        net.train(was_training)
    if not pieces or not sum(map(len, pieces)):
        raise BookError("no image to take features of", "at least one")
    return torch.cat(pieces)


def _pooled(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return torch.cat([_pooled(part) for part in output], dim=1)
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        seen = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BookError(f"features {seen}", "(B, D) or (B, C, H, W)")
    return output.mean((2, 3)) if output.ndim == 4 else output
