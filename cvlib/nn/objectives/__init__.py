"""Objectives of deep metric learning, vectorised over the batch: ``loss = objective(embeddings, labels)``."""

from __future__ import annotations

from cvlib.nn.objectives.contrastive import ContrastiveLoss
from cvlib.nn.objectives.decorrelation import agreement, decorrelation_loss, reverse_gradient
from cvlib.nn.objectives.distillation import (
    S2SDTerms,
    max_plus_average,
    s2sd_loss,
    similarity_distillation,
)
from cvlib.nn.objectives.margin import MarginLoss, RMarginLoss
from cvlib.nn.objectives.multisimilarity import MultiSimilarityLoss
from cvlib.nn.objectives.nce import distance_weighted_nce, distance_weights
from cvlib.nn.objectives.pairs import Objective, unit
from cvlib.nn.objectives.proxies import NormSoftmaxLoss, ProxyAnchorLoss, ProxyNCALoss
from cvlib.nn.objectives.sampling import (
    Triplets,
    distance_weighted_triplets,
    log_inverse_density,
    push_classmates,
    random_triplets,
    semihard_triplets,
)
from cvlib.nn.objectives.triplet import TripletLoss

__all__ = [
    "ContrastiveLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NormSoftmaxLoss",
    "Objective",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RMarginLoss",
    "S2SDTerms",
    "TripletLoss",
    "Triplets",
    "agreement",
    "decorrelation_loss",
    "distance_weighted_nce",
    "distance_weighted_triplets",
    "distance_weights",
    "log_inverse_density",
    "max_plus_average",
    "push_classmates",
    "random_triplets",
    "reverse_gradient",
    "s2sd_loss",
    "semihard_triplets",
    "similarity_distillation",
    "unit",
]
