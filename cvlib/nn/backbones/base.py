"""What all backbones share: stages to run apart, preprocessing of their own, BatchNorm that can be frozen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.precision import quick_bf16

__all__ = ["Backbone", "BatchNorm", "Classifier"]


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm that can be frozen: it then uses its running statistics for good, whatever calls ``train()``.

    The switch sits in the layer, so it holds in copies and in parts taken out of the network too.
    """

    frozen = False

    def freeze(self) -> None:
        """Stay in evaluation mode from now on; weight and bias remain trainable."""
        self.frozen = True
        super().train(False)

    def train(self, mode: bool = True) -> BatchNorm:
        return super().train(mode and not self.frozen)


class Backbone(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to a map of features (B, ``width``, h, w), not yet pooled.

    A network names itself (``name``), its ``width`` D, the ``image_size`` it was made for and, if its weights
    want it, the ``mean`` and ``std`` of colours in [0, 1]; it lists its ``stages``.
    """

    name: str
    width: int
    image_size: int
    resize_to: int  # shorter side before the crop to image_size, for whole photographs
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The network in order, stage after stage, without preprocessing, pooling and classifier."""
        raise NotImplementedError  # abstract: each network lists its own

    def preprocess(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W), given in [-1, 1], with the colours that the weights were trained on.

        (x - mean) / std per channel, with x in [0, 1]. :meth:`forward` does it; do not do it twice.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise BookError(f"images of shape {tuple(images.shape)}", "(B, 3, H, W)")
        return images * self.scale + self.shift

    def crop(self, images: Tensor) -> Tensor:
        """Return the middle of photographs (B, 3, H, W) at the size of the weights' own evaluation.

        The shorter side is resized to ``resize_to`` (bicubic, antialiased), then ``image_size`` is cut out;
        values stay in [-1, 1].
        """
        height, width = images.shape[2:]
        scale = self.resize_to / min(height, width)
        size = (max(self.resize_to, round(height * scale)), max(self.resize_to, round(width * scale)))
        images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        top, left = ((side - self.image_size) // 2 for side in size)
        return images[:, :, top : top + self.image_size, left : left + self.image_size].clamp(-1, 1)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return what comes out of ``stages[start:stop]``, both as in a slice.

        x is what goes into the first of them: images in [-1, 1] for stage 0, else what ``run`` returned with
        ``stop=start``. So ``net.run(net.run(images, stop=-2), start=-2)`` is ``net(images)``, and the middle
        can be kept while only the last stages learn.
        """
        stages = self.stages
        first, last, _ = slice(start, stop).indices(len(stages))
        x = self.preprocess(x) if first == 0 else x
        with quick_bf16(x):
            for stage in stages[first:last]:
                x = stage(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.run(images)

    def freeze_batch_norm(self) -> Backbone:
        """Use every BatchNorm's running statistics from now on, in training too; return the network.

        The paper's protocol for fine-tuning: weights and biases of the norms still learn.
        """
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.freeze()
        return self


class Classifier(Backbone):
    """A backbone with the linear layer ``fc`` that it was trained under."""

    fc: nn.Linear

    def logits(self, images: Tensor) -> Tensor:
        """Return class scores (B, n_classes) of images (B, 3, H, W) in [-1, 1]: ``fc`` of the mean map."""
        scores: Tensor = self.fc(self.forward(images).mean((2, 3)))
        return scores


def init_weights(net: nn.Module) -> None:
    """He initialisation by fan out for convolutions; norms start as the identity, the classifier small."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
