"""Perceptual distance: how far two images lie apart in the features of a frozen network.

Source: Zhang et al. 2018, Eq. 1 (LPIPS); used as the reconstruction loss in Esser et al. 2021, Sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvlib.assets import member
from cvlib.errors import BookError
from cvlib.nn.vgg import VGG, Frozen, vgg16_hed, vgg19

__all__ = ["LPIPS_LAYERS", "PerceptualDistance", "lpips_vgg16_hed", "vgg_loss"]

LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def unit_length(features: Tensor) -> Tensor:
    """Return features (B, C, H, W) scaled to length 1 over the channels, in fp32."""
    features = features.float()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


class PerceptualDistance(Frozen):
    """Distance (B,) of two batches of images (B, 3, H, W) in [-1, 1]; zero for equal ones.

    At each layer features are scaled to unit length over the channels; their squared differences, weighted
    per channel by ``linear`` (all 1 if None), are summed over channels, averaged over positions, and the
    layers are added (Zhang et al. 2018, Eq. 1). Without ``linear`` a layer gives at most 2, because
    activations behind a ReLU never point apart.

    Where the same image is compared more than once, or only one side needs a gradient, pass what
    ``features`` returned in its place:

    >>> distance = vgg_loss(pretrained=False)
    >>> x, y = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    >>> with torch.no_grad(): known = distance.features(x)
    >>> torch.equal(distance(y, known), distance(y, x))
    True
    """

    def __init__(self, net: VGG, layers: Sequence[str], linear: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.net = net
        self.layers = tuple(layers)
        if linear is not None and len(linear) != len(self.layers):
            raise BookError(f"{len(linear)} sets of weights for {len(self.layers)} layers", "one a layer")
        self.is_weighted = linear is not None
        for layer, weight in zip(self.layers, linear or (), strict=linear is not None):
            self.freeze(f"linear_{layer}", weight.view(1, -1, 1, 1))

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the unit-length features of images, one (B, C, h, w) in fp32 a layer."""
        found = self.net(x, self.layers)
        return [unit_length(found[layer]) for layer in self.layers]

    def forward(self, x: Tensor | list[Tensor], y: Tensor | list[Tensor]) -> Tensor:
        """Return the distance (B,) of images, or of what ``features`` returned for them."""
        fx = self.features(x) if isinstance(x, Tensor) else x
        fy = self.features(y) if isinstance(y, Tensor) else y
        total = fx[0].new_zeros(())
        for layer, a, b in zip(self.layers, fx, fy, strict=True):
            square = (a - b).square()
            if self.is_weighted:
                square = square * getattr(self, f"linear_{layer}")
            total = total + square.sum(dim=1).mean(dim=(1, 2))
        return total


def vgg_loss(pretrained: bool = True) -> PerceptualDistance:
    """Return the perceptual term for training: VGG-19 (8-bit) at relu1_2, relu2_2, relu3_3, unweighted."""
    return PerceptualDistance(vgg19(pretrained), LPIPS_LAYERS[:3])


def lpips_vgg16_hed(pretrained: bool = True) -> PerceptualDistance:
    """Return LPIPS-VGG16-HED: the LPIPS form over VGG16-HED with the linear weights of LPIPS 0.1 (VGG).

    It is not LPIPS, and no number of it may stand beside a paper's: those linear weights were learned for
    another training of VGG-16, whose channels come in another order. What they bring here is the balance
    between layers: shuffled within each layer they rank damaged photographs the same (a test holds the rank
    correlation above 0.98). Kept out of training, it can judge networks trained with :func:`vgg_loss`.
    """
    net = vgg16_hed(pretrained)
    if not pretrained:
        return PerceptualDistance(net, LPIPS_LAYERS)
    stored = torch.load(member("lpips-linear", "vgg.pth"), map_location="cpu", weights_only=True)
    linear = [stored[f"lin{i}.model.1.weight"].flatten() for i in range(len(LPIPS_LAYERS))]
    return PerceptualDistance(net, LPIPS_LAYERS, linear)
