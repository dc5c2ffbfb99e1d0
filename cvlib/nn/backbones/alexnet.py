"""AlexNet with the names and shapes of torchvision's weights.

Source: Krizhevsky 2014 ("One weird trick"), the variant on one card: 64, 192, 384, 256 and 256 channels, no
local response normalisation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from cvlib.nn.backbones.layered import Layered, filled

__all__ = ["AlexNet", "alexnet"]


class AlexNet(Layered):
    """61,100,840 parameters with its 1000 classes; features (B, 256, 6, 6) of 224 or 227 pixels.

    ``stages`` are the five convolutions with what follows each. ``layers``, from 0 on: these in single steps
    (0 to 12), the mean to 6 x 6, flattening, three linear layers with dropout before and ReLU after the first
    two (15 to 21), and softmax. Its weights' own evaluation cuts out 224 pixels; the paper gives it 227.
    """

    name = "alexnet"
    width, image_size, resize_to = 256, 224, 256
    layer_size = 227
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *[nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)],
            *[nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)],
            *[nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()],
            *[nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()],
            *[nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)],
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            *[nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU()],
            *[nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()],
            nn.Linear(4096, n_classes),
        )

    @property
    def stages(self) -> Sequence[nn.Module]:
        cuts = [0, 3, 6, 8, 10, 13]
        return [self.features[first:last] for first, last in pairwise(cuts)]

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [*self.features, self.avgpool, nn.Flatten(1), *self.classifier, nn.Softmax(1)]

    def logits(self, images: Tensor) -> Tensor:
        """Return class scores (B, n_classes) of images (B, 3, H, W) in [-1, 1], from 63 pixels up."""
        scores: Tensor = self.classifier(self.avgpool(self.forward(images)).flatten(1))
        return scores


def alexnet(weights: str | os.PathLike[str] | None = None, n_classes: int = 1000) -> AlexNet:
    """Return AlexNet in evaluation mode, with weights from a local file in torchvision's layout.

    The file is any that :func:`cvlib.nn.checkpoints.read_state` takes, such as torchvision's
    AlexNet_Weights.IMAGENET1K_V1; None gives random weights.

    Raises: BookError if the file is absent, damaged, holds more than tensors, or is of another network.
    """
    return filled(AlexNet(n_classes), weights)
