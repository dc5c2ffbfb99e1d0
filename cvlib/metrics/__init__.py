"""Metrics, each with the number of samples behind it and the network in its name."""

from __future__ import annotations

from cvlib.metrics.distribution import PrecisionRecall, frechet, kid, precision_recall, real_floor
from cvlib.metrics.features import feature_batches
from cvlib.metrics.image import bits_per_dimension, psnr, ssim
from cvlib.metrics.scores import Score, metric_name

__all__ = [
    "PrecisionRecall",
    "Score",
    "bits_per_dimension",
    "feature_batches",
    "frechet",
    "kid",
    "metric_name",
    "precision_recall",
    "psnr",
    "real_floor",
    "ssim",
]
