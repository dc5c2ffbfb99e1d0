"""What a metric returns, and how it is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cvlib.errors import BookError

__all__ = ["Score", "checked_features", "metric_name"]

_NETS = {
    "vgg19-8bit": "VGG19-8bit",
    "vgg16-hed": "VGG16-HED",
    "efficientnet-lite0": "EffNetLite0",
    "minilm": "MiniLM",
}


@dataclass(frozen=True)
class Score:
    """A value with the number of samples behind it; ``float(score)`` is the value.

    Fields: value; n_real, n_fake: samples on either side; std: spread over subsets or splits (None where
    none were drawn); dim: dimensions in which it was computed.
    """

    value: float
    n_real: int
    n_fake: int
    std: float | None = None
    dim: int | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2g}"
        return f"{self.value:.4g}{spread} (N = {self.n_real:,} real, {self.n_fake:,} made)"


def metric_name(metric: str, net: Any) -> str:
    """Return the metric's name with the network it looks through, so that no two are ever confused.

    Args: net: an asset's name, any other name, or a module with a ``name``.
    Raises: BookError if the network has no name.

    >>> metric_name("KID", "vgg16-hed"), metric_name("Fréchet64", "EffNetLite0")
    ('KID-VGG16-HED', 'Fréchet64-EffNetLite0')
    """
    name = net if isinstance(net, str) else getattr(net, "name", "")
    if not isinstance(name, str) or not name.strip():
        raise BookError(f"a {metric} through a network without a name ({type(net).__name__})", "net.name")
    return f"{metric}-{_NETS.get(name, name)}"


def checked_features(name: str, features: Tensor, least: int) -> Tensor:
    """Return features (N, D) in float64; BookError for another shape, under ``least`` rows, NaN."""
    if features.ndim != 2 or len(features) < least:
        raise BookError(
            f"{name} features of shape {tuple(features.shape)}", f"(N, D) with N at least {least}"
        )
    features = features.detach()
    features = (features.cpu() if features.device.type == "mps" else features).double()  # mps has no float64
    if not features.isfinite().all():
        raise BookError(f"{name} features with NaN or infinite values", "finite features")
    return features
