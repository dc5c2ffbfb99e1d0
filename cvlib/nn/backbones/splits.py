"""Where the paper cuts AlexNet and ResNet-101, the shape of z there, and the network H that embeds it.

Source: Rombach et al. 2020a (Making Sense of CNNs), the configurations in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cvlib.nn.flow.conditioning import MapEmbedder, VectorEmbedder, even_widths

__all__ = ["Layer", "alexnet_layers", "resnet101_layers"]


@dataclass(frozen=True)
class Layer:
    """A cut through a network: see :meth:`cvlib.nn.backbones.Layered.encode`."""

    split: int
    shape: tuple[int, int, int]  #: (C, h, w) of z; a vector has h = w = 1
    n_down: int = 0  #: how often H halves a map
    depth: int = 0  #: how many widths H has for a vector, its input's and its output's included

    def embedder(self, dim: int = 128) -> nn.Module:
        """Return the paper's H with random weights: z (B, C, h, w) to h (B, dim)."""
        channels, side, _ = self.shape
        if self.depth:
            return VectorEmbedder(even_widths(channels, dim, self.depth), norm="actnorm", slope=0.2)
        return MapEmbedder(channels, side, self.n_down, dim)


def resnet101_layers(n_classes: int = 149) -> dict[str, Layer]:
    """Return the cuts of ResNet-101 at 224 pixels; the paper's classifiers tell apart 149 animals, or 10.

    >>> resnet101_layers()["avgpool"]
    Layer(split=9, shape=(2048, 1, 1), n_down=0, depth=6)
    """
    return {
        "input": Layer(0, (3, 224, 224), n_down=5),
        "maxpool": Layer(4, (64, 56, 56), n_down=4),
        "layer1": Layer(5, (256, 56, 56), n_down=4),
        "layer2": Layer(6, (512, 28, 28), n_down=3),
        "layer3": Layer(7, (1024, 14, 14), n_down=2),
        "layer4": Layer(8, (2048, 7, 7), n_down=1),
        "avgpool": Layer(9, (2048, 1, 1), depth=6),
        "fc": Layer(11, (n_classes, 1, 1), depth=4),
        "softmax": Layer(12, (n_classes, 1, 1), depth=4),
    }


def alexnet_layers(n_classes: int = 1000) -> dict[str, Layer]:
    """Return the cuts of AlexNet at 227 pixels; "conv5", "fc6" and "fc7" come after their ReLU.

    >>> alexnet_layers()["conv5"]
    Layer(split=12, shape=(256, 13, 13), n_down=2, depth=0)
    """
    return {
        "conv5": Layer(12, (256, 13, 13), n_down=2),
        "fc6": Layer(18, (4096, 1, 1), depth=4),
        "fc7": Layer(21, (4096, 1, 1), depth=4),
        "fc8": Layer(22, (n_classes, 1, 1), depth=4),
        "softmax": Layer(23, (n_classes, 1, 1), depth=4),
    }
