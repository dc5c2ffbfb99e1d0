"""A running mean of weights: smoother than the last step's, at no cost in gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["EMA"]


class EMA:
    """Exponential moving average of the parameters of ``module``; buffers are taken as they are.

    After update n = 1, 2, ... the mean is ``d * mean + (1 - d) * weight`` with
    ``d = min(decay, (1 + n) / (10 + n))``: the first weights, which are random, are soon forgotten.

    >>> layer = nn.Linear(1, 1, bias=False); ema = EMA(layer, decay=0.0)
    >>> _ = layer.weight.data.fill_(3.0); ema.update()
    >>> _ = layer.weight.data.fill_(4.0)
    >>> with ema.applied(): print(layer.weight.item())
    3.0
    >>> layer.weight.item()
    4.0
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; wanted 0 <= decay < 1")
        self.module, self.decay, self.updates = module, decay, 0
        self.mean = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights; :func:`fit` calls this after each step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [p.detach() for p in self.module.parameters()]
        self._follow_device(weights)
        torch._foreach_lerp_(list(self.mean.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the mean in the place of the module's weights for the length of the block."""
        self._follow_device(list(self.module.parameters()))
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and the number of updates."""
        return {"mean": dict(self.mean), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`. Raises: BookError if the names differ."""
        if state["mean"].keys() != self.mean.keys():
            raise BookError("the kept mean has other weights", f"those of {type(self.module).__name__}")
        self.updates = int(state["updates"])
        for name, parameter in self.module.named_parameters():  # the parameter's device and memory format
            self.mean[name] = torch.empty_like(parameter).copy_(state["mean"][name]).detach()

    def _follow_device(self, weights: list[Tensor] | list[nn.Parameter]) -> None:
        for name, weight in zip(self.mean, weights, strict=True):
            if self.mean[name].device != weight.device:
                self.mean[name] = self.mean[name].to(weight.device)

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, parameter in zip(self.mean.values(), self.module.parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)
