"""What the tests of networks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def golden() -> Callable[[str], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Arrays and state of the original module, by file name."""

    def load(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind in "if"}
        state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
        return arrays, state

    return load


@pytest.fixture
def count() -> Callable[[nn.Module], int]:
    return lambda module: sum(p.numel() for p in module.parameters())
