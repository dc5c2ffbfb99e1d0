"""What the tests of flows share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cvlib.nn.flow import ConditionalFlow, LabelEmbedder, VectorEmbedder


def jacobian_logdet(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log|det| (B,) of f: (B, d) -> (B, d), one dense Jacobian a row, by autograd."""
    rows = [torch.autograd.functional.jacobian(lambda v: f(v[None])[0], row) for row in x]
    return torch.linalg.slogdet(torch.stack(rows))[1]


@pytest.fixture
def logdet_of():
    return jacobian_logdet


@pytest.fixture
def make_flow():
    """A small flow after its first batch, with weights that let mistakes show, its inputs and conditions."""

    def make(dim=6, width=16, n_blocks=3, n=8, kind="vector", **options):
        embedder = {
            "none": lambda: None,
            "vector": lambda: VectorEmbedder((5, 8, 4)),
            "label": lambda: LabelEmbedder((3, 8, 4)),
        }[kind]()
        flow = ConditionalFlow(dim, width, n_blocks=n_blocks, embedder=embedder, **options).double()
        with torch.no_grad():
            for p in flow.parameters():
                p.mul_(1.5)
        cond = {"none": None, "vector": torch.randn(n, 5).double(), "label": torch.arange(n) % 3}[kind]
        x = 2 * torch.randn(n, dim).double() + 1
        flow(x, cond)
        return flow, x, cond

    return make
