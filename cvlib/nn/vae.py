"""Autoencoder with one vector for an image, drawn from a Gaussian: the expert under the invertible networks.

Source: Rombach et al. 2020a (Making Sense of CNNs), whose encoder is a ResNet-101 and whose decoder is that
of BigGAN; here both are small residual networks. Kingma and Welling 2014 for the objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.autoencoder import GroupNorm, ResBlock, Upsample
from cvlib.nn.precision import without_autocast

__all__ = ["DiagonalGaussian", "VectorAutoencoder", "VectorDecoder", "VectorEncoder", "calibrated_nll"]

_LOG_VARIANCE = (-30.0, 10.0)  # the authors' limits


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


def shrink(x: Tensor, size: int) -> Tensor:
    """Return images (B, 3, S, S) at ``size`` px, a divisor of S: the mean of each square."""
    return F.avg_pool2d(x.float() if x.dtype == torch.bfloat16 else x, x.shape[-1] // size)


def enlarge(x: Tensor, size: int) -> Tensor:
    """Return images (B, 3, s, s) at ``size`` px, bilinearly."""
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


class VectorEncoder(nn.Module):
    """Map images (B, 3, side, side) in [-1, 1] to :class:`DiagonalGaussian` of ``dim`` features.

    Squares of ``patch`` pixels become channels first. Each width then halves the grid by a convolution of
    stride 2 and is followed by ``n_blocks`` residual blocks; what is left of the grid is read place by place
    by one linear layer. With ``thumbnail`` pixels, the mean is the sum of what the layers say and of a linear
    map of the image at that size.
    """

    def __init__(
        self, side: int, dim: int, widths: Sequence[int], n_blocks: int, patch: int = 1, thumbnail: int = 0
    ) -> None:
        super().__init__()
        self.thumbnail = thumbnail
        self.linear = nn.Linear(3 * thumbnail**2, dim) if thumbnail else None
        self.layers = nn.Sequential(nn.PixelUnshuffle(patch))
        for before, after in pairwise((3 * patch**2, *widths)):
            self.layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            self.layers.extend(ResBlock(after, after, group_width=4) for _ in range(n_blocks))
        self.layers.extend([GroupNorm(widths[-1], 4), nn.SiLU(), nn.Flatten()])
        self.head = nn.Linear(widths[-1] * ((side // patch) >> len(widths)) ** 2, 2 * dim)
        nn.init.constant_(
            self.head.bias[dim:], -4.0
        )  # little noise at first, or the decoder learns to ignore z

    def forward(self, x: Tensor) -> DiagonalGaussian:
        moments = self.head(self.layers(x))
        if self.linear is not None:
            with without_autocast(x):
                mean = self.linear(shrink(x, self.thumbnail).flatten(1))
                moments = moments.to(mean.dtype) + F.pad(mean, (0, mean.shape[1]))
        return DiagonalGaussian(moments)


class VectorDecoder(nn.Module):
    """Map z (B, dim) to images (B, 3, side, side), not squashed to a range: the encoder's mirror."""

    def __init__(
        self, side: int, dim: int, widths: Sequence[int], n_blocks: int, patch: int = 1, thumbnail: int = 0
    ) -> None:
        super().__init__()
        self.side, self.thumbnail = side, thumbnail
        self.linear = nn.Linear(dim, 3 * thumbnail**2) if thumbnail else None
        small = (side // patch) >> len(widths)
        self.tail = nn.Sequential(nn.Linear(dim, widths[-1] * small**2), nn.Unflatten(1, (-1, small, small)))
        self.layers = nn.Sequential()
        for before, after in pairwise((*reversed(widths), max(8, widths[0] // 2))):
            self.layers.extend(ResBlock(before, before, group_width=4) for _ in range(n_blocks))
            self.layers.extend([Upsample(before), ResBlock(before, after, group_width=4)])
        self.last = nn.Conv2d(max(8, widths[0] // 2), 3 * patch**2, 3, padding=1)
        self.layers.extend(
            [GroupNorm(self.last.in_channels, 4), nn.SiLU(), self.last, nn.PixelShuffle(patch)]
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.layers(self.tail(z))
        if self.linear is not None:
            with without_autocast(z):
                small = self.linear(z.to(self.linear.weight.dtype)).unflatten(
                    1, (3, self.thumbnail, self.thumbnail)
                )
                x = x + enlarge(small, self.side)
        return x

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, at which the adaptive weight compares gradients."""
        return self.last.weight  # type: ignore[return-value]  # typed as Tensor, is a Parameter


class VectorAutoencoder(nn.Module):
    """Encoder E and decoder D with x ≈ D(z), z ~ E(x), and the learned scalar log-variance λ of the error.

    With ``patch`` 2 the networks never work at full size, where on a CPU nearly all of the time goes. With
    ``thumbnail`` both have a linear path beside them, which :meth:`start_from` sets to principal components.
    Raises: BookError if patches and widths halve the image away, or leave a remainder, or the thumbnail does.

    >>> net = VectorAutoencoder(side=16, dim=5, widths=(8, 16))
    >>> q = net.encode(torch.zeros(2, 3, 16, 16))
    >>> tuple(q.mean.shape), tuple(net.decode(q.sample()).shape)
    ((2, 5), (2, 3, 16, 16))
    """

    def __init__(
        self,
        side: int = 64,
        dim: int = 128,
        widths: Sequence[int] = (32, 64, 128, 256),
        n_blocks: int = 1,
        patch: int = 1,
        thumbnail: int = 0,
    ) -> None:
        super().__init__()
        if thumbnail and side % thumbnail:
            raise BookError(f"thumbnails of {thumbnail} px for {side} px", "a divisor of the side, or 0")
        if not widths or patch < 1 or side % (patch * 2 ** len(widths)):
            raise BookError(
                f"{len(widths)} halvings of {side} px in patches of {patch}",
                "at least one, without a remainder",
                "change widths or patch",
            )
        self.config: dict[str, Any] = {
            "side": side,
            "dim": dim,
            "widths": list(widths),
            "n_blocks": n_blocks,
            "patch": patch,
            "thumbnail": thumbnail,
        }
        self.encoder = VectorEncoder(side, dim, widths, n_blocks, patch, thumbnail)
        self.decoder = VectorDecoder(side, dim, widths, n_blocks, patch, thumbnail)
        self.log_variance = nn.Parameter(torch.zeros(()))  # λ

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Return the posterior of images (B, 3, side, side) in [-1, 1]."""
        side = self.config["side"]
        if x.shape[1:] != (3, side, side):
            raise BookError(f"images {tuple(x.shape)}", f"(B, 3, {side}, {side})")
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, side, side) of latents (B, dim) or (B, dim, 1, 1)."""
        return self.decoder(z.flatten(1))

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Set the linear paths to principal components of ``images`` (N, 3, side, side), the rest to zero.

        The mean of q is then z_k = u_k . (thumbnail - mean) / s_k, of unit variance over the images, and the
        decoder paints the mean plus the sum of s_k z_k u_k: the best linear code for N(0, I), from which the
        networks go on. λ becomes the logarithm of its mean error. Draws from torch's global generator.
        Raises: BookError without a linear path, or with as many components as images.
        """
        reader, painter, dim = self.encoder.linear, self.decoder.linear, self.config["dim"]
        if reader is None or painter is None:
            raise BookError(
                "an autoencoder without thumbnails", "a linear path to set", "give thumbnail a size"
            )
        if len(images) <= dim:
            raise BookError(f"{len(images)} images for {dim} components", f"at least {dim + 1}")
        small = shrink(images.float(), self.config["thumbnail"]).flatten(1)
        mean = small.mean(0)
        _, s, u = torch.svd_lowrank(small - mean, q=min(len(images), small.shape[1], 2 * dim), niter=4)
        u, s = u[:, :dim], (s[:dim] / math.sqrt(len(images) - 1)).clamp_min(1e-6)
        reader.weight.copy_((u / s).T)
        reader.bias.copy_(-mean @ (u / s))
        painter.weight.copy_(u * s)
        painter.bias.copy_(mean)
        self.encoder.head.weight.zero_()
        self.encoder.head.bias[:dim].zero_()
        for parameter in self.decoder.last.parameters():
            parameter.zero_()
        painted = enlarge(
            painter(reader(small)).unflatten(1, (3, self.config["thumbnail"], -1)), images.shape[-1]
        )
        self.log_variance.fill_((painted - images).abs().mean().clamp_min(1e-6).log())

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, DiagonalGaussian]:
        """Return D(z) for z ~ E(x), and E(x)."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(generator)), posterior


def calibrated_nll(error: Tensor, log_variance: Tensor, dimensions: int) -> Tensor:
    """Return sum over ``dimensions`` of (error e^-λ + λ), mean over the batch, in nats up to a constant.

    ``error`` (B,) is the mean error of a value of each image. The best λ is the logarithm of its mean, so
    that the weight of the error against the KL is learned. Source: Rombach et al. 2020a (authors' code).

    >>> from math import log
    >>> e = torch.tensor([0.1, 0.3])
    >>> best = calibrated_nll(e, torch.tensor(log(0.2)), 10)
    >>> all(best <= calibrated_nll(e, torch.tensor(log(0.2) + d), 10) for d in (-0.1, 0.1))
    True
    """
    with without_autocast(error):
        error = error.to(torch.promote_types(error.dtype, torch.float32))
        return dimensions * (error.mean() * (-log_variance).exp() + log_variance)
