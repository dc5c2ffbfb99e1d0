from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cvlib.errors import BookError
from cvlib.nn.objectives import (
    distance_weighted_triplets,
    log_inverse_density,
    push_classmates,
    random_triplets,
    semihard_triplets,
)

N = 20_000  # draws per anchor: a frequency is known within 0.0035, one standard error at most


def frequencies(index, size):
    """Share of each column in the draws of each anchor."""
    return F.one_hot(index.view(-1, size), size).float().mean(0)


def near(measured, wanted):
    torch.testing.assert_close(measured, wanted, rtol=0, atol=5 * 0.5 / math.sqrt(N))


@pytest.mark.parametrize("dim, wanted", [(128, (91, 18, -0.3, 4.6, 30)), (2048, (1484, 294, -0.3, 83, 496))])
def test_log_weights_of_known_distances(dim, wanted):
    got = log_inverse_density(torch.tensor([0.5, 1, math.sqrt(2), 1.6, 1.8]), dim)
    assert got.tolist() == pytest.approx(wanted, abs=0.55)
    assert log_inverse_density(torch.tensor([0.0, 2.0]), dim).isfinite().all()


def test_density_is_that_of_random_points_on_the_sphere():
    dim, edges = 6, torch.linspace(0.8, 1.8, 11)
    x = F.normalize(torch.randn(2, 400_000, dim), dim=2)
    counts = torch.histogram((x[0] - x[1]).norm(dim=1), edges).hist
    middles = (edges[1:] + edges[:-1]) / 2
    flat = counts * log_inverse_density(middles, dim).exp()  # q times 1/q
    torch.testing.assert_close(flat / flat.mean(), torch.ones(10), rtol=0.03, atol=0)


@pytest.mark.parametrize("upper", [1.4, None])
def test_negatives_follow_the_weights(upper, batch):
    e, labels = batch((4, 2, 6), dim=5, spread=2.0)
    drawn = distance_weighted_triplets(e, labels, 1.1, upper, per_anchor=N)
    r = torch.cdist(*[F.normalize(e.detach())] * 2)
    assert (r[labels[:, None] != labels] < 1.1).any()
    r = r.clamp(min=1.1)
    n = 5
    weights = r ** (2 - n) * (1 - r**2 / 4) ** ((3 - n) / 2)  # plain numbers, where they do not overflow
    if upper is not None:
        assert (r > upper).any()
        weights[r > upper] = 0
    weights[labels[:, None] == labels] = 0
    assert (weights.sum(1) > 0).all()
    near(frequencies(drawn.negative, 12), weights / weights.sum(1, keepdim=True))
    same = (labels[:, None] == labels).float().fill_diagonal_(0)
    near(frequencies(drawn.positive, 12), same / same.sum(1, keepdim=True))
    assert torch.equal(drawn.anchor, torch.arange(12).repeat(N)) and drawn.valid.all()


def test_anchor_with_far_negatives_only_takes_any_of_them():
    e, labels = (
        torch.tensor([[1.0, 0], [1, 0.1], [-1, 0], [-1, 1], [-1, -0.3]]),
        torch.tensor([0, 0, 1, 1, 1]),
    )
    drawn = distance_weighted_triplets(e, labels, per_anchor=N)
    near(frequencies(drawn.negative, 5)[0], torch.tensor([0, 0, 1, 1, 1]) / 3)


def test_wide_embeddings_take_the_nearest_without_overflow():
    e, labels = torch.randn(16, 2048), torch.arange(8).repeat(2)
    e[8] = 3 * e[1] + 1.5 * e[8]  # a near negative of item 1, in class 0
    drawn = distance_weighted_triplets(e, labels)
    assert drawn.negative[1] == 8 and drawn.valid.all()
    same = torch.ones(4, 2048)  # equal embeddings in two classes, at distance 0
    assert distance_weighted_triplets(same, torch.tensor([0, 0, 1, 1])).valid.all()
    opposite = torch.cat([same[:2], -same[:2]])
    assert distance_weighted_triplets(opposite, torch.tensor([0, 0, 1, 1]), upper=None).valid.all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda e, labels, g: distance_weighted_triplets(e, labels, per_anchor=3, generator=g),
        lambda e, labels, g: random_triplets(labels, per_anchor=3, generator=g),
        lambda e, labels, g: semihard_triplets(e, labels, margin=0.6, generator=g),
    ],
    ids=["distance", "random", "semi-hard"],
)
def test_triplets_are_triplets_and_repeatable(draw, batch):
    e, labels = batch((4, 3, 1, 2, 2), spread=1.0)
    first, again = (draw(e, labels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    other = draw(e, labels, torch.Generator().manual_seed(4))
    assert not torch.equal(first.negative, other.negative)
    a, p, n = (index[first.valid] for index in first[:3])
    assert len(a) and (a != p).all()
    assert torch.equal(labels[a], labels[p]) and (labels[a] != labels[n]).all()
    assert not first.valid[labels[first.anchor] == 2].any()  # the single has no positive
    assert not draw(e, torch.zeros_like(labels), None).valid.any()
    assert not draw(e, torch.arange(12), None).valid.any()


def test_random_triplets_are_uniform():
    labels = torch.tensor([0, 1, 0, 1, 0, 2])
    drawn = random_triplets(labels, per_anchor=N)
    near(frequencies(drawn.positive, 6)[2], torch.tensor([0.5, 0, 0, 0, 0.5, 0]))
    near(frequencies(drawn.negative, 6)[1], torch.tensor([0.25, 0, 0.25, 0, 0.25, 0.25]))


@pytest.mark.parametrize("squared", [True, False])
def test_semihard_negatives_lie_within_the_margin(squared, batch):
    e, labels = batch((3, 3, 4))
    power, margin = (2 if squared else 1), 0.5
    d = torch.cdist(*[F.normalize(e.detach())] * 2) ** power
    seen = [set() for _ in range(10)]
    for seed in range(300):
        drawn = semihard_triplets(e, labels, margin, squared, torch.Generator().manual_seed(seed))
        for a, p, n, valid in zip(*(x.tolist() for x in drawn), strict=True):
            semihard = [k for k in range(10) if labels[k] != labels[a] and 0 < d[a, k] - d[a, p] <= margin]
            assert valid == bool(semihard) and (n in semihard or not valid)
            seen[a] |= {(p, n)} if valid else set()
    wanted = [
        {
            (p, n)
            for p in range(10)
            for n in range(10)
            if p != a and labels[p] == labels[a] != labels[n] and 0 < d[a, n] - d[a, p] <= margin
        }
        for a in range(10)
    ]
    assert seen == wanted


def test_pushed_classmates(batch):
    e, labels = batch()
    triplets = distance_weighted_triplets(e, labels, per_anchor=1000)
    assert torch.equal(torch.stack(push_classmates(triplets, 0.0)), torch.stack(triplets))
    every = push_classmates(triplets, 1.0)
    assert torch.equal(every.positive, triplets.anchor) and torch.equal(every.negative, triplets.positive)
    some = push_classmates(triplets, 0.3, torch.Generator().manual_seed(0))
    switched = some.positive == some.anchor
    assert switched.float().mean() == pytest.approx(0.3, abs=0.015)  # 5 standard errors of 24,000 draws
    assert torch.equal(some.negative, torch.where(switched, triplets.positive, triplets.negative))
    assert torch.equal(some.positive[~switched], triplets.positive[~switched])


def test_broken_embeddings_are_not_sampled():
    with pytest.raises(BookError, match="NaN or infinity in 4 of 4"):
        distance_weighted_triplets(torch.full((4, 8), float("nan")), torch.tensor([0, 0, 1, 1]))
