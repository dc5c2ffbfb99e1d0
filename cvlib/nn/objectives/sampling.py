"""Triplets (anchor, positive, negative) drawn from a batch for all anchors at once.

Source: Wu et al. 2017, Sec. 4 (distance-weighted sampling); Schroff et al. 2015 (semi-hard); Roth et al.
2020 (rho-regularisation).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cvlib.nn.objectives.pairs import checked, distances, pair_masks, unit
from cvlib.nn.precision import without_autocast

__all__ = [
    "Triplets",
    "distance_weighted_triplets",
    "log_inverse_density",
    "push_classmates",
    "random_triplets",
    "semihard_triplets",
]


class Triplets(NamedTuple):
    """Indices into a batch, all (T,). T depends on the shape of the batch only."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor
    valid: Tensor  #: bool; False where the anchor had nothing to draw from: such a triplet must not count


def log_inverse_density(r: Tensor, dim: int) -> Tensor:
    """Return log 1/q(r) up to a constant, q the density of distances ``r`` of random points on a sphere.

    q(r) ~ r^(n-2) (1 - r^2/4)^((n-3)/2) on the sphere in ``dim`` = n dimensions (Wu et al. 2017, Sec. 4).
    The result is least near sqrt(2), where random points lie, and grows to both sides. The ends r = 0 and 2,
    where it is infinite, count as 1e-3 and 2 - 1e-6.
    """
    r = r.clamp(min=1e-3)
    return (2 - dim) * r.log() - (dim - 3) / 2 * (1 - r.square() / 4).clamp(min=1e-6).log()


def distance_weighted_triplets(
    embeddings: Tensor,
    labels: Tensor,
    lower: float = 0.5,
    upper: float | None = 1.4,
    per_anchor: int = 1,
    generator: torch.Generator | None = None,
) -> Triplets:
    """Return ``per_anchor`` triplets for each anchor, with negatives drawn in proportion to 1 / q(distance).

    The positive is uniform among the others of the class. Distances below ``lower`` get the weight of
    ``lower``. Beyond ``upper`` the weight is 0: with the usual margin loss such a negative has no gradient.
    The CompVis code switches that off (``upper=None``); then the weight rises again towards r = 2, and
    antipodes are preferred. An anchor all of whose negatives lie beyond takes any of them.

    The draw adds Gumbel noise to log weights and takes the largest: a multinomial draw per row that cannot
    overflow (in 2048 dimensions the weights span e^1484) and needs no sum. Embeddings need not be scaled.
    Source: Wu et al. 2017, Sec. 4.

    >>> e, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> distance_weighted_triplets(e, labels).positive
    tensor([1, 0, 3, 2])
    """
    similarity = _similarity(embeddings, labels)
    positives, negatives = pair_masks(labels)
    r = distances(similarity)
    log_weights = log_inverse_density(r.clamp(min=lower), embeddings.shape[1])
    if upper is not None:
        # log weights are above -1 (their minimum is near sqrt(2)) and the noise is below 70, so far negatives
        # come into play only where a row has no other, and then all alike
        log_weights = log_weights.masked_fill(r > upper, -1e4)
    positive = _draw(torch.zeros_like(r), positives, per_anchor, generator)
    negative = _draw(log_weights, negatives, per_anchor, generator)
    return _triplets(positive, negative, positives.any(1) & negatives.any(1))


def random_triplets(
    labels: Tensor, per_anchor: int = 1, generator: torch.Generator | None = None
) -> Triplets:
    """Return ``per_anchor`` triplets for each anchor, positive and negative uniform."""
    positives, negatives = pair_masks(labels)
    flat = torch.zeros(positives.shape, device=labels.device)
    positive, negative = (_draw(flat, mask, per_anchor, generator) for mask in (positives, negatives))
    return _triplets(positive, negative, positives.any(1) & negatives.any(1))


def semihard_triplets(
    embeddings: Tensor,
    labels: Tensor,
    margin: float = 0.2,
    squared: bool = True,
    generator: torch.Generator | None = None,
) -> Triplets:
    """Return a triplet for each anchor: positive uniform, negative uniform among the semi-hard ones.

    Semi-hard is a negative farther than the positive by at most ``margin``, in (squared) distances of the
    scaled embeddings. An anchor without any is not valid. Source: Schroff et al. 2015.
    """
    similarity = _similarity(embeddings, labels)
    d = 2 - 2 * similarity if squared else distances(similarity)
    positives, negatives = pair_masks(labels)
    positive = _draw(torch.zeros_like(d), positives, 1, generator)
    gap = d - d.gather(1, positive.T)
    semihard = negatives & (gap > 0) & (gap <= margin)
    negative = _draw(torch.zeros_like(d), semihard, 1, generator)
    return _triplets(positive, negative, positives.any(1) & semihard.any(1))


def push_classmates(triplets: Triplets, p: float, generator: torch.Generator | None = None) -> Triplets:
    """Return ``triplets`` in which, each with probability ``p``, the positive takes the negative's place.

    The anchor itself becomes the positive, so classmates are pushed apart and classes do not collapse.
    Source: Roth et al. 2020 (rho-regularisation).
    """
    noise = torch.rand(len(triplets.anchor), generator=generator, device=_device(triplets.anchor, generator))
    switched = noise.to(triplets.anchor.device) < p
    return triplets._replace(
        positive=torch.where(switched, triplets.anchor, triplets.positive),
        negative=torch.where(switched, triplets.positive, triplets.negative),
    )


@torch.no_grad()
def _similarity(embeddings: Tensor, labels: Tensor) -> Tensor:
    with without_autocast(embeddings):
        e = unit(checked(embeddings.detach(), labels))
        return e @ e.T


def _device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    return like.device if generator is None else generator.device


def _draw(log_weights: Tensor, allowed: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Return for each row n columns (n, B) with probability softmax(log_weights) over the allowed ones."""
    where = _device(log_weights, generator)
    noise = torch.empty(n, *log_weights.shape, device=where).exponential_(generator=generator)
    # -log(exponential) is Gumbel noise; a noise of 0 would be an infinite score
    scores = log_weights - noise.clamp_(min=1e-30).log_().to(log_weights.device)
    return scores.masked_fill_(~allowed, -torch.inf).argmax(dim=2)


def _triplets(positive: Tensor, negative: Tensor, valid: Tensor) -> Triplets:
    n, size = positive.shape
    anchor = torch.arange(size, device=positive.device).repeat(n)
    return Triplets(anchor, positive.flatten(), negative.flatten(), valid.repeat(n))
