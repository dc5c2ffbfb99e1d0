from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cvlib.errors import BookError
from cvlib.nn.objectives import distance_weighted_nce, distance_weights


@pytest.mark.parametrize("normalize, name", [("row", "row"), ("column", "released")])
def test_golden(golden, normalize, name):
    wanted, _ = golden("diva")
    query = wanted["query"].requires_grad_()
    loss = distance_weighted_nce(query, wanted["key"], wanted["queue"], 0.1, normalize=normalize)
    torch.testing.assert_close(loss, wanted[f"dance_loss_{name}"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, query)
    torch.testing.assert_close(gradient, wanted[f"dance_grad_query_{name}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axis, normalize", [(1, "row"), (0, "column")])
def test_weights_sum_to_one_and_stop_at_the_cutoff(axis, normalize):
    similarity = F.normalize(torch.randn(12, 6)) @ F.normalize(torch.randn(40, 6)).T
    similarity[0, 0], similarity[1, 1] = 1.0, -1.0  # distances 0 and 2
    weights = distance_weights(similarity, 6, normalize=normalize)
    torch.testing.assert_close(weights.sum(axis), torch.ones(weights.shape[1 - axis]))
    beyond = similarity < 1 - 1.4**2 / 2
    assert beyond.any() and not weights[beyond].any() and weights[~beyond].all()


def test_weights_by_hand():
    r = torch.tensor([[0.3, 0.5, 0.9, 1.2, 1.5]])
    weights = distance_weights(1 - r**2 / 2, dim=7)
    plain = [max(x, 0.5) ** -5 * (1 - max(x, 0.5) ** 2 / 4) ** -2 for x in r[0, :4].tolist()]
    assert weights[0].tolist() == pytest.approx([p / sum(plain) for p in plain] + [0], rel=1e-4)


@pytest.mark.parametrize("normalize", ["row", "column"])
def test_queue_beyond_the_cutoff_is_weighed_evenly(normalize):
    weights = distance_weights(torch.full((4, 5), -0.5), 128, normalize=normalize)
    assert torch.equal(weights, torch.full((4, 5), 1 / {"row": 5, "column": 4}[normalize]))


def test_keys_and_queue_get_no_gradient(monkeypatch):
    query, key, queue = (F.normalize(torch.randn(n, 8)).requires_grad_() for n in (4, 4, 20))
    loss = distance_weighted_nce(query, key, queue)
    loss.backward()
    assert key.grad is None and queue.grad is None and query.grad.abs().max() > 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert distance_weighted_nce(query, key, queue) == loss
    with pytest.raises(BookError, match=r"queue \(20, 7\); wanted \(B, d\), \(B, d\), \(N, d\)"):
        distance_weighted_nce(query, key, queue[:, :7])
    with pytest.raises(BookError, match="rows of length 1 to 3; wanted length 1"):
        distance_weighted_nce(query, key, 3 * queue)
    with pytest.raises(BookError, match="rows of length nan"):
        distance_weighted_nce(query * torch.nan, key, queue)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # no look at the numbers then
    assert distance_weighted_nce(query * torch.nan, key, queue).isnan()
