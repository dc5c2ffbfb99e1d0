"""What all objectives owe to their input: units, defined values where a batch says nothing, clear errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cvlib.errors import BookError
from cvlib.nn.objectives import (
    ContrastiveLoss,
    MarginLoss,
    MultiSimilarityLoss,
    NormSoftmaxLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RMarginLoss,
    TripletLoss,
    unit,
)
from cvlib.nn.objectives.pairs import checked, distances, pair_masks

RANKING = {
    "margin": lambda: MarginLoss(8),
    "margin, shared beta": lambda: MarginLoss(None, divisor="triplets"),
    "r-margin": lambda: RMarginLoss(8, p=0.4),
    "multisimilarity": lambda: MultiSimilarityLoss(),
    "triplet": lambda: TripletLoss(),
    "triplet, semi-hard": lambda: TripletLoss(squared=False, mining="semihard", mean_over="active"),
}
PROXIES = {
    "proxy nca": lambda: ProxyNCALoss(8, 16),
    "proxy nca, negatives": lambda: ProxyNCALoss(8, 16, negatives_only=True),
    "proxy anchor": lambda: ProxyAnchorLoss(8, 16),
    "norm softmax": lambda: NormSoftmaxLoss(8, 16),
}
ALL = RANKING | PROXIES | {"contrastive": lambda: ContrastiveLoss()}


def each(table):
    return pytest.mark.parametrize("make", table.values(), ids=table)


def seeded(objective, *batch):
    torch.manual_seed(5)
    return objective(*batch)


@each(ALL)
def test_length_of_embeddings_does_not_matter(make, batch):
    (e, labels), objective = batch(), make()
    loss = seeded(objective, e, labels)
    assert loss.shape == () and loss > 1e-3
    torch.testing.assert_close(seeded(objective, e * torch.rand(24, 1) * 9 + 0 * e, labels), loss)
    (gradient,) = torch.autograd.grad(loss, e)
    # what does not depend on the length has no gradient along it
    torch.testing.assert_close((gradient * e).sum(1), torch.zeros(24), rtol=0, atol=1e-5)


@each(ALL)
def test_fp32_under_autocast(make, batch):
    (e, labels), objective = batch(), make()
    half = e.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = seeded(objective, half, labels)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, seeded(objective, half.float(), labels), rtol=1e-6, atol=0)


@each(ALL)
def test_labels_of_any_integer_type(make, batch):
    (e, labels), objective = batch(), make()
    torch.testing.assert_close(
        seeded(objective, e, labels.to(torch.int16)), seeded(objective, e, labels), rtol=0, atol=0
    )


@each(RANKING)
@pytest.mark.parametrize("sizes", [(6,), (1,) * 6, (1,)], ids=["no negatives", "no positives", "one image"])
def test_nothing_to_rank_is_zero_with_zero_gradient(make, sizes, batch):
    (e, labels), objective = batch(sizes), make()
    loss = objective(e, labels)
    assert loss == 0
    loss.backward()  # attached: a sum with other terms can be differentiated
    assert torch.equal(e.grad, torch.zeros_like(e))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in objective.parameters())


@each(RANKING | {"contrastive": lambda: ContrastiveLoss()})
def test_all_margins_met_is_zero_with_zero_gradient(make):
    labels = torch.tensor([0, 0, 1, 1])
    e = torch.eye(16)[labels].requires_grad_()  # classmates equal, classes orthogonal
    objective = make()
    if isinstance(objective, MarginLoss):
        objective.p = 0  # pushing classmates apart is never satisfied here
    loss = objective(e, labels)
    # the root over distances has 1e-8 under it, so that equal vectors are 1e-4 apart
    assert 0 <= loss < 1.5e-4
    (gradient,) = torch.autograd.grad(loss, e)
    assert gradient.abs().max() < 1e-5


@each(ALL)
def test_class_of_one_sample_is_harmless(make, batch):
    """Its place in the loss is compared with loops and the peer, objective by objective."""
    e, labels = batch((3, 3, 1), spread=3.0)
    loss = make()(e, labels)
    (gradient,) = torch.autograd.grad(loss, e)
    assert loss > 0 and gradient.isfinite().all()


@each(ALL)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)], ids=["one zero row", "all zero"])
def test_zero_embeddings_have_finite_gradients(make, rows, batch):
    e, labels = batch()
    e = e.detach().clone()
    e[rows] = 0
    e.requires_grad_()
    objective = make()
    loss = objective(e, labels)
    (gradient,) = torch.autograd.grad(loss, e)
    assert loss.isfinite() and gradient.isfinite().all() and gradient.abs().max() < 100


@each(ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_named(make, value, batch):
    e, labels = batch()
    with torch.no_grad():
        e[3, 2] = e[9] = value
    with pytest.raises(BookError, match=r"in 2 of 24 embeddings \(first: row 3\)"):
        make()(e, labels)


@each(ALL)
def test_wrong_batches_are_named(make):
    objective = make()
    for shapes in [((4, 16), (3,)), ((4,), (4,)), ((0, 16), (0,)), ((4, 16), (4, 1))]:
        e, labels = torch.randn(shapes[0]), torch.zeros(shapes[1], dtype=torch.long)
        with pytest.raises(BookError, match=r"wanted \(B, d\) and \(B,\) with B at least 1"):
            objective(e, labels)
    for labels in (torch.zeros(4), torch.zeros(4, dtype=torch.bool)):
        with pytest.raises(BookError, match="wanted integers"):
            objective(torch.randn(4, 16), labels)


@each(PROXIES | {"margin": lambda: MarginLoss(8)})
@pytest.mark.parametrize("label", [-1, 8])
def test_unknown_classes_are_named(make, label):
    labels = torch.tensor([0, 0, 1, label])
    with pytest.raises(BookError, match=rf"labels in {labels.min()}\.\.{labels.max()}; wanted 0\.\.8-1"):
        make()(torch.randn(4, 16), labels)


def test_masks_by_hand():
    positives, negatives = pair_masks(torch.tensor([4, 7, 4]))
    assert positives.nonzero().tolist() == [[0, 2], [2, 0]]
    assert negatives.nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_unit_and_distances_by_autograd():
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, x)
    torch.testing.assert_close(unit(x), F.normalize(x))
    e = unit(x)
    torch.testing.assert_close(distances(e @ e.T), (torch.cdist(e, e).square() + 1e-8).sqrt())


def test_zero_row_passes_its_gradient_unscaled():
    x = torch.zeros(1, 3, requires_grad=True)
    unit(x).backward(torch.tensor([[1.0, 2.0, 3.0]]))
    assert x.grad.tolist() == [[1, 2, 3]]


def test_numbers_are_not_looked_at_while_compiling(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    nan, labels = torch.full((2, 3), float("nan")), torch.tensor([0, 5])
    assert checked(nan, labels, 4).isnan().all()
    with pytest.raises(BookError, match="wanted integers"):
        checked(nan, labels.float())
