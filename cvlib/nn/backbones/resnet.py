"""ResNet-50 with the names and shapes of torchvision's weights.

Source: He et al. 2016, Table 1 and Fig. 5; the stride of a block sits in its 3 x 3 convolution ("v1.5"), as
in torchvision, not in the first 1 x 1 as in the paper.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.backbones.base import BatchNorm, Classifier, init_weights
from cvlib.train.weights import load_into, read_tensors

__all__ = ["Bottleneck", "ResNet50", "resnet50"]


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


class ResNet50(Classifier):
    """25,557,032 parameters with the classifier; features at 1/32 of the size, D = 2048.

    ``stages`` are conv1 (with its pooling) to conv5_x of the paper's Table 1: 64, 256, 512, 1024 and 2048
    channels.
    """

    name = "resnet-50"
    width, image_size, resize_to = 2048, 224, 256
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), BatchNorm(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._layer(64, 64, 3, stride=1)
        self.layer2 = self._layer(256, 128, 4, stride=2)
        self.layer3 = self._layer(512, 256, 6, stride=2)
        self.layer4 = self._layer(1024, 512, 3, stride=2)
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


def resnet50(weights: str | os.PathLike[str] | None = None) -> ResNet50:
    """Return ResNet-50 in evaluation mode, with weights from a local file in torchvision's layout.

    The file is a state dict (.pth, read with ``weights_only=True``, so that no code in it can run) or
    .safetensors, such as torchvision's ResNet50_Weights.IMAGENET1K_V1; None gives random weights.

    Raises: BookError if the file is absent, damaged, holds more than tensors, or is of another network.
    """
    net = ResNet50()
    if weights is not None:
        load_into(net, _read(Path(weights).expanduser(), net), str(weights))
    return net.eval()


def _read(path: Path, net: ResNet50) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        found = read_tensors(path)
    elif not path.is_file():
        raise BookError(f"{path} does not exist", "torchvision's weights of ResNet-50, .pth or .safetensors")
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BookError(
                f"{path} cannot be read as weights ({why[:120]})",
                "a state dict of tensors alone",
                "fetch it again, or save model.state_dict() of a model you trust",
            ) from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise BookError(f"{path} holds a {type(found).__name__}, not tensors by name", "a state dict")
    # files from before PyTorch 0.4.1 (resnet50-19c8e357.pth) do not count batches; nothing reads the count
    counters = {k: torch.zeros_like(v) for k, v in net.state_dict().items() if k.endswith("batches_tracked")}
    return counters | found
