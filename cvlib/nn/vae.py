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
from cvlib.nn.framed import FRAME, FramedDecoder, FramedEncoder
from cvlib.nn.gaussian import DiagonalGaussian
from cvlib.nn.precision import without_autocast
from cvlib.nn.refining import LinearEncoder, RefiningDecoder, enlarge

__all__ = ["DiagonalGaussian", "VectorAutoencoder", "VectorDecoder", "VectorEncoder", "calibrated_nll"]


class VectorEncoder(nn.Module):
    """Map images (B, 3, side, side) in [-1, 1] to :class:`DiagonalGaussian` of ``dim`` features.

    Squares of ``patch`` pixels become channels first. Each width then halves the grid by a convolution of
    stride 2 and is followed by ``n_blocks`` residual blocks; what is left of the grid is read place by place
    by one linear layer.
    """

    def __init__(self, side: int, dim: int, widths: Sequence[int], n_blocks: int, patch: int = 1) -> None:
        super().__init__()
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
        return DiagonalGaussian(self.head(self.layers(x)))


class VectorDecoder(nn.Module):
    """Map z (B, dim) to images (B, 3, side, side), not squashed to a range: the encoder's mirror."""

    def __init__(self, side: int, dim: int, widths: Sequence[int], n_blocks: int, patch: int = 1) -> None:
        super().__init__()
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
        return self.layers(self.tail(z))

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, at which the adaptive weight compares gradients."""
        return self.last.weight  # type: ignore[return-value]  # typed as Tensor, is a Parameter


class VectorAutoencoder(nn.Module):
    """Encoder E and decoder D with x ≈ D(z), z ~ E(x), and the learned scalar log-variance λ of the error.

    With ``patch`` 2 the networks never work at full size, where on a CPU nearly all of the time goes. With
    ``thumbnail`` E is linear in the image at that size, and D refines what a linear map paints
    (:mod:`cvlib.nn.refining`); ``framed``, the first eight features are the frame that a network reads, and
    linear is what is left (:mod:`cvlib.nn.framed`). :meth:`start_from` sets both to principal components.
    Raises: BookError if patches and widths halve the image away, or leave a remainder, or the thumbnail does;
    or if there is a frame and no thumbnail, or nothing beside the frame.

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
        framed: bool = False,
    ) -> None:
        super().__init__()
        if thumbnail and (side % thumbnail or thumbnail % 2 ** (len(widths) - 1)):
            wanted = f"a divisor of the side that {len(widths)} widths can halve, or 0"
            raise BookError(f"thumbnails of {thumbnail} px for {side} px", wanted)
        if not thumbnail and (not widths or patch < 1 or side % (patch * 2 ** len(widths))):
            raise BookError(
                f"{len(widths)} halvings of {side} px in patches of {patch}",
                "at least one, without a remainder",
                "change widths or patch",
            )
        if framed and (not thumbnail or dim <= FRAME or side % 32):
            seen = f"a frame, {dim} features, thumbnails of {thumbnail} px for {side} px"
            raise BookError(seen, f"thumbnails, a multiple of 32 px, more than {FRAME} features")
        self.config: dict[str, Any] = {
            "side": side,
            "dim": dim,
            "widths": list(widths),
            "n_blocks": n_blocks,
            "patch": patch,
            "thumbnail": thumbnail,
            "framed": framed,
        }
        self.encoder: VectorEncoder | LinearEncoder
        self.decoder: VectorDecoder | RefiningDecoder
        if framed:
            self.encoder = FramedEncoder(side, dim, thumbnail)
            self.decoder = FramedDecoder(side, dim, thumbnail, widths, n_blocks)
        elif thumbnail:
            self.encoder = LinearEncoder(dim, thumbnail)
            self.decoder = RefiningDecoder(side, dim, thumbnail, widths, n_blocks)
        else:
            self.encoder = VectorEncoder(side, dim, widths, n_blocks, patch)
            self.decoder = VectorDecoder(side, dim, widths, n_blocks, patch)
        self.log_variance = nn.Parameter(torch.zeros(()))  # λ

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Return the posterior of images (B, 3, side, side) in [-1, 1]."""
        side = self.config["side"]
        if x.shape[1:] != (3, side, side):
            raise BookError(f"images {tuple(x.shape)}", f"(B, 3, {side}, {side})")
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 3, side, side) of latents (B, dim) or (B, dim, 1, 1).

        Or of their first numbers alone, (B, k): a linear code has its most telling numbers first, and those
        that are missing are taken at their mean, 0. Raises: BookError for more than dim numbers.
        """
        z, dim = z.flatten(1), self.config["dim"]
        if z.shape[1] > dim:
            raise BookError(f"latents {tuple(z.shape)}", f"(B, {dim}), or fewer numbers")
        return self.decoder(F.pad(z, (0, dim - z.shape[1])))

    def first(self, dim: int) -> VectorAutoencoder:
        """Return an autoencoder of the first ``dim`` numbers alone: networks copied, linear maps cut.

        It decodes as :meth:`decode` does from so many numbers. Raises: BookError without linear maps, for no
        more numbers than the frame has, or for more than there are.
        """
        framed = FRAME if self.config["framed"] else 0
        if not isinstance(self.encoder, LinearEncoder) or not framed < dim <= self.config["dim"]:
            seen = f"the first {dim} numbers of {self.config}"
            raise BookError(seen, f"a linear code, {framed + 1} to {self.config['dim']} numbers")
        part = VectorAutoencoder(**{**self.config, "dim": dim})
        state = dict(self.state_dict())
        for name in ("encoder.linear.weight", "encoder.linear.bias"):
            state[name] = state[name][: dim - framed]
        state["encoder.log_variance"] = state["encoder.log_variance"][:dim]
        state["decoder.linear.weight"] = state["decoder.linear.weight"][:, : dim - framed]
        part.load_state_dict(state)
        return part

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Set both linear maps to principal components of ``images`` (N, 3, side, side), the rest to zero.

        With s_k the deviation of component u_k and 2 s that of the first one left out, each feature is half
        as noisy as what is left out: z_k = (u_k . (thumbnail - mean) + s eps) / sqrt(s_k^2 + s^2), of unit
        variance over the images. The decoder paints the mean plus the sum of the u_k, each times
        z_k s_k^2 / sqrt(s_k^2 + s^2): the best linear guess, from which the networks go on. λ becomes the
        logarithm of its mean error.
        ``framed``, thumbnails are of lifted drawings, and the frame keeps its little noise. Draws from
        torch's global generator.
        Raises: BookError without linear maps, or with as many components as images.
        """
        if not isinstance(self.encoder, LinearEncoder) or not isinstance(self.decoder, RefiningDecoder):
            seen = "an autoencoder without thumbnails"
            raise BookError(seen, "linear maps to set", "give thumbnail a size")
        reader, painter = self.encoder.linear, self.decoder.linear
        dim = reader.out_features
        if len(images) <= dim:
            raise BookError(f"{len(images)} images for {dim} components", f"at least {dim + 1}")
        found = torch.cat([self.encoder.look(x.float())[1] for x in images.split(256)])
        mean = found.mean(0)
        _, s, u = torch.svd_lowrank(found - mean, q=min(len(images), found.shape[1], 2 * dim), niter=4)
        s = (s / math.sqrt(len(images) - 1)).clamp_min(1e-6)
        s, left, u = s[:dim], s[min(dim, len(s) - 1)] / 2, u[:, :dim]
        whole = (s**2 + left**2).sqrt()
        reader.weight.copy_((u / whole).T)
        reader.bias.copy_(-mean @ (u / whole))
        painter.weight.copy_(u * (s**2 / whole))
        painter.bias.copy_(mean)
        self.encoder.log_variance[-dim:].copy_(2 * (left / whole).log())
        for parameter in self.decoder.last.parameters():
            parameter.zero_()
        error = 0.0
        for x in images.split(256):
            z = self.encode(x).sample()
            error += (enlarge(self.decoder.paint(z), x.shape[-1]) - x).abs().mean().item() * len(x)
        self.log_variance.fill_(math.log(max(error / len(images), 1e-6)))

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
