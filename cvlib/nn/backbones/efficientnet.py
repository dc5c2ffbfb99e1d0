"""EfficientNet-Lite0: mobile inverted bottlenecks without squeeze-and-excitation, and with ReLU6.

Source: Tan and Le 2019, Table 1 (the B0 network), and the "Lite" release of its authors, which drops
squeeze-and-excitation, takes ReLU6 for swish and does not scale stem and head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.assets import member
from cvlib.nn.backbones.base import BatchNorm, Classifier, init_weights
from cvlib.train.weights import load_into

__all__ = ["EfficientNetLite0", "MBConv", "efficientnet_lite0"]

# Table 1, stages 2-8: expansion, kernel, stride of the first block, channels, blocks
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SameConv(nn.Conv2d):
    """Convolution whose output has ceil(size / stride) pixels, padded as the weights' own framework does.

    An odd number of padding pixels puts the extra one below and to the right; PyTorch's symmetric padding
    would shift every feature by half a pixel against the weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[2:]]
        (top, left), (bottom, right) = [p // 2 for p in pads], [p - p // 2 for p in pads]
        if (top, left) == (bottom, right):
            return F.conv2d(x, self.weight, None, stride, (top, left), 1, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, None, stride, 0, 1, self.groups)


def _unit(in_channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = SameConv(in_channels, out, kernel, stride, groups=groups, bias=False)
    return [conv, BatchNorm(out, eps=1e-3, momentum=0.01)]


class MBConv(nn.Sequential):
    """Widen by 1 x 1, filter each channel by itself, narrow by 1 x 1; the input is added where it fits.

    Source: Sandler et al. 2018 (MobileNetV2), Table 1. Linear at its narrow end: no activation after it.
    """

    def __init__(self, in_channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        wide = in_channels * expansion
        layers = [*_unit(in_channels, wide), nn.ReLU6()] if expansion > 1 else []
        layers += [*_unit(wide, wide, kernel, stride, groups=wide), nn.ReLU6(), *_unit(wide, out)]
        super().__init__(*layers)
        self.adds = stride == 1 and in_channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return x + y if self.adds else y


class EfficientNetLite0(Classifier):
    """4,652,008 parameters with the classifier; features at 1/32 of the size, D = 1280.

    ``stages`` are the nine of the paper's Table 1: the stem at 0, blocks at 1 to 7, the 1 x 1 head at 8.
    ``stages[6:]`` are the last five blocks and the head, 192 channels at 1/32 and up. Stochastic depth and
    dropout, which the authors trained it with, are left out.
    """

    name = "efficientnet-lite0"
    width, image_size, resize_to = 1280, 224, 256
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_unit(3, 32, 3, stride=2), nn.ReLU6())
        self.blocks = nn.ModuleList()
        channels = 32
        for expansion, kernel, stride, out, n in _STAGES:
            steps = [
                MBConv(out if i else channels, out, expansion, kernel, 1 if i else stride) for i in range(n)
            ]
            self.blocks.append(nn.Sequential(*steps))
            channels = out
        self.head = nn.Sequential(*_unit(channels, self.width), nn.ReLU6())
        self.fc = nn.Linear(self.width, n_classes)
        init_weights(self)

    @property
    def stages(self) -> Sequence[nn.Module]:
        return [self.stem, *self.blocks, self.head]


def _renamed(stored: Mapping[str, Tensor], net: EfficientNetLite0) -> dict[str, Tensor]:
    """The asset's tensors under this module's names: both list convolutions and norms in one order."""
    own, theirs = net.state_dict(), list(stored.values())
    return dict(zip(own, theirs, strict=True)) if len(own) == len(theirs) else dict(stored)


def efficientnet_lite0(pretrained: bool = True) -> EfficientNetLite0:
    """Return EfficientNet-Lite0 with ImageNet weights, in evaluation mode.

    Fetches asset ``efficientnet-lite0`` (18 MB) once; ``pretrained=False`` gives random weights and needs no
    asset. Raises: BookError if it can neither be found nor fetched.
    """
    net = EfficientNetLite0()
    if pretrained:
        path = member("efficientnet-lite0", "efficientnet-lite0-57934424.pth")
        stored = torch.load(path, map_location="cpu", weights_only=True)
        load_into(net, _renamed(stored, net), str(path))
    return net.eval()
