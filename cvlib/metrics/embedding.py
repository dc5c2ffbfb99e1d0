"""How an embedding uses its space: spectral decay and the density of its classes.

Source: Roth et al. 2020 (Revisiting Training Strategies), Sec. 5; used by Milbich et al. 2020 (DiVA) and Roth
et al. 2021 (S2SD).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.metrics.scores import checked_features

__all__ = ["Density", "class_ids", "densities", "singular_values", "spectral_decay", "unit_rows"]

_CHUNK = 8192  # rows factorised at once


def unit_rows(embeddings: Tensor) -> Tensor:
    """Return the embeddings (N, d) with rows scaled to length 1, in float64.

    Raises: BookError for another shape, no row, NaN or infinite values, or a row of length 0: it has no
    direction, and a network that makes such rows has collapsed.
    """
    z = checked_features("embedding", embeddings, 1)
    lengths = z.norm(dim=1, keepdim=True)
    if zero := int((lengths == 0).sum()):
        seen = f"{zero} of {len(z)} embeddings of length 0 (the first is row {int(lengths.argmin())})"
        raise BookError(seen, "rows that have a direction", "look for dead units in the last layer")
    return z / lengths


def class_ids(labels: Tensor, n: int, name: str = "labels") -> Tensor:
    """Return the labels (n,) as consecutive numbers 0..C-1, on the CPU.

    Raises: BookError unless they are n whole numbers in one dimension.
    """
    if labels.ndim != 1 or len(labels) != n or labels.is_floating_point() or labels.is_complex():
        raise BookError(f"{name} {tuple(labels.shape)} of {labels.dtype}", f"{n} whole numbers, ({n},)")
    return labels.detach().cpu().unique(return_inverse=True)[1]


def singular_values(embeddings: Tensor) -> Tensor:
    """Return all d singular values, descending, of the unit-length embeddings (N, d), not centred; float64.

    Rows are folded into a triangular factor piece by piece, so memory is bounded and small values are not
    lost as they are when the Gram matrix is squared together.

    Raises: BookError for what :func:`unit_rows` refuses, and for N < d: d - N values would be 0 by
    construction.
    """
    z = unit_rows(embeddings)
    if len(z) < z.shape[1]:
        raise BookError(f"{len(z)} embeddings of width {z.shape[1]}", f"at least {z.shape[1]} of them")
    factor = z[:0]
    for rows in z.split(_CHUNK):
        factor = torch.linalg.qr(torch.cat([factor, rows]), mode="r").R
    return torch.linalg.svdvals(factor)


def spectral_decay(embeddings: Tensor, drop: int = 0, *, reverse: bool = False) -> float:
    """Return ρ, how far the singular values are from being equal, in nats; lower means a flatter spectrum.

    With p the singular values divided by their sum and U uniform: ρ = KL(U‖p), or KL(p‖U) with ``reverse``.
    ``drop`` leaves out that many of the largest values first, since one alone can rule the sum: the authors'
    ρ@k is ``drop = k - 1``, their ρ@-k the same reversed. N random unit vectors give a floor above 0 that
    grows with d/N: compare only at equal N and d.

    Returns inf if an axis of the space is not used at all (a singular value of 0 up to rounding), as KL(U‖p)
    wants; KL(p‖U) stays finite, at most ln d. All d values count (the authors' CPU path takes d - 1).

    Raises: BookError for what :func:`singular_values` refuses or if fewer than two values remain.
    """
    values = singular_values(embeddings)
    if not 0 <= drop <= len(values) - 2:
        raise BookError(f"drop={drop} of {len(values)} singular values", f"0 to {len(values) - 2}")
    # an axis that holds nothing but the rounding of the network that made the embeddings is not used
    eps = torch.finfo(torch.float64 if embeddings.dtype == torch.float64 else torch.float32).eps
    zero = values <= 64 * eps * values[0]
    values = values.masked_fill(zero, 0.0)[drop:]
    if not values.any():
        return math.inf if not reverse else math.nan  # nothing is left to have a spectrum
    p, n = values / values.sum(), len(values)
    if reverse:
        return max(0.0, float(torch.special.xlogy(p, p).sum()) + math.log(n))
    return max(0.0, -math.log(n) - float(p.log().mean()))


class Density(NamedTuple):
    """Mean cosine distances (0 to 2) inside classes and between their centres."""

    intra: float  #: mean over classes of the mean distance of two members
    inter: float  #: mean distance of two class centres, each scaled to length 1
    ratio: float  #: intra / inter, the embedding density: larger where classes are less compressed
    n_classes: int  #: with at least two members: those that ``intra`` averages
    n_single: int  #: with one member: they have no pair, and count in ``inter`` alone


def densities(embeddings: Tensor, labels: Tensor) -> Density:
    """Return :class:`Density` of the unit-length embeddings (N, d) with labels (N,).

    The mean over all pairs needs no pairs: the sum of all cosines in a class of n is |Σ z|² - n, so time and
    memory grow with N d.

    Raises: BookError for what :func:`unit_rows` and :func:`class_ids` refuse, for fewer than two classes, if
    no class has two members, or if all centres are equal (the ratio has no value).
    """
    z = unit_rows(embeddings)
    ids = class_ids(labels, len(z)).to(z.device)
    counts = torch.bincount(ids).double()
    many = counts > 1
    if len(counts) < 2 or not many.any():
        seen = f"{len(counts)} classes, {int(many.sum())} of them with two members"
        raise BookError(seen, "two classes, and two members in one")
    sums = torch.zeros(len(counts), z.shape[1], dtype=z.dtype, device=z.device).index_add_(0, ids, z)
    n = counts[many]
    cosines = (sums[many].square().sum(1) - n) / (n * (n - 1))
    intra = float((1 - cosines).mean().clamp_min(0))
    centres = torch.nn.functional.normalize(sums, dim=1)
    own = centres.square().sum()  # C, unless members cancel out to a centre of 0
    pairs = len(counts) * (len(counts) - 1)
    inter = float((1 - (centres.sum(0).square().sum() - own) / pairs).clamp_min(0))
    if inter < 1e-12:
        raise BookError("class centres that are all equal", "centres apart", "the embedding has collapsed")
    return Density(intra, inter, intra / inter, int(many.sum()), int((~many).sum()))
