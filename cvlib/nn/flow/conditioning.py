"""Networks H that turn a condition into a vector h: for vectors, for class labels and for feature maps.

Source: the authors' code of Rombach et al. 2020a (Making Sense of CNNs: maps; vectors by 1x1 convolutions)
and 2020b (Network-to-Network Translation: a perceptron of width 256 with BatchNorm).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.flow.actnorm import ActNorm

__all__ = ["LabelEmbedder", "MapEmbedder", "VectorEmbedder", "even_widths"]

Norm = Literal["none", "actnorm", "batch"]


def even_widths(dim_in: int, dim_out: int, n: int) -> list[int]:
    """Return ``n`` widths in equal steps from ``dim_in`` to ``dim_out``, rounded down, both included.

    Source: the embedders of vectors in Rombach et al. 2020a (Making Sense of CNNs).
    Raises: BookError for n < 2.

    >>> even_widths(4096, 128, 4)
    [4096, 2773, 1450, 128]
    """
    if n < 2:
        raise BookError(f"{n} width(s) from {dim_in} to {dim_out}", "at least 2, both ends")
    return [dim_in + (dim_out - dim_in) * k // (n - 1) for k in range(n)]


class _Normalise(ActNorm):
    """ActNorm inside a network that nobody inverts: its log-determinant is of no use."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class VectorEmbedder(nn.Module):
    """Perceptron of the given ``widths``, e.g. (768, 256, 256, 256, 128), leaky between its layers.

    ``norm="batch"`` is what the published translators have. It makes h depend on the batch and on the mode,
    so that a flow run forward in training mode and back in evaluation mode does not return; ``"actnorm"``
    (Making Sense of CNNs, with slope 0.2) and ``"none"`` treat each row alone in both modes.

    Shapes: (B, C), (B, C, 1, 1) to (B, widths[-1]). Raises: BookError if C is not widths[0], at a map of
    more than one place, and with ``norm="batch"`` for a batch of one in training mode.
    """

    def __init__(self, widths: Sequence[int], norm: Norm = "none", slope: float = 0.01) -> None:
        super().__init__()
        norms: dict[str, type[nn.Module]] = {"actnorm": _Normalise, "batch": nn.BatchNorm1d}
        self.dim_in, self.dim, self.norm = widths[0], widths[-1], norm
        self.layers = nn.Sequential(nn.Linear(widths[0], widths[1]))
        for before, after in pairwise(widths[1:]):
            if norm != "none":
                self.layers.append(norms[norm](before))
            self.layers.append(nn.LeakyReLU(slope))
            self.layers.append(nn.Linear(before, after))

    def forward(self, cond: Tensor) -> Tensor:
        if cond.ndim < 2 or cond.shape[1] != self.dim_in or cond.shape[2:].numel() != 1:
            raise BookError(f"a condition {tuple(cond.shape)}", f"(B, {self.dim_in})")
        if self.training and self.norm == "batch" and len(cond) < 2:
            seen = f"a batch of {len(cond)} for an embedder with BatchNorm in training mode"
            raise BookError(seen, "at least 2, to know a variance", "call eval(), or take norm='none'")
        return self.layers(cond.flatten(1))


class LabelEmbedder(VectorEmbedder):
    """H of the one-hot code of labels: (B,) integers in [0, widths[0]) to (B, widths[-1]).

    Source: Esser et al. 2020b (A Note on Data Biases), whose condition is the number of the data set.
    Raises: BookError if a label is out of range or not an integer.
    """

    @property
    def is_rowwise(self) -> bool:
        """Whether h of a label is the same in every batch, so that one row for each label is enough."""
        return not (self.training and self.norm == "batch")

    def forward(self, cond: Tensor) -> Tensor:
        return super().forward(self.one_hot(cond))

    def one_hot(self, labels: Tensor) -> Tensor:
        """Return the checked labels (B,) as (B, n_classes), of the type of the weights."""
        if labels.is_floating_point() or labels.dim() != 1:
            raise BookError(f"labels {tuple(labels.shape)} of {labels.dtype}", "integers (B,)")
        if ((labels < 0) | (labels >= self.dim_in)).any():
            seen = f"labels from {labels.min().item()} to {labels.max().item()}"
            raise BookError(seen, f"0 to {self.dim_in - 1}")
        return F.one_hot(labels.long(), self.dim_in).to(next(self.parameters()).dtype)


class MapEmbedder(nn.Module):
    """Halve a feature map ``n_down`` times, then one convolution as large as what is left.

    Channels 64, 128, ... up to 1024; 4 x 4 convolutions without bias, ActNorm, LeakyReLU(0.2).

    Shapes: (B, channels, side, side) to (B, dim). Raises: BookError at another shape, or if nothing is left
    after ``n_down`` halvings.
    """

    def __init__(self, channels: int, side: int, n_down: int, dim: int) -> None:
        super().__init__()
        if side >> n_down < 1:
            raise BookError(f"{n_down} halvings of a map of side {side}", "a side of at least 2**n_down")
        self.shape, self.dim = (channels, side, side), dim
        self.layers = nn.Sequential()
        for k in range(n_down):
            after = 64 * min(2**k, 16)
            conv = nn.Conv2d(channels, after, 4, stride=2, padding=1, bias=False)
            self.layers.extend([conv, _Normalise(after), nn.LeakyReLU(0.2)])
            channels = after
        self.layers.append(nn.Conv2d(channels, dim, side >> n_down))

    def forward(self, cond: Tensor) -> Tensor:
        if cond.shape[1:] != self.shape:
            raise BookError(f"a condition {tuple(cond.shape)}", f"(B, {', '.join(map(str, self.shape))})")
        return self.layers(cond).flatten(1)
