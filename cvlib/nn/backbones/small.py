"""A small residual network for images of 32 pixels, to be trained from nothing on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.nn.backbones.base import Backbone, BatchNorm, init_weights

__all__ = ["SmallCNN"]


def _unit(in_channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, BatchNorm(out), nn.ReLU())


class _Residual(nn.Module):
    """x + BatchNorm(conv(x)), then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class SmallCNN(Backbone):
    """1.26 M parameters, 36 M multiplications an image of 32 px; features at 1/8 of the size, D = 512.

    Widths 32, 64, 128, 256, 512 over five ``stages``; the wide layers sit where the map is small, since time
    is what is scarce. BatchNorm, the quicker one to train from nothing with a hundred images a batch; a
    momentum copy of it must copy its running statistics too.
    """

    name = "small-cnn"
    width, image_size, resize_to = 512, 32, 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                _unit(3, 32),
                _unit(32, 64, stride=2),
                nn.Sequential(_unit(64, 128, stride=2), _Residual(128)),
                nn.Sequential(_unit(128, 256, stride=2), _Residual(256)),
                _unit(256, 512, kernel=1),
            ]
        )
        init_weights(self)

    @property
    def stages(self) -> Sequence[nn.Module]:
        return list(self.layers)
