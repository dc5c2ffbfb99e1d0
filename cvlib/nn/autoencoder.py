"""Convolutional encoder and decoder of VQGAN: the two halves of a U-Net without its skip connections.

Source: Esser et al. 2021, Sec. 3.1 and Table 7 (the network of Ho et al. 2020, cut in the middle).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cvlib.nn.precision import without_autocast

__all__ = [
    "Architecture",
    "AttnBlock",
    "Decoder",
    "Downsample",
    "Encoder",
    "GroupNorm",
    "ResBlock",
    "Upsample",
]


class GroupNorm(nn.GroupNorm):
    """Group normalisation with at most 32 groups, statistics in fp32, result in the type of the input.

    Autocast would hand back fp32 and double the traffic of the SiLU behind it; the kernels sum in fp32
    whatever type they read, so nothing is lost by staying in bf16. The memory format of the input is kept.

    A group has at least ``group_width`` channels. With 1, the authors' 32 groups stand in narrow networks
    too, and in one of 32 channels each is normalised alone: how strong a colour is over the image is then
    lost. At the paper's 128 channels a group has 4. Widths that 32 does not divide (48) get the largest
    number of groups that divides both.

    >>> GroupNorm(128).num_groups, GroupNorm(48).num_groups, GroupNorm(32, group_width=4).num_groups
    (32, 16, 8)
    """

    def __init__(self, dim: int, group_width: int = 1) -> None:
        super().__init__(math.gcd(32, max(1, dim // group_width)), dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
        with without_autocast(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            # on a CPU the backward kernel for channels_last is up to 30 times slower: two copies are cheap
            y = F.group_norm(x.contiguous(), self.num_groups, weight, bias, self.eps)
        return y.contiguous(memory_format=torch.channels_last) if is_channels_last else y


class ResBlock(nn.Module):
    """Return ``shortcut(x) + residual(x)``, (B, dim_in, H, W) to (B, dim_out, H, W)."""

    def __init__(self, dim_in: int, dim_out: int, dropout: float = 0.0, group_width: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            GroupNorm(dim_in, group_width),
            nn.SiLU(),
            nn.Conv2d(dim_in, dim_out, 3, padding=1),
            GroupNorm(dim_out, group_width),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(dim_out, dim_out, 3, padding=1),
        )
        self.shortcut = nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class AttnBlock(nn.Module):
    """Return ``x`` plus what one head of self-attention gathers for each position from all the others.

    Cost grows with (H W)^2, so it stands only where the grid is small.
    """

    def __init__(self, dim: int, group_width: int = 1) -> None:
        super().__init__()
        self.norm = GroupNorm(dim, group_width)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        q, k, v = qkv.contiguous()  # fused kernels want the channels of a position side by side
        gathered = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(rearrange(gathered, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Return the map at half the size: a strided convolution, padded on the right and at the bottom only."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Return the map at twice the size: each value repeated 2 x 2, then a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape that an encoder and its decoder share; the defaults are the paper's for 256 px, f = 16.

    ``ch_mult`` gives each level's width in multiples of ``ch``; between levels the grid halves, so that
    f = 2^(levels - 1). ``resolution`` is nominal: it decides at which levels attention stands
    (``attn_resolutions``), while any height and width divisible by f pass. ``group_width`` is the least
    number of channels that :class:`GroupNorm` treats together. Source: Esser et al. 2021, Table 7.
    """

    ch: int = 128
    ch_mult: Sequence[int] = (1, 1, 2, 2, 4)
    n_res_blocks: int = 2
    attn_resolutions: Collection[int] = (16,)
    resolution: int = 256
    z_channels: int = 256
    dropout: float = 0.0
    group_width: int = 1

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the largest grid first."""
        return [self.ch * mult for mult in self.ch_mult]

    def res(self, dim_in: int, dim_out: int) -> ResBlock:
        return ResBlock(dim_in, dim_out, self.dropout, self.group_width)

    def level(self, i: int, dim_in: int, n_blocks: int) -> nn.Sequential:
        """Residual blocks of level ``i``, each followed by attention where the level attends."""
        level, dim = nn.Sequential(), self.widths[i]
        for j in range(n_blocks):
            level.add_module(f"res{j}", self.res(dim_in if j == 0 else dim, dim))
            if self.resolution // 2**i in self.attn_resolutions:
                level.add_module(f"attn{j}", AttnBlock(dim, self.group_width))
        return level

    def middle(self) -> nn.Sequential:
        """The bottleneck, where attention sees the whole image."""
        dim = self.widths[-1]
        return nn.Sequential(self.res(dim, dim), AttnBlock(dim, self.group_width), self.res(dim, dim))

    def head(self, dim_in: int, dim_out: int) -> nn.Sequential:
        norm = GroupNorm(dim_in, self.group_width)
        return nn.Sequential(norm, nn.SiLU(), nn.Conv2d(dim_in, dim_out, 3, padding=1))


class Encoder(nn.Module):
    """Map images (B, in_channels, H, W) to features (B, z_channels, H / f, W / f).

    29,298,176 parameters by default.
    """

    def __init__(self, architecture: Architecture | None = None, in_channels: int = 3) -> None:
        super().__init__()
        shape = architecture or Architecture()
        widths = shape.widths
        self.conv_in = nn.Conv2d(in_channels, shape.ch, 3, padding=1)
        self.levels = nn.Sequential()
        for i, dim_in in enumerate([shape.ch, *widths[:-1]]):
            level = shape.level(i, dim_in, shape.n_res_blocks)
            if i + 1 < len(widths):
                level.add_module("down", Downsample(widths[i]))
            self.levels.append(level)
        self.middle = shape.middle()
        self.head = shape.head(widths[-1], shape.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.levels(self.conv_in(x))))


class Decoder(nn.Module):
    """Map features (B, z_channels, h, w) to images (B, out_channels, f h, f w), not squashed to a range.

    The mirror of :class:`Encoder` with one residual block more at each level (42,449,795 parameters by
    default). There is no tanh: images live in [-1, 1] and are clamped only to be shown.
    """

    def __init__(self, architecture: Architecture | None = None, out_channels: int = 3) -> None:
        super().__init__()
        shape = architecture or Architecture()
        widths = shape.widths
        self.conv_in = nn.Conv2d(shape.z_channels, widths[-1], 3, padding=1)
        self.middle = shape.middle()
        self.levels = nn.Sequential()  # in the order of computation: the smallest grid first
        for i, dim_in in reversed(list(enumerate([*widths[1:], widths[-1]]))):
            level = shape.level(i, dim_in, shape.n_res_blocks + 1)
            if i > 0:
                level.add_module("up", Upsample(widths[i]))
            self.levels.append(level)
        self.head = shape.head(widths[0], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.levels(self.middle(self.conv_in(z))))

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the last convolution, at which the adaptive weight compares gradients (Eq. 7)."""
        conv = self.head[-1]
        assert isinstance(conv, nn.Conv2d)
        return conv.weight  # type: ignore[return-value]  # typed as Tensor, is a Parameter
