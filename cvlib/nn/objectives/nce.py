"""Noise-contrastive estimation over a queue, weighted by distance. Source: Milbich et al. 2020 (DaNCE)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.errors import BookError
from cvlib.nn.objectives.pairs import distances
from cvlib.nn.objectives.sampling import log_inverse_density
from cvlib.nn.precision import without_autocast

__all__ = ["distance_weighted_nce", "distance_weights"]


@torch.no_grad()
def distance_weights(
    similarity: Tensor,
    dim: int,
    lower: float = 0.5,
    upper: float = 1.4,
    normalize: Literal["row", "column"] = "row",
) -> Tensor:
    """Return weights (B, N) in proportion to 1 / q(distance), from cosines of queries with a queue.

    Distances below ``lower`` count as ``lower``, those beyond ``upper`` weigh 0. The weights of a row, one
    query over the queue, sum to 1. ``"column"`` is what the authors released first: each entry's weights over
    the batch sum to 1. A row (column) all of which lies beyond is weighed evenly, as by the floor of the
    authors' code. No gradient. Source: Milbich et al. 2020; q as in :func:`log_inverse_density`.
    """
    axis = {"row": 1, "column": 0}[normalize]
    r = distances(similarity)
    beyond = r > upper
    log_weights = log_inverse_density(r.clamp(min=lower), dim).masked_fill(beyond, -torch.inf)
    # an all -inf row would be 0 / 0; zeros make it even
    return log_weights.masked_fill(beyond.all(dim=axis, keepdim=True), 0).softmax(dim=axis)


def distance_weighted_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: float = 0.1,
    lower: float = 0.5,
    upper: float = 1.4,
    normalize: Literal["row", "column"] = "row",
) -> Tensor:
    """Return the cross-entropy of telling each query's key from a queue of other keys, a scalar in fp32.

    Logits are q.k / T for the key and w_j q.u_j / T for queue entry j, w as in :func:`distance_weights`: the
    weight multiplies the similarity, not the probability. Shapes: query, key (B, d), queue (N, d); their
    rows have length 1. Key and queue come from a momentum encoder and get no gradient. Source: Milbich et al.
    2020, whose runs have T = 0.01.

    Raises: BookError for other shapes or lengths (more than 1 % from 1; NaN too).
    """
    if query.shape != key.shape or query.dim() != 2 or queue.dim() != 2 or queue.shape[1] != query.shape[1]:
        shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, queue {tuple(queue.shape)}"
        raise BookError(shapes, "(B, d), (B, d), (N, d)")
    with without_autocast(query):
        q, k, u = (
            x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key.detach(), queue.detach())
        )
        _check_lengths(torch.cat([q.detach(), k, u]))
        similarity = q @ u.T
        weights = distance_weights(similarity, q.shape[1], lower, upper, normalize)
        own = (q * k).sum(dim=1, keepdim=True)
        logits = torch.cat([own, weights * similarity], dim=1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def _check_lengths(x: Tensor) -> None:
    if torch.compiler.is_compiling():
        return
    length = torch.linalg.vector_norm(x, dim=1)
    if not ((length - 1).abs() < 0.01).all():
        seen = f"rows of length {length.min().item():.3g} to {length.max().item():.3g}"
        raise BookError(seen, "length 1", "scale query, key and queue with unit()")
