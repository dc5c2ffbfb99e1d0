"""Learning-rate schedules: functions from the step t = 0, 1, ... to a factor of the base learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch.optim import Optimizer

__all__ = ["Schedule", "apply_schedules", "constant", "warmup_cosine", "warmup_linear"]

Schedule: TypeAlias = Callable[[int], float]


def constant(warmup: int = 0) -> Schedule:
    """Return a schedule that rises linearly over ``warmup`` steps and then stays at 1."""
    return lambda t: _rise(t, warmup)


def warmup_linear(warmup: int, steps: int, final: float = 0.0) -> Schedule:
    """Return a schedule that rises over ``warmup`` steps, then falls in a line to ``final`` at ``steps``.

    >>> [round(warmup_linear(2, 6)(t), 2) for t in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return lambda t: _rise(t, warmup) * (1 - (1 - final) * _progress(t, warmup, steps))


def warmup_cosine(warmup: int, steps: int, final: float = 0.0) -> Schedule:
    """Return a schedule that rises over ``warmup`` steps, then falls along half a cosine to ``final``.

    Source: Loshchilov and Hutter 2017, Eq. (5), without restarts.

    >>> [round(warmup_cosine(0, 4)(t), 3) for t in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return lambda t: (
        _rise(t, warmup) * (final + (1 - final) * (1 + math.cos(math.pi * _progress(t, warmup, steps))) / 2)
    )


def apply_schedules(optimizers: Mapping[str, Optimizer], schedules: Mapping[str, Schedule], t: int) -> None:
    """Set every scheduled optimiser's learning rates for step ``t``; the base rates are kept beside them."""
    for name, schedule in schedules.items():
        factor = schedule(t)
        for group in optimizers[name].param_groups:
            rate = group.setdefault("initial_lr", float(group["lr"])) * factor
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _rise(t: int, warmup: int) -> float:
    return min(1.0, (t + 1) / warmup) if warmup else 1.0


def _progress(t: int, warmup: int, steps: int) -> float:
    return min(1.0, max(0.0, (t - warmup) / max(1, steps - warmup)))
