from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner

from cvlib.nn.objectives import TripletLoss, random_triplets


def terms(e, labels, margin, squared, mining):
    """Loops over all triplets of the batch."""
    e, found = F.normalize(e), []
    for a, p, n in itertools.product(range(len(e)), repeat=3):
        if a != p and labels[a] == labels[p] != labels[n]:
            d_ap, d_an = ((e[a] - e[i]).square().sum() for i in (p, n))
            gap = d_an - d_ap if squared else d_an.sqrt() - d_ap.sqrt()
            if mining == "all" or 0 < gap <= margin:
                found.append((margin - gap).clamp(min=0))
    return torch.stack(found)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mining", ["all", "semihard"])
@pytest.mark.parametrize("mean_over", ["mined", "active"])
def test_equals_the_loop(squared, mining, mean_over, batch, agree):
    e, labels = batch((4, 3, 1, 2), spread=0.7)
    losses = terms(e, labels, 0.4, squared, mining)
    active = losses[losses > 0]
    assert len(active) and (mining == "semihard" or len(active) < len(losses))
    ours = TripletLoss(0.4, squared, mining, mean_over)(e, labels)
    agree(ours, active.mean() if mean_over == "active" else losses.mean(), e)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("mining", ["all", "semihard"])
def test_equals_the_peer(squared, mining, batch, agree):
    e, labels = batch()
    distance = LpDistance(power=2 if squared else 1)
    miner = TripletMarginMiner(0.2, type_of_triplets=mining, distance=distance)
    peer = TripletMarginLoss(0.2, distance=distance)(e, labels, miner(e, labels))
    agree(TripletLoss(0.2, squared, mining, "active")(e, labels), peer, e)


def test_drawn_triplets(batch, agree):
    e, labels = batch((4, 3, 1, 2))
    drawn = random_triplets(labels)
    a, p, n = (index[drawn.valid] for index in drawn[:3])
    truth = F.triplet_margin_loss(*(F.normalize(e)[i] for i in (a, p, n)), margin=0.2)
    agree(TripletLoss(0.2, squared=False)(e, labels, triplets=drawn), truth, e)
