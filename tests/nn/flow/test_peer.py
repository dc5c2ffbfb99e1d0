from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from cvlib.nn.flow import ConditionalFlow, VectorEmbedder

pytest.importorskip("FrEIA")
_spec = importlib.util.spec_from_file_location("peer", Path(__file__).with_name("peer.py"))
peer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(peer)


@pytest.mark.parametrize("width, n_blocks, is_conditional", [(32, 20, True), (16, 3, False), (512, 2, True)])
@torch.no_grad()
def test_freia_with_the_same_weights_gives_the_same(width, n_blocks, is_conditional):
    embedder = VectorEmbedder((6, 8, 4)) if is_conditional else None
    flow = ConditionalFlow(8, width, n_blocks=n_blocks, embedder=embedder)
    x, cond = torch.randn(10, 8), torch.randn(10, 6) if is_conditional else None
    v, logdet = flow(x, cond)
    theirs, h = peer.FreiaFlow(flow), embedder(cond) if is_conditional else None
    torch.testing.assert_close((v, logdet), theirs(x, h), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.inverse(v, cond), theirs.inverse(v, h), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_small_flows_are_faster_than_freia():
    """The ratio on a quiet machine is above 2; the bound is for a busy one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        flow = ConditionalFlow(32, 64, n_blocks=10, embedder=peer.embedder_for(32))
        x, cond = torch.randn(16, 32), torch.randn(16, 32)
        flow(x, cond)
        theirs = peer.FreiaFlow(flow)
        with torch.no_grad():
            ratio = peer.race(lambda: flow(x, cond), lambda: theirs(x, flow.embedder(cond)), rounds=9)
    finally:
        torch.set_num_threads(threads)
    assert ratio > 1.3
