"""The Gaussian posterior of an autoencoder's latent. Source: Kingma and Welling 2014."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DiagonalGaussian"]

_LOG_VARIANCE = (-30.0, 10.0)  # the limits of the authors of Rombach et al. 2020a (Making Sense of CNNs)


class DiagonalGaussian:
    """q(z|x) = N(mean, diag(exp(log_variance))) of a batch: both (B, dim), in fp32 at least."""

    def __init__(self, moments: Tensor) -> None:
        """Take ``moments`` (B, 2 dim): mean beside log-variance, which is kept in [-30, 10]."""
        moments = moments.to(torch.promote_types(moments.dtype, torch.float32))
        self.mean, log_variance = moments.chunk(2, dim=1)
        self.log_variance = log_variance.clamp(*_LOG_VARIANCE)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return z = mean + sigma eps (B, dim), through which gradients pass."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) (B,) in nats: 1/2 sum(mean^2 + sigma^2 - 1 - log sigma^2)."""
        square = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return square.sum(1) / 2
