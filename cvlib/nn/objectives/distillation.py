"""Self-distillation of similarities from wide throw-away heads into the narrow embedding that is kept.

Source: Roth et al. 2021 (S2SD).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.errors import BookError
from cvlib.nn.objectives.pairs import unit
from cvlib.nn.precision import without_autocast

__all__ = ["S2SDTerms", "max_plus_average", "s2sd_loss", "similarity_distillation"]


class S2SDTerms(NamedTuple):
    """The sum of S2SD and its parts, scalars, each weighted as it enters the sum."""

    loss: Tensor
    metric: Tensor  #: half of the embedding's objective and half of the heads' mean
    heads: Tensor  #: distillation from the heads
    features: Tensor  #: distillation from the pooled features; 0 during the warm-up


def similarity_distillation(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, detach: bool = True
) -> Tensor:
    """Return T^2 times the mean over rows of KL(softmax(teacher / T) || softmax(student / T)), in nats.

    The inputs are embeddings (B, d) and (B, t) of one batch, of any length. Their rows of cosines, the
    diagonal and the own class included, are what is compared. The teacher gets no gradient, unless
    ``detach`` is false: then both move, the paper's ablation. A scalar in fp32.

    Cosines lie in [-1, 1], so at T = 1 and B = 112 the rows are nearly flat and the term is about 0.01: that
    is why its weight is 50. Whoever changes T, B or d has to choose the weight anew.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise BookError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}", "(B, d) and (B, t), B equal"
        )
    with without_autocast(student):
        own, other = (
            unit(x.to(torch.promote_types(x.dtype, torch.float32)))
            for x in (student, teacher.detach() if detach else teacher)
        )
        log_q = F.log_softmax(own @ own.T / temperature, dim=1)
        log_p = F.log_softmax(other @ other.T / temperature, dim=1)
        return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def max_plus_average(feature_map: Tensor) -> Tensor:
    """Return the sum of global maximum and global average (B, C) of a map (B, C, H, W).

    In MSDFA the heads and the feature teacher see this; the kept embedding still sees the average alone.
    """
    return feature_map.amax(dim=(2, 3)) + feature_map.mean(dim=(2, 3))


def s2sd_loss(
    embedding_loss: Tensor,
    head_losses: Sequence[Tensor],
    embeddings: Tensor,
    heads: Sequence[Tensor],
    features: Tensor | None = None,
    weight: float = 50.0,
    feature_weight: float = 50.0,
    temperature: float = 1.0,
    step: int = 0,
    warmup: int = 1000,
    detach: bool = True,
) -> S2SDTerms:
    """Return (L(f) + mean L(g_i)) / 2 + weight * mean D(f, g_i) + feature_weight * D(f, features).

    D is :func:`similarity_distillation`. One head is DSD, several are MSD; with ``features`` (B, C), the
    pooled output of the backbone, MSDF; with features and heads from :func:`max_plus_average` MSDFA. The last
    term waits until ``step`` (counted from 0) reaches ``warmup``, about an eighth of the training in short
    runs. Teachers are detached: heads learn from their own objective only, features teach and are not pulled.
    ``detach=False`` lets the heads (not the features) be pulled too.

    The half on L(f) is there without distillation too: the control "heads only" (weights 0) keeps it, a plain
    baseline has weight 1. Each head needs an objective (its own beta or proxies) and a sampling of its own.

    Shapes: embeddings (B, d), heads (B, t_i), losses scalar. Raises: BookError without heads or with another
    number of losses. Source: Roth et al. 2021; the feature weight there is 50, for SOP 5.
    """
    if not heads or len(heads) != len(head_losses):
        raise BookError(f"{len(heads)} heads with {len(head_losses)} losses", "one loss a head, at least one")
    metric = (embedding_loss + torch.stack(tuple(head_losses)).mean()) / 2
    teachers = [similarity_distillation(embeddings, head, temperature, detach) for head in heads]
    from_heads = weight * torch.stack(teachers).mean()
    from_features = torch.zeros_like(from_heads)
    if features is not None and step >= warmup:
        from_features = feature_weight * similarity_distillation(embeddings, features, temperature)
    return S2SDTerms(metric + from_heads + from_features, metric, from_heads, from_features)
