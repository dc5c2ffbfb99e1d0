"""Metrics, each with the number of samples behind it and the network in its name."""

from __future__ import annotations

from cvlib.metrics.clustering import Clustering, cluster_scores, pair_f1
from cvlib.metrics.distribution import PrecisionRecall, frechet, kid, precision_recall, real_floor
from cvlib.metrics.embedding import Density, densities, singular_values, spectral_decay
from cvlib.metrics.features import feature_batches
from cvlib.metrics.image import bits_per_dimension, psnr, ssim
from cvlib.metrics.retrieval import Retrieval, neighbours, retrieval_scores
from cvlib.metrics.scores import Score, metric_name

__all__ = [
    "Clustering",
    "Density",
    "PrecisionRecall",
    "Retrieval",
    "Score",
    "bits_per_dimension",
    "cluster_scores",
    "densities",
    "feature_batches",
    "frechet",
    "kid",
    "metric_name",
    "neighbours",
    "pair_f1",
    "precision_recall",
    "psnr",
    "real_floor",
    "retrieval_scores",
    "singular_values",
    "spectral_decay",
    "ssim",
]
