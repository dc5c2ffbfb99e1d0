"""FrEIA with the weights of our flow; how fast it is beside ours is on the page "performance"."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cvlib.claims import racing
from cvlib.nn.flow import ConditionalFlow, VectorEmbedder
from cvlib.pages import definitions

pytest.importorskip("FrEIA")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "performance.py")


@pytest.mark.parametrize("width, n_blocks, is_conditional", [(32, 20, True), (16, 3, False), (512, 2, True)])
@torch.no_grad()
def test_freia_with_the_same_weights_gives_the_same(page, width, n_blocks, is_conditional):
    embedder = VectorEmbedder((6, 8, 4)) if is_conditional else None
    flow = ConditionalFlow(8, width, n_blocks=n_blocks, embedder=embedder)
    x, cond = torch.randn(10, 8), torch.randn(10, 6) if is_conditional else None
    v, logdet = flow(x, cond)
    theirs, h = page.FreiaFlow(flow), embedder(cond) if is_conditional else None
    torch.testing.assert_close((v, logdet), theirs(x, h), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.inverse(v, cond), theirs.inverse(v, h), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_small_flows_are_faster_than_freia(page):
    """The ratio on a quiet machine is above 2; the bound is for a busy one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        embedder = VectorEmbedder((32, 256, 256, 256, 32))
        flow = ConditionalFlow(32, 64, n_blocks=10, embedder=embedder)
        x, cond = torch.randn(16, 32), torch.randn(16, 32)
        flow(x, cond)
        theirs = page.FreiaFlow(flow)
        ours, peer = lambda: flow(x, cond), lambda: theirs(x, embedder(cond))
        row = racing.race(
            "forward", page.repeated(ours, 4, False), page.repeated(peer, 4, False), "FrEIA", rounds=9
        )
    finally:
        torch.set_num_threads(threads)
    assert row.ratio > 1.3
