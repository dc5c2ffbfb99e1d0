"""Where autocast has to stay out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations keep the type of their inputs on the device of ``x``.

    >>> x = torch.ones(2, 2)
    >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(x):
    ...     (x @ x).dtype
    torch.float32
    """
    if x.device.type == "meta":  # shapes without numbers: there is no autocast to leave
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
