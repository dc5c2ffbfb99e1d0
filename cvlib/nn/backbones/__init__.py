"""Networks that turn images into maps of features, each with its own preprocessing."""

from __future__ import annotations

from cvlib.nn.backbones.alexnet import AlexNet, alexnet
from cvlib.nn.backbones.base import Backbone, BatchNorm, Classifier
from cvlib.nn.backbones.efficientnet import EfficientNetLite0, MBConv, efficientnet_lite0
from cvlib.nn.backbones.layered import Layered
from cvlib.nn.backbones.resnet import Bottleneck, ResNet, ResNet50, ResNet101, resnet50, resnet101
from cvlib.nn.backbones.small import SmallCNN
from cvlib.nn.backbones.splits import Layer, alexnet_layers, resnet101_layers

__all__ = [
    "AlexNet",
    "Backbone",
    "BatchNorm",
    "Bottleneck",
    "Classifier",
    "EfficientNetLite0",
    "Layer",
    "Layered",
    "MBConv",
    "ResNet",
    "ResNet50",
    "ResNet101",
    "SmallCNN",
    "alexnet",
    "alexnet_layers",
    "efficientnet_lite0",
    "resnet50",
    "resnet101",
    "resnet101_layers",
]
