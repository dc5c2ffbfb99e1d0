"""Networks as one list of layers that can be cut anywhere: f = Psi o Phi, where z = Phi(x) passes the cut.

Source: Rombach et al. 2020a (Making Sense of CNNs); the numbers of the cuts are those of the authors' code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.backbones.base import Backbone
from cvlib.nn.checkpoints import read_state
from cvlib.train.weights import load_into

__all__ = ["Layered", "filled"]

N = TypeVar("N", bound=Backbone)


class Layered(Backbone):
    """A classifier from its images to its probabilities, layer after layer.

    Its subclass lists the ``layers``, without preprocessing and with a softmax at the end, and tells the
    ``layer_size`` of images that the paper gives it where that is not ``image_size``.
    """

    layer_size: int = 0

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The whole network in order; a split ``n`` lies after the first ``n`` of them."""
        raise NotImplementedError  # abstract: each network lists its own

    def encode(self, images: Tensor, split: int) -> Tensor:
        """Return z = Phi(x), float (B, C, h, w), what the first ``split`` layers make of the images.

        Images (B, 3, H, W) in [-1, 1] of another size are squeezed to the paper's, bilinearly and without
        antialiasing, as its authors do. Vectors come as (B, C, 1, 1); split 0 gives the image itself, with
        the colours that the weights were trained on. Raises: BookError for a split outside the network.
        """
        layers = self._cut(split)[0]
        side = self.layer_size or self.image_size
        if images.shape[2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        z = self.preprocess(images)
        for layer in layers:
            z = layer(z)
        return z[:, :, None, None] if z.ndim == 2 else z

    def decode(self, z: Tensor, split: int) -> Tensor:
        """Return Psi(z), probabilities (B, n_classes), for z as :meth:`encode` gives it at ``split``."""
        before, after = self._cut(split)
        if any(isinstance(layer, nn.Flatten) for layer in before):
            z = z.flatten(1)
        for layer in after:
            z = layer(z)
        return z

    def _cut(self, split: int) -> tuple[Sequence[nn.Module], Sequence[nn.Module]]:
        layers = self.layers
        if not 0 <= split <= len(layers):
            raise BookError(f"split {split} of {self.name}", f"0 to {len(layers)}")
        return layers[:split], layers[split:]


def filled(net: N, weights: str | os.PathLike[str] | None) -> N:
    """Return ``net`` in evaluation mode, with the weights of a local file unless that is None.

    Raises: BookError if the file is absent, damaged, holds more than tensors, or is of another network.
    """
    if weights is not None:
        found = read_state(weights, f"torchvision's weights of {net.name}, .pth or .safetensors")
        # files from before PyTorch 0.4.1 (resnet50-19c8e357.pth) do not count batches; nothing reads it
        own = net.state_dict()
        counters = {k: torch.zeros_like(v) for k, v in own.items() if k.endswith("batches_tracked")}
        load_into(net, counters | found, str(weights))
    return net.eval()
