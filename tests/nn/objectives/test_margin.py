from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import MarginLoss as PeerMarginLoss

from cvlib.nn.objectives import MarginLoss, RMarginLoss, Triplets, distance_weighted_triplets, random_triplets


def by_hand(e, labels, triplets, beta, margin, terms):
    """Loops over triplets, term by term."""
    e, total, active = F.normalize(e), 0, 0
    for a, p, n, valid in zip(*(x.tolist() for x in triplets), strict=True):
        if not valid:
            continue
        b = beta[labels[a]] if len(beta) > 1 else beta[0]
        pull = (e[a] - e[p]).square().sum().add(1e-8).sqrt() - b + margin
        push = b - (e[a] - e[n]).square().sum().add(1e-8).sqrt() + margin
        positive = [x for x in (pull, push) if x > 0]
        total = total + sum(positive)
        active += len(positive) if terms else bool(positive)
    return total / active


@pytest.mark.parametrize("divisor", ["terms", "triplets"])
@pytest.mark.parametrize("n_classes", [None, 5])
def test_equals_the_loop(n_classes, divisor, batch, agree):
    e, labels = batch((4, 3, 1, 5, 3))
    objective = MarginLoss(n_classes, margin=0.3, divisor=divisor)
    with torch.no_grad():
        objective.beta += 0.2 * torch.randn_like(objective.beta)
    triplets = random_triplets(labels, per_anchor=2)
    assert not triplets.valid.all()
    truth = by_hand(e, labels, triplets, objective.beta, 0.3, divisor == "terms")
    agree(objective(e, labels, triplets=triplets), truth, e, objective.beta)


@pytest.mark.parametrize("n_classes", [None, 8])
def test_equals_the_peer(n_classes, batch, agree):
    e, labels = batch()
    triplets = distance_weighted_triplets(e, labels, per_anchor=3)
    ours, peer = MarginLoss(n_classes), PeerMarginLoss(learn_beta=True, num_classes=n_classes)
    agree(ours(e, labels, triplets=triplets), peer(e, labels, triplets[:3]), e, (ours.beta, peer.beta))


def test_draws_are_distance_weighted_and_repeatable(batch):
    e, labels = batch()
    objective = MarginLoss(8, lower=0.7, upper=1.2, per_anchor=2)
    triplets = distance_weighted_triplets(e, labels, 0.7, 1.2, 2, torch.Generator().manual_seed(1))
    loss = objective(e, labels, generator=torch.Generator().manual_seed(1))
    assert loss == objective(e, labels, triplets=triplets)
    assert loss != objective(e, labels, generator=torch.Generator().manual_seed(2))


def test_beta_is_the_boundary_between_pull_and_push():
    angle = torch.tensor([0.0, 1.0, 1.5])  # distances 2 sin(angle / 2): 0.959 and 1.363
    e = torch.stack([angle.cos(), angle.sin()], dim=1).requires_grad_()
    one = Triplets(*torch.tensor([[0], [1], [2]]), torch.tensor([True]))
    objective = MarginLoss(None)
    loss = objective(e, torch.tensor([0, 0, 1]), triplets=one)
    # pull 0.959 - 1.2 + 0.2 < 0 is inactive, push 1.2 - 1.363 + 0.2 is the loss and moves beta by 1
    assert loss.item() == pytest.approx(1.4 - 2 * math.sin(0.75), abs=1e-6)
    loss.backward()
    assert objective.beta.grad.item() == 1


@pytest.mark.parametrize("objective", [MarginLoss(4), RMarginLoss(4)])
def test_beta_has_a_learning_rate_of_its_own(objective):
    assert objective.parameter_groups(1e-5) == [{"params": [objective.beta], "lr": 5e-4, "weight_decay": 0.0}]
    objective.beta.requires_grad_(False)
    assert objective.parameter_groups(1e-5) == []


def test_r_margin_without_regularisation_is_margin(batch):
    e, labels = batch()
    losses = [
        objective(e, labels, generator=torch.Generator().manual_seed(0))
        for objective in (RMarginLoss(8, p=0), MarginLoss(8, beta=0.6))
    ]
    assert losses[0] == losses[1] > 0


def test_r_margin_pushes_classmates_apart():
    e = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    loss = RMarginLoss(2, p=1)(e, labels)
    # classmates are 0.199 apart, and 0.6 + 0.2 is wanted; being near oneself costs nothing
    assert loss.item() == pytest.approx(0.8 - 0.2 / math.sqrt(1.01), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, e)
    assert (gradient[:, 1].sign() == -e[:, 1].sign()).all()
