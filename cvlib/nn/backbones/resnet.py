"""ResNet-50 and ResNet-101 with the names and shapes of torchvision's weights.

Source: He et al. 2016, Table 1 and Fig. 5; the stride of a block sits in its 3 x 3 convolution ("v1.5"), as
in torchvision, not in the first 1 x 1 as in the paper.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.nn.backbones.base import BatchNorm, Classifier, init_weights
from cvlib.nn.backbones.layered import Layered, filled

__all__ = ["Bottleneck", "ResNet", "ResNet50", "ResNet101", "resnet50", "resnet101"]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a fourfold widening at the end, around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out = 4 * channels
        self.conv1, self.bn1 = nn.Conv2d(in_channels, channels, 1, bias=False), BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = BatchNorm(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, out, 1, bias=False), BatchNorm(out)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out, 1, stride, bias=False), BatchNorm(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(Layered, Classifier):
    """A residual network of bottlenecks; features at 1/32 of the size, D = 2048.

    ``stages`` are conv1 (with its pooling) to conv5_x of the paper's Table 1: 64, 256, 512, 1024 and 2048
    channels. ``layers``, from 0 on: convolution, norm, ReLU and pooling, the four groups of blocks (4 to 7),
    mean, flattening, ``fc`` and softmax.
    """

    width, image_size, resize_to = 2048, 224, 256
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    blocks: tuple[int, int, int, int]  #: how many in each of the four groups

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), BatchNorm(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._layer(64, 64, self.blocks[0], stride=1)
        self.layer2 = self._layer(256, 128, self.blocks[1], stride=2)
        self.layer3 = self._layer(512, 256, self.blocks[2], stride=2)
        self.layer4 = self._layer(1024, 512, self.blocks[3], stride=2)
        self.fc = nn.Linear(self.width, n_classes)
        init_weights(self)

    @staticmethod
    def _layer(in_channels: int, channels: int, n: int, stride: int) -> nn.Sequential:
        later = [Bottleneck(4 * channels, channels, 1) for _ in range(n - 1)]
        return nn.Sequential(Bottleneck(in_channels, channels, stride), *later)

    @property
    def stages(self) -> Sequence[nn.Module]:
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool)
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]

    @property
    def layers(self) -> Sequence[nn.Module]:
        stem = [self.conv1, self.bn1, self.relu, self.maxpool]
        end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), self.fc, nn.Softmax(1)]
        return [*stem, self.layer1, self.layer2, self.layer3, self.layer4, *end]


class ResNet50(ResNet):
    """25,557,032 parameters with its 1000 classes."""

    name = "resnet-50"
    blocks = (3, 4, 6, 3)


class ResNet101(ResNet):
    """44,549,160 parameters with its 1000 classes."""

    name = "resnet-101"
    blocks = (3, 4, 23, 3)


def resnet50(weights: str | os.PathLike[str] | None = None) -> ResNet50:
    """Return ResNet-50 in evaluation mode, with weights from a local file in torchvision's layout.

    The file is any that :func:`cvlib.nn.checkpoints.read_state` takes, such as torchvision's
    ResNet50_Weights.IMAGENET1K_V1 or one trained on stylised ImageNet; None gives random weights.

    Raises: BookError if the file is absent, damaged, holds more than tensors, or is of another network.
    """
    return filled(ResNet50(), weights)


def resnet101(weights: str | os.PathLike[str] | None = None, n_classes: int = 1000) -> ResNet101:
    """Return ResNet-101 in evaluation mode, with weights from a local file; see :func:`resnet50`.

    The classifiers released with Rombach et al. 2020a (Making Sense of CNNs) tell apart 149 animals, or 10.
    """
    return filled(ResNet101(n_classes), weights)
