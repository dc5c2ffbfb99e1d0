"""Patch discriminator and the losses of the two players.

Source: Isola et al. 2017, Sec. 3.2.2 (PatchGAN); Esser et al. 2021, Eq. 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.nn.autoencoder import GroupNorm

__all__ = ["PatchDiscriminator", "hinge_d_loss", "hinge_g_loss", "vanilla_d_loss", "vanilla_g_loss"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": GroupNorm}


class PatchDiscriminator(nn.Module):
    """Map images (B, in_channels, H, W) to one logit per overlapping patch, (B, 1, h, w); real is high.

    With the default three layers each logit judges 70 x 70 px and 256 px give 30 x 30 logits, 64 px 6 x 6.
    2.77 M parameters. ``norm="batch"`` is the paper's: its statistics mix the images of a batch, so use
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` with several processes; ``"group"`` treats each image alone,
    which suits small batches; ``"none"`` has no norm. A condition is concatenated to the channels by the
    caller.
    """

    def __init__(
        self,
        in_channels: int = 3,
        ch: int = 64,
        n_layers: int = 3,
        norm: Literal["batch", "group", "none"] = "batch",
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "ch": ch,
            "n_layers": n_layers,
            "norm": norm,
        }
        widths = [ch * min(2**i, 8) for i in range(n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, ch, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, n_layers + 1):
            stride = 2 if i < n_layers else 1
            # a norm subtracts the mean, and a bias with it
            layers.append(nn.Conv2d(widths[i - 1], widths[i], 4, stride, padding=1, bias=norm == "none"))
            if norm != "none":
                layers.append(_NORMS[norm](widths[i]))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _init_weights(module: nn.Module) -> None:
    """Convolutions from N(0, 0.02), norm weights from N(1, 0.02), norm biases zero (Isola et al. 2017)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss from its logits; zero once all margins of 1 are kept.

    The authors' default. An undecided discriminator (all logits 0) pays exactly 1.

    >>> import torch; hinge_d_loss(torch.zeros(2), torch.zeros(2))
    tensor(1.)
    """
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def hinge_g_loss(fake: Tensor) -> Tensor:
    """Return the generator's loss beside :func:`hinge_d_loss`: minus the mean logit."""
    return -fake.float().mean()


def vanilla_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's logistic loss, the form of Eq. 5 (halved, as in the authors' code).

    >>> import torch; vanilla_d_loss(torch.zeros(2), torch.zeros(2))  # log 2
    tensor(0.6931)
    """
    return (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()) / 2


def vanilla_g_loss(fake: Tensor) -> Tensor:
    """Return the non-saturating logistic loss of the generator, -log D (Goodfellow et al. 2014, Sec. 3).

    The authors' code uses :func:`hinge_g_loss` beside both discriminator losses.
    """
    return F.softplus(-fake.float()).mean()
