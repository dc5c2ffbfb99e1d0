"""A code with a frame: how a drawing lies on its ground, told apart from what is drawn.

Principal components of pictures that are moved, turned and tinted at random spend most of their numbers on
where things lie. Here a network first reads the frame of a picture (ground, hue, size, place, turn: the
factors of :mod:`cvlib.data.factors`), the drawing is put upright in the middle, and only then a linear code
is taken of it. The decoder does the same backwards, and refines the result (:mod:`cvlib.nn.refining`).
The idea to undo a transformation that a network reads: Jaderberg et al. 2015 (Spatial Transformer Networks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.data.factors import TARGETS, Factors, factor_targets, factors_from, hue_matrix, placement
from cvlib.nn.backbones import SmallCNN
from cvlib.nn.gaussian import DiagonalGaussian
from cvlib.nn.precision import without_autocast
from cvlib.nn.refining import LinearEncoder, RefiningDecoder, shrink

__all__ = [
    "FRAME",
    "FrameReader",
    "FramedDecoder",
    "FramedEncoder",
    "factors_in",
    "frame_of",
    "lay_out",
    "lift",
    "map_head",
]

FRAME = len(Factors.NAMES)  # how many numbers of the code are the frame
_SURE = 0.3  # of 2: a pixel that differs so much from the ground belongs to the drawing


def map_head(width: int, places: int, outputs: int) -> nn.Sequential:
    """Return layers from a map of features (B, width, places, places) to ``outputs`` numbers."""
    return nn.Sequential(
        nn.Conv2d(width, 32, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * places**2, 256),
        nn.ReLU(),
        nn.Linear(256, outputs),
    )


class FrameReader(nn.Module):
    """Estimate the factors of pictures (B, 3, S, S) in [-1, 1], S = 16 ``places``.

    (B, 9), as :func:`cvlib.data.factors.factor_targets` has them. It looks at half the size, where a network
    from nothing learns four times as fast.
    """

    def __init__(self, places: int = 4) -> None:
        super().__init__()
        self.trunk = SmallCNN()
        self.head = map_head(self.trunk.width, places, len(TARGETS))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(F.avg_pool2d(images, 2)))


def frame_of(factors: Tensor) -> Tensor:
    """Return factors (B, 8) as the frame of a code (B, 8): each uniform with mean 0 and variance 1.

    As :func:`cvlib.data.factors.factor_targets`, but for the hue, which is one number again: in half turns,
    times the square root of 3.
    """
    colour, _, even = factor_targets(factors).split([3, 2, 4], dim=1)
    return torch.cat([colour, factors[:, 3:4] * (math.sqrt(3) / math.pi), even], 1)


def factors_in(frame: Tensor) -> Tensor:
    """The inverse of :func:`frame_of`, for any frame (B, 8); the scale is positive whatever stands there."""
    colour, hue, even = frame.split([3, 1, 4], dim=1)
    angle = hue * (math.pi / math.sqrt(3))
    table = factors_from(torch.cat([colour, angle.cos(), angle.sin(), even], 1))
    return torch.cat([table[:, :3], angle, table[:, 4:]], 1)


def lift(images: Tensor, factors: Tensor) -> Tensor:
    """Return what lies on the ground of images (B, 3, S, S), upright, in the middle and in its own hue.

    (B, 4, S, S): premultiplied colour and alpha, both in [0, 1]. Alpha is how far a pixel is from the ground,
    so a drawing's part in just the colour of the ground is missed; beyond the image there is nothing.
    ``factors`` (B, 8) as in ``Factors.NAMES``.
    """
    known = Factors.from_tensor(factors)
    away = (images - known.background[:, :, None, None]).abs().amax(1, keepdim=True)
    alpha = (away / _SURE).clamp(max=1)
    colour = torch.einsum("bij,bjhw->bihw", hue_matrix(-known.hue), alpha * (images + 1) / 2)
    there = placement(known)
    back = torch.linalg.inv(there[:, :, :2])  # from the drawing to the image
    theta = torch.cat([back, -back @ there[:, :, 2:]], -1)
    seen = torch.cat([colour, alpha], 1)
    grid = F.affine_grid(theta, list(seen.shape), align_corners=False)
    return F.grid_sample(seen, grid, align_corners=False)


def lay_out(drawings: Tensor, factors: Tensor) -> Tensor:
    """Return drawings (B, 4, S, S), premultiplied as :func:`lift` has them, on their ground: (B, 3, S, S).

    Linear in the drawings: nothing is cut off, as :func:`cvlib.data.factors.compose` does.
    """
    known = Factors.from_tensor(factors)
    grid = F.affine_grid(placement(known), list(drawings.shape), align_corners=False)
    colour, alpha = F.grid_sample(drawings, grid, align_corners=False).split([3, 1], dim=1)
    colour = torch.einsum("bij,bjhw->bihw", hue_matrix(known.hue), colour)
    return 2 * colour - 1 + (1 - alpha) * (known.background + 1)[:, :, None, None]


class FramedEncoder(LinearEncoder):
    """Map images (B, 3, S, S) to a Gaussian over FRAME + (dim - FRAME) numbers: frame, and a linear code.

    The reader is trained beforehand, by what it was told of the factors, and frozen: :func:`torch.no_grad`
    holds for it here whatever else is trained.
    """

    def __init__(self, side: int, dim: int, thumbnail: int) -> None:
        super().__init__(dim, thumbnail, channels=4, outputs=dim - FRAME)
        self.reader = FrameReader(side // 16)

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the frame (B, 8) and the lifted thumbnail, flat (B, 4 thumbnail²)."""
        with torch.no_grad(), without_autocast(x):
            factors = factors_from(self.reader(x.float()))
            factors[:, :3] = factors[:, :3].clamp(-1, 1)
            return frame_of(factors), shrink(lift(x.float(), factors), self.thumbnail).flatten(1)

    def forward(self, x: Tensor) -> DiagonalGaussian:
        with without_autocast(x):
            frame, seen = self.look(x)
            mean = torch.cat([frame, self.linear(seen)], 1)
            return DiagonalGaussian(torch.cat([mean, self.log_variance.expand_as(mean)], 1))


class FramedDecoder(RefiningDecoder):
    """Map z (B, dim) to images (B, 3, side, side): a linear map paints the drawing, its frame lays it out."""

    def __init__(self, side: int, dim: int, thumbnail: int, widths: Sequence[int], n_blocks: int) -> None:
        super().__init__(side, dim, thumbnail, widths, n_blocks)
        self.linear = nn.Linear(dim - FRAME, 4 * thumbnail**2)

    def paint(self, z: Tensor) -> Tensor:
        """Return the thumbnails (B, 3, thumbnail, thumbnail) that are to be refined."""
        frame, code = z.split([FRAME, z.shape[1] - FRAME], dim=1)
        drawings = self.linear(code).unflatten(1, (4, self.thumbnail, self.thumbnail))
        return lay_out(drawings, factors_in(frame))
