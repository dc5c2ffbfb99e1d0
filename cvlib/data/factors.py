"""Pictures with known factors: a transparent drawing, turned, moved, tinted and laid on a background."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data.base import STEP

__all__ = [
    "TARGETS",
    "Factors",
    "compose",
    "factor_targets",
    "factors_from",
    "hue_matrix",
    "lay_on",
    "placement",
    "sample_factors",
    "yiq",
]

# Luma and two colour differences (ITU-R BT.601): turning the latter two leaves greys and luma unchanged.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ[1:] -= _YIQ[1:].mean(1, keepdim=True)  # the rounded rows of the standard do not sum to exactly 0


@dataclass(frozen=True)
class Factors:
    """What was done to each of B drawings; float tensors, one row a drawing.

    background (B, 3) in [-1, 1]; hue (B,) radians; scale (B,), 1 keeps the size; shift (B, 2), right and down
    as fractions of the image's side; rotation (B,) radians, counter-clockwise.
    """

    background: Tensor
    hue: Tensor
    scale: Tensor
    shift: Tensor
    rotation: Tensor

    NAMES = ("red", "green", "blue", "hue", "scale", "right", "down", "rotation")

    def __len__(self) -> int:
        return len(self.hue)

    def __getitem__(self, rows: slice | Tensor) -> Factors:
        return Factors.from_tensor(self.tensor()[rows])

    def tensor(self) -> Tensor:
        """Return all factors as float (B, 8), columns as in ``Factors.NAMES``."""
        hue, scale, rotation = (one[:, None] for one in (self.hue, self.scale, self.rotation))
        return torch.cat([self.background, hue, scale, self.shift, rotation], 1)

    @classmethod
    def from_tensor(cls, table: Tensor) -> Factors:
        """The inverse of :meth:`tensor`."""
        return cls(table[:, :3], table[:, 3], table[:, 4], table[:, 5:7], table[:, 7])

    @classmethod
    def neutral(cls, n: int, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Factors:
        """Nothing done, on one background (white)."""
        table = torch.zeros(n, 8)
        table[:, :3], table[:, 4] = torch.tensor(background), 1.0
        return cls.from_tensor(table)


def sample_factors(
    n: int,
    generator: torch.Generator,
    *,
    hue: float = math.pi,
    scale: tuple[float, float] = (0.7, 1.1),
    shift: float = 0.1,
    rotation: float = math.pi / 6,
) -> Factors:
    """Return ``n`` independent draws: background uniform in the colour cube, scale log-uniform, the others
    uniform in [-bound, bound]. A bound of 0 switches a factor off without changing the others.

    >>> len(sample_factors(4, torch.Generator().manual_seed(0)))
    4
    """
    u = torch.rand(n, 8, generator=generator)
    low, high = (math.log(bound) for bound in scale)
    return Factors(
        background=2 * u[:, :3] - 1,
        hue=hue * (2 * u[:, 3] - 1),
        scale=torch.exp(low + (high - low) * u[:, 4]),
        shift=shift * (2 * u[:, 5:7] - 1),
        rotation=rotation * (2 * u[:, 7] - 1),
    )


TARGETS = ("red", "green", "blue", "hue, cosine", "hue, sine", "size", "right", "down", "rotation")
_SMALLEST, _LARGEST = math.log(0.7), math.log(1.1)


def factor_targets(factors: Tensor) -> Tensor:
    """Return ``factors`` (B, 8; columns as in ``Factors.NAMES``) as networks estimate them: (B, 9).

    Columns as in ``TARGETS``. Each has mean 0 and variance 1 under :func:`sample_factors` and its default
    bounds; the hue, an angle, comes as cosine and sine, and the size as the logarithm of the scale.
    """
    colour, hue, scale, shift, rotation = factors.split([3, 1, 1, 2, 1], dim=1)
    size = (scale.log() - (_SMALLEST + _LARGEST) / 2) / (_LARGEST - _SMALLEST) * 2
    turn = torch.cat([hue.cos(), hue.sin()], 1) * math.sqrt(2)
    even = torch.cat([size, shift / 0.1, rotation / (math.pi / 6)], 1)  # uniform in [-1, 1]
    return torch.cat([colour * math.sqrt(3), turn, even * math.sqrt(3)], 1)


def factors_from(targets: Tensor) -> Tensor:
    """The inverse of :func:`factor_targets`: (B, 9) to (B, 8). Of cosine and sine only the angle counts.

    >>> table = sample_factors(5, torch.Generator().manual_seed(0)).tensor()
    >>> torch.allclose(factors_from(factor_targets(table)), table, atol=1e-5)
    True
    """
    colour, turn, even = targets.split([3, 2, 4], dim=1)
    size, right, down, rotation = (even / math.sqrt(3)).unbind(1)
    scale = (size * (_LARGEST - _SMALLEST) / 2 + (_SMALLEST + _LARGEST) / 2).exp()
    hue = torch.atan2(turn[:, 1], turn[:, 0])
    rest = torch.stack([hue, scale, right * 0.1, down * 0.1, rotation * (math.pi / 6)], 1)
    return torch.cat([colour / math.sqrt(3), rest], 1)


def yiq(images: Tensor) -> Tensor:
    """Return luma and the two colour differences of YIQ (BT.601) of images (B, 3, H, W), (B, 3, H, W).

    Linear, and without an offset: of images in [-1, 1] the luma lies in [-1, 1]. A turn of the hue by
    :func:`hue_matrix` turns the two colour differences by the same angle about 0, where the greys are.
    """
    return torch.einsum("ij,bjhw->bihw", _YIQ.to(images), images)


def hue_matrix(angle: Tensor) -> Tensor:
    """Return the (B, 3, 3) matrices that turn the hue of linear combinations of RGB by ``angle`` (B,).

    A rotation of the two colour-difference axes of YIQ (BT.601), so luma and greys stay; it is linear and
    has no offset, so it acts on premultiplied colours as on plain ones. Angle 0 gives the identity exactly.
    """
    yiq = _YIQ.to(angle)
    back = torch.linalg.inv(yiq)
    c, s = torch.cos(angle), torch.sin(angle)
    turn = torch.zeros(len(angle), 3, 3, device=angle.device, dtype=angle.dtype)
    # R - 1, so that the identity below is exact at angle 0
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = c - 1, -s, s, c - 1
    return torch.eye(3).to(angle) + back @ turn @ yiq


def lay_on(rgba: Tensor, background: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return premultiplied uint8 RGBA (B, 4, H, W) laid on ``background`` (B or 1, 3) in [-1, 1].

    With colour p and alpha a in [0, 1]: 2 p - a + (1 - a) b = (2 p - 1) + (1 - a)(b + 1).
    """
    clear = torch.add(torch.tensor(1.0, device=rgba.device), rgba[:, 3:], alpha=-1 / 255)
    colour = torch.add(torch.tensor(-1.0, device=rgba.device), rgba[:, :3], alpha=STEP, out=out)
    return colour.addcmul_(clear, (background + 1)[:, :, None, None])


def placement(factors: Factors) -> Tensor:
    """Return the maps (B, 2, 3) from a place in the image to that in the drawing, both in [-1, 1].

    The inverse of scale, then rotation, then shift; as ``torch.nn.functional.affine_grid`` takes it.
    """
    c, s = torch.cos(factors.rotation), torch.sin(factors.rotation)
    turn = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
    linear = turn / factors.scale[:, None, None]
    offset = linear @ (2 * factors.shift[:, :, None])  # places are counted in half images
    return torch.cat([linear, -offset], -1)


def compose(rgba: Tensor, factors: Factors) -> Tensor:
    """Return drawings with their factors applied, float (B, 3, S, S) in [-1, 1].

    ``rgba`` is uint8 (B, 4, S, S) or (B, S, S, 4) with premultiplied colour (`cvlib.data.render.premultiply`,
    `EmojiDataset.rgba`), so that bilinear sampling mixes no colour of clear pixels into the rim. The drawing
    is scaled and turned about its centre, then shifted, tinted, and laid on the background.
    Raises: ValueError for another shape or type.
    """
    if rgba.dtype != torch.uint8 or rgba.ndim != 4 or 4 not in (rgba.shape[1], rgba.shape[3]):
        raise ValueError(f"{rgba.dtype} {tuple(rgba.shape)}; wanted uint8 (B, 4, S, S) or (B, S, S, 4)")
    if rgba.shape[1] != 4:
        rgba = rgba.permute(0, 3, 1, 2)
    moved = (factors.shift != 0).any() or (factors.scale != 1).any() or (factors.rotation != 0).any()
    if not moved and not (factors.hue != 0).any():
        return lay_on(rgba, factors.background)
    drawn = rgba.to(torch.float32).div_(255)
    if moved:
        grid = F.affine_grid(placement(factors), list(drawn.shape), align_corners=False)
        drawn = F.grid_sample(drawn, grid, align_corners=False)
    colour, alpha = drawn[:, :3], drawn[:, 3:]
    if (factors.hue != 0).any():
        turned = torch.einsum("bij,bjhw->bihw", hue_matrix(factors.hue), colour)
        colour = torch.minimum(turned.clamp_(min=0), alpha)  # a premultiplied colour lies in [0, alpha]
    return (2 * colour - 1).addcmul_(1 - alpha, (factors.background + 1)[:, :, None, None])
