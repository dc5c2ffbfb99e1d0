"""The random number generators of torch, numpy and python as one state that can be kept and put back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["isolated_rng", "restore_rng", "rng_state", "seed_everything", "seed_from"]


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  third parties still draw from it
    torch.manual_seed(seed)


def seed_from(*parts: object) -> int:
    """Return a 32-bit seed that depends on all ``parts``; unlike sums, neighbours give unrelated seeds.

    >>> seed_from("fit", 0, 1) == seed_from("fit", 1, 0)
    False
    """
    text = "/".join(map(str, parts))
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def rng_state() -> dict[str, Any]:
    """Return the state of every global generator, as tensors and plain numbers only."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached),
        "python": _python_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what :func:`rng_state` returned; a generator this machine lacks is left out."""
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Run the block with its own random numbers (from ``seed``, else from the current state).

    Afterwards every generator stands where it stood before, whatever the block drew.
    """
    state = rng_state()
    try:
        if seed is not None:
            seed_everything(seed)
        yield
    finally:
        restore_rng(state)


def _python_state() -> tuple[int, torch.Tensor, float | None]:
    version, words, gauss = random.getstate()
    return version, torch.tensor(words, dtype=torch.int64), gauss
