"""A linear code and a network that refines what it paints: the best code that a short training finds.

Principal components keep most of what a few hundred numbers can keep of small pictures, but smear every
edge. To sharpen a smeared picture is a local task, which a convolutional network learns in minutes and can
do for pictures of things it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.nn.autoencoder import GroupNorm, ResBlock, Upsample
from cvlib.nn.gaussian import DiagonalGaussian
from cvlib.nn.precision import without_autocast

__all__ = ["LinearEncoder", "RefiningDecoder", "enlarge", "shrink"]


def shrink(x: Tensor, size: int) -> Tensor:
    """Return images (B, 3, S, S) at ``size`` px, a divisor of S: the mean of each square."""
    return F.avg_pool2d(x.float() if x.dtype == torch.bfloat16 else x, x.shape[-1] // size)


def enlarge(x: Tensor, size: int) -> Tensor:
    """Return images (B, 3, s, s) at ``size`` px, bilinearly."""
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


class LinearEncoder(nn.Module):
    """Map images (B, 3, S, S) to a Gaussian: its mean is linear in the image at ``thumbnail`` px.

    The log-variance of each of the ``dim`` features is learned, the same for all images.
    """

    def __init__(self, dim: int, thumbnail: int, channels: int = 3, outputs: int | None = None) -> None:
        super().__init__()
        self.thumbnail = thumbnail
        self.linear = nn.Linear(channels * thumbnail**2, dim if outputs is None else outputs)
        self.log_variance = nn.Parameter(torch.full((dim,), -6.0))  # little noise at first

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stands before the linear code (B, 0), and what it reads, flat (B, 3 thumbnail²)."""
        seen = shrink(x, self.thumbnail).flatten(1)
        return seen[:, :0], seen

    def forward(self, x: Tensor) -> DiagonalGaussian:
        with without_autocast(x):
            mean = self.linear(self.look(x)[1].to(self.linear.weight.dtype))
            return DiagonalGaussian(torch.cat([mean, self.log_variance.expand_as(mean)], 1))


class RefiningDecoder(nn.Module):
    """Map z (B, dim) to images (B, 3, side, side): a linear map to a thumbnail, enlarged, plus a refinement.

    The refinement is what a U-shaped network, one level for each of ``widths`` with ``n_blocks`` residual
    blocks on either side, says of the thumbnail; it never works at full size.
    """

    def __init__(self, side: int, dim: int, thumbnail: int, widths: Sequence[int], n_blocks: int) -> None:
        super().__init__()
        self.side, self.thumbnail = side, thumbnail
        self.linear = nn.Linear(dim, 3 * thumbnail**2)
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)

        def blocks(width: int) -> nn.Sequential:
            return nn.Sequential(*(ResBlock(width, width, group_width=4) for _ in range(n_blocks)))

        self.down = nn.ModuleList(blocks(width) for width in widths)
        self.fall = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.rise = nn.ModuleList(nn.Sequential(Upsample(b), nn.Conv2d(b, a, 1)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(blocks(width) for width in widths)
        self.norm = GroupNorm(widths[0], 4)
        self.last = nn.Conv2d(widths[0], 3 * (side // thumbnail) ** 2, 3, padding=1)

    def paint(self, z: Tensor) -> Tensor:
        """Return the thumbnails (B, 3, thumbnail, thumbnail) that are to be refined."""
        return self.linear(z).unflatten(1, (3, self.thumbnail, self.thumbnail))

    def forward(self, z: Tensor) -> Tensor:
        with without_autocast(z):
            small = self.paint(z.to(self.linear.weight.dtype))
        x, passed = self.first(small), []
        for k, block in enumerate(self.down):
            x = block(x if not k else self.fall[k - 1](x))
            passed.append(x)
        for k in reversed(range(len(self.up))):
            x = self.up[k](x if k == len(self.up) - 1 else passed[k] + self.rise[k](x))
        fine = F.pixel_shuffle(self.last(F.silu(self.norm(x))), self.side // self.thumbnail)
        return enlarge(small, self.side) + fine

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, at which the adaptive weight compares gradients."""
        return self.last.weight  # type: ignore[return-value]  # typed as Tensor, is a Parameter
