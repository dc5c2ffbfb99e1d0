"""Experts: frozen networks on emoji that chapters look into or translate between, loaded from weights files.

Trained on the page ``experts``. Source of their parts: :mod:`cvlib.nn.vae`, :mod:`cvlib.nn.backbones`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.data.factors import TARGETS
from cvlib.errors import BookError
from cvlib.nn.backbones import BatchNorm, Classifier, EfficientNetLite0, SmallCNN
from cvlib.nn.framed import map_head
from cvlib.nn.vae import VectorAutoencoder
from cvlib.train.weights import load_weights_file, weights_metadata

if TYPE_CHECKING:
    from cvlib.train import Runtime

__all__ = [
    "Experts",
    "Judge",
    "Judgement",
    "freeze",
    "load_autoencoder",
    "load_experts",
    "load_judge",
    "load_namer",
    "measure_norms",
]


class Judgement(NamedTuple):
    """What a judge says of B pictures."""

    concept: Tensor  #: logits (B, n_classes)
    hand: Tensor  #: logits (B, n_hands)
    factors: Tensor  #: estimates (B, 9) of :func:`cvlib.data.factors.factor_targets`


class Judge(nn.Module):
    """Concept, hand and factors of drawings (B, 3, S, S) in [-1, 1], S = 16 ``places``: three answers.

    A measuring instrument, not a subject: it learns from all hands and from reconstructions as well, so that
    what it fails to see is missing in the picture. It looks at half the size, where a network from nothing
    learns four times as fast; where something lies is read from the map of features.

    >>> judge = Judge(n_classes=5, n_hands=7, places=2)
    >>> [tuple(answer.shape) for answer in judge(torch.zeros(4, 3, 32, 32))]
    [(4, 5), (4, 7), (4, 9)]
    """

    def __init__(self, n_classes: int, n_hands: int, places: int = 4) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"n_classes": n_classes, "n_hands": n_hands, "places": places}
        self.trunk = SmallCNN()
        self.concept = nn.Linear(self.trunk.width, n_classes)
        self.hand = nn.Linear(self.trunk.width, n_hands)
        self.factors = map_head(self.trunk.width, places, len(TARGETS))

    def forward(self, images: Tensor) -> Judgement:
        features = self.trunk(F.avg_pool2d(images, 2))
        pooled = features.mean((2, 3))
        return Judgement(self.concept(pooled), self.hand(pooled), self.factors(features))


def freeze(net: nn.Module) -> None:
    """Put ``net`` in evaluation mode, and its parameters out of reach of gradients, for good.

    The statistics of its norms stay too, whatever calls ``train()`` on it or on a module that holds it.
    """
    net.eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.freeze()


@torch.no_grad()
def measure_norms(net: Classifier, images: Tensor, batch: int = 128) -> None:
    """Give the norms of a random ``net`` the statistics of ``images`` (N, 3, S, S), and freeze it.

    Without them next to nothing would come through: it is what an untrained network is compared with.
    """
    for module in net.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, not a running one
            module.reset_running_stats()
    for some in images.split(batch):
        net.logits(some)
    freeze(net)


def _configuration(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    found = weights_metadata(path)
    if "model" not in found or found.get("kind") != kind:
        seen = f"{os.fspath(path)}, weights of kind {found.get('kind', 'unknown')}"
        raise BookError(seen, kind, "take the file that the page experts wrote")
    return dict(found["model"])


def load_autoencoder(path: str | os.PathLike[str]) -> VectorAutoencoder:
    """Return the frozen autoencoder in ``path`` (.safetensors, with its configuration).

    Raises: BookError if the file is absent or damaged, or holds another kind of network.
    """
    net = VectorAutoencoder(**_configuration(path, "autoencoder"))
    load_weights_file(path, net)
    freeze(net)
    return net


def load_namer(path: str | os.PathLike[str]) -> EfficientNetLite0:
    """Return the frozen EfficientNet-Lite0 in ``path`` (.safetensors) that names concepts.

    Raises: as :func:`load_autoencoder`.
    """
    net = EfficientNetLite0(**_configuration(path, "namer"))
    load_weights_file(path, net)
    freeze(net)
    return net


def load_judge(path: str | os.PathLike[str]) -> Judge:
    """Return the frozen judge in ``path`` (.safetensors). Raises: as :func:`load_autoencoder`."""
    net = Judge(**_configuration(path, "judge"))
    load_weights_file(path, net)
    freeze(net)
    return net


class Experts(NamedTuple):
    """The three frozen networks that the chapters share."""

    namer: EfficientNetLite0
    autoencoder: VectorAutoencoder
    judge: Judge


def load_experts(
    weights: Callable[[str], str | os.PathLike[str]],
    runtime: Runtime,
    autoencoder: str = "experts_autoencoder",
) -> Experts:
    """Return the experts on the device of ``runtime``; ``weights`` says where a name's file lies.

    ``autoencoder`` names the one wanted: that of the page experts, or "experts_brief" with a code of 128
    numbers and a decoder that knows the drawings of a hundred concepts.
    Raises: as :func:`load_autoencoder`.
    """
    return Experts(
        runtime.prepare(load_namer(weights("experts_namer"))),
        runtime.prepare(load_autoencoder(weights(autoencoder))),
        runtime.prepare(load_judge(weights("experts_judge"))),
    )
