from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MultiSimilarityLoss as PeerLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from cvlib.nn.objectives import MultiSimilarityLoss


def by_hand(e, labels, alpha, beta, threshold, epsilon):
    """Loops over anchors; returns the loss and the number of anchors that count."""
    s, terms = F.normalize(e) @ F.normalize(e).T, []
    for i in range(len(e)):
        positive = [s[i, j] for j in range(len(e)) if labels[j] == labels[i] and j != i]
        negative = [s[i, j] for j in range(len(e)) if labels[j] != labels[i]]
        if not positive or not negative:
            continue
        pulled = [x for x in positive if x - epsilon < max(negative)]
        pushed = [x for x in negative if x + epsilon > min(positive)]
        if pulled and pushed:
            pull = sum((-alpha * (x - threshold)).exp() for x in pulled)
            push = sum((beta * (x - threshold)).exp() for x in pushed)
            terms.append((1 + pull).log() / alpha + (1 + push).log() / beta)
    return torch.stack(terms).mean(), len(terms)


@pytest.mark.parametrize("values", [(2, 40, 0.5, 0.1), (3, 10, 0.2, 0.3)])
def test_equals_the_loop(values, batch, agree):
    e, labels = batch((4, 3, 1, 5, 3), spread=0.9)
    truth, kept = by_hand(e, labels, *values)
    assert 1 < kept < 15  # some anchors drop out besides the single one
    agree(MultiSimilarityLoss(*values)(e, labels), truth, e)


def test_equals_the_peer_up_to_anchors_without_pairs(batch, agree):
    e, labels = batch(spread=0.5)
    peer = PeerLoss(alpha=2, beta=40, base=0.5)(e, labels, MultiSimilarityMiner(0.1)(e, labels))
    _, kept = by_hand(e, labels, 2, 40, 0.5, 0.1)
    assert kept < 24  # the peer's mean is over all 24
    agree(MultiSimilarityLoss()(e, labels), peer, e, factor=24 / kept)


def test_steep_exponents_do_not_overflow(batch):
    e, labels = batch()
    objective = MultiSimilarityLoss(alpha=2000, beta=2000, threshold=0.1, epsilon=3)  # every pair is kept
    loss = objective(e, labels)
    s, same = (F.normalize(e) @ F.normalize(e).T).detach(), labels[:, None] == labels
    # log(1 + sum exp(b x)) / b tends to the largest (x)_+, here within log(24) / 2000 on both sides
    lowest, highest = s.masked_fill(~same, 1).amin(1), s.masked_fill(same, -1).amax(1)
    limit = (0.1 - lowest).clamp(min=0) + (highest - 0.1).clamp(min=0)
    assert loss.item() == pytest.approx(limit.mean().item(), abs=2 * math.log(24) / 2000)
    assert torch.autograd.grad(loss, e)[0].isfinite().all()
