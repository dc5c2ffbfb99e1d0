"""Where autocast has to stay out, and where it would be slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cvlib.train.runtime import pays_bf16

__all__ = ["exact_products", "quick_bf16", "without_autocast"]

_PRODUCTS = (F.conv2d, F.linear)


@contextmanager
def without_autocast(x: Tensor) -> Iterator[None]:
    """Give a context in which operations keep the type of their inputs on the device of ``x``.

    On a card products are not rounded to TF32 either, see :func:`exact_products`.

    >>> x = torch.ones(2, 2)
    >>> with torch.autocast("cpu", dtype=torch.bfloat16), without_autocast(x):
    ...     (x @ x).dtype
    torch.float32
    """
    if x.device.type == "meta":  # shapes without numbers: there is no autocast to leave
        yield
        return
    exact = exact_products() if x.device.type == "cuda" else nullcontext()
    with torch.autocast(x.device.type, enabled=False), exact:
        yield


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply in fp32 all through: a card otherwise rounds the factors to ten bits (TF32), for it is faster.

    For checks that compare two ways to the same number; on a CPU nothing changes.

    >>> with exact_products():
    ...     torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    ('highest', False)
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class _RoundedProducts(TorchFunctionMode):
    """Convolutions and linear layers as bf16 units have them: inputs and results rounded, sums in fp32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        given = [a.bfloat16().float() if isinstance(a, Tensor) else a for a in args]
        named = {k: a.bfloat16().float() if isinstance(a, Tensor) else a for k, a in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*given, **named).bfloat16()


def quick_bf16(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which bf16 autocast does not slow down a CPU without bf16 units.

    Such a CPU emulates the products of bf16 numbers, which takes it ten times as long as fp32 and more.
    Here ``F.conv2d`` and ``F.linear`` are computed in fp32 from what autocast rounds, and rounded again: the
    same numbers, but for the order of sums. Without bf16 autocast, and where bf16 pays, nothing changes.
    """
    on = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not on or torch.get_autocast_dtype("cpu") != torch.bfloat16 or pays_bf16(x.device):
        return nullcontext()
    return _RoundedProducts()
