"""How near an image is to its original, one number per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.errors import BookError

__all__ = ["bits_per_dimension", "psnr", "ssim"]


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim != 4:
        raise BookError(f"images of shapes {tuple(x.shape)} and {tuple(y.shape)}", "two equal (B, C, H, W)")
    for image in (x, y):
        if not (image.abs() <= 1 + 1e-4).all():  # also catches NaN
            raise BookError(
                f"images with values up to {image.abs().max():.4g}", "values in [-1, 1]", "clamp them"
            )
    return x.detach().float(), y.detach().float()


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, (B,); inf where the images are equal.

    10 log10(range² / MSE) with the range 2 of images in [-1, 1]; the same number as for 8-bit images.

    >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2))
    tensor([20.])
    """
    x, y = _checked(x, y)
    return 10 * torch.log10(4 / (x - y).square().mean((1, 2, 3)))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the structural similarity, (B,), at most 1.

    Source: Wang et al. 2004, with its Gaussian window of 11 pixels (sigma 1.5), K1 = 0.01, K2 = 0.03, per
    channel and averaged; windows that leave the image are not counted. Images need 11 pixels a side.
    """
    x, y = _checked(x, y)
    if min(x.shape[2:]) < 11:
        raise BookError(f"images of {x.shape[3]} x {x.shape[2]} pixels for SSIM", "at least 11 x 11")
    place = torch.arange(-5, 6, device=x.device, dtype=x.dtype)
    weights = torch.softmax(-place.square() / (2 * 1.5**2), 0)

    def mean(image: Tensor) -> Tensor:  # the window is separable
        image = F.conv2d(image.flatten(0, 1).unsqueeze(1), weights.view(1, 1, 11, 1))
        return F.conv2d(image, weights.view(1, 1, 1, 11)).reshape(len(x), -1)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    likeness = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return likeness.mean(1)


def bits_per_dimension(nats_per_token: float, n_tokens: int, n_dimensions: int) -> float:
    """Return an image's code length in bits per colour value from the NLL of its tokens.

    NLL · n_tokens / (ln 2 · n_dimensions), with n_dimensions = 3 · H · W. A code of an autoencoder leaves
    out what the decoder does not restore: compare only codes of one first stage.

    >>> bits_per_dimension(math.log(256), 3 * 32 * 32, 3 * 32 * 32)
    8.0
    """
    return nats_per_token * n_tokens / (math.log(2) * n_dimensions)
