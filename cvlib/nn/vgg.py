"""Frozen VGG feature extractors out of pinned assets: VGG-19 (8-bit) and VGG16-HED.

Source: Simonyan and Zisserman 2015, Table 1, columns E and D; Xie and Tu 2015 (HED).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.assets import member
from cvlib.errors import BookError

__all__ = ["VGG", "Frozen", "vgg16_hed", "vgg19"]

Weights = Mapping[str, tuple[Tensor, Tensor]]
_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)
_MEAN = (123.68, 116.779, 103.939)  # of ImageNet, red, green, blue, in 0..255


class Frozen(nn.Module):
    """A network that never trains, whatever is called on it or on a module that holds it.

    Weights are kept as buffers outside the state dict, not as parameters: no optimiser sees them, no
    ``requires_grad_`` reaches them, no checkpoint repeats them. It stays in evaluation mode. Gradients with
    respect to its *input* flow as usual.
    """

    def __init__(self) -> None:
        super().__init__()
        super().train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode; a call to the owner's ``train()`` arrives here too."""
        return super().train(False)

    def freeze(self, name: str, value: Tensor) -> None:
        """Store a tensor that moves with the module between devices and is never learned."""
        self.register_buffer(name, value.detach().clone(), persistent=False)


class VGG(Frozen):
    """VGG's convolutions: ``forward(x, layers)`` returns the wanted activations, ``{"relu1_2": ...}``.

    Images x are (B, 3, H, W), RGB in [-1, 1]; layer names are ``relu<block>_<n>``, with 64, 128, 256, 512,
    512 channels at 1, 1/2, 1/4, 1/8, 1/16 of the size. Nothing above the highest wanted layer is computed.
    """

    mean: Tensor

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.names = tuple(sorted(weights))
        for name, (weight, bias) in weights.items():
            # the nets were trained on BGR: turning the first filters round once saves turning every image
            self.freeze(f"weight{name}", weight.flip(1) if name == "1_1" else weight)
            self.freeze(f"bias{name}", bias)
        self.freeze("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))

    def forward(self, x: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        wanted = set(layers)
        if unknown := wanted - {f"relu{name}" for name in self.names}:
            raise BookError(f"layers {sorted(unknown)}", f"some of relu{', relu'.join(self.names)}")
        found: dict[str, Tensor] = {}
        x = (x.float() + 1) * 127.5 - self.mean
        for name in self.names:
            if name.endswith("_1") and name != "1_1":
                x = F.max_pool2d(x, 2)
            x = F.relu(F.conv2d(x, getattr(self, f"weight{name}"), getattr(self, f"bias{name}"), padding=1))
            if f"relu{name}" in wanted:
                found[f"relu{name}"] = x
            if len(found) == len(wanted):
                break
        return found


def _layer_names(depths: Sequence[int]) -> list[str]:
    return [f"{block}_{i}" for block, depth in enumerate(depths, 1) for i in range(1, depth + 1)]


def _random(depths: Sequence[int]) -> Weights:
    """Seeded He initialisation: features of the right shapes and sizes, for runs that test the plumbing."""
    generator = torch.Generator().manual_seed(0)
    weights, width_in = {}, 3
    for name in _layer_names(depths):
        width = _WIDTHS[int(name[0]) - 1]
        std = (2 / (9 * width_in)) ** 0.5
        weights[name] = (torch.randn(width, width_in, 3, 3, generator=generator) * std, torch.zeros(width))
        width_in = width
    return weights


def vgg19(pretrained: bool = True) -> VGG:
    """Return VGG-19 with ImageNet weights, each layer's rounded to 256 values ("VGG-19 (8-bit)").

    Fetches asset ``vgg19-8bit`` (20 MB) once; ``pretrained=False`` gives seeded random weights and needs no
    asset. Raises: BookError if it can neither be found nor fetched.
    """
    depths = _DEPTHS["vgg19"]
    if not pretrained:
        return VGG(_random(depths))
    stored = torch.load(member("vgg19-8bit", "vgg19.bin"), map_location="cpu", weights_only=True)
    weights = {}
    for name in _layer_names(depths):
        layer = f"block{name[0]}_conv{name[2]}"
        weights[name] = (stored[f"{layer}_W_table"][stored[f"{layer}_W_q"].long()], stored[f"{layer}_b"])
    return VGG(weights)


def vgg16_hed(pretrained: bool = True) -> VGG:
    """Return VGG-16 with weights tuned from ImageNet's to find edges ("VGG16-HED").

    Fetches asset ``vgg16-hed`` (58 MB) once; ``pretrained=False`` gives seeded random weights and needs no
    asset. Raises: BookError if it can neither be found nor fetched.
    """
    depths = _DEPTHS["vgg16"]
    if not pretrained:
        return VGG(_random(depths))
    weights = {}
    with h5py.File(member("vgg16-hed", "vgg16_hed.h5"), "r") as stored:
        for name in _layer_names(depths):
            index = int(name[2]) - 1
            layer = stored[f"block{name[0]}/layers/conv2d{f'_{index}' if index else ''}/vars"]
            kernel = torch.from_numpy(layer["0"][()]).permute(3, 2, 0, 1)  # height, width, in, out
            weights[name] = (kernel.contiguous(), torch.from_numpy(layer["1"][()]))
    return VGG(weights)
