"""Networks that turn images into maps of features, each with its own preprocessing."""

from __future__ import annotations

from cvlib.nn.backbones.base import Backbone, BatchNorm, Classifier
from cvlib.nn.backbones.efficientnet import EfficientNetLite0, MBConv, efficientnet_lite0
from cvlib.nn.backbones.resnet import Bottleneck, ResNet50, resnet50
from cvlib.nn.backbones.small import SmallCNN

__all__ = [
    "Backbone",
    "BatchNorm",
    "Bottleneck",
    "Classifier",
    "EfficientNetLite0",
    "MBConv",
    "ResNet50",
    "SmallCNN",
    "efficientnet_lite0",
    "resnet50",
]
