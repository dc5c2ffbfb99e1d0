"""What the objectives share: unit vectors, who is whose positive, distances, checks of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.precision import without_autocast

__all__ = ["Objective", "checked", "distances", "masked_mean", "pair_masks", "unit"]

SHORTEST = 1e-8  # rows below this length have no direction


def unit(x: Tensor) -> Tensor:
    """Return the rows of ``x`` (N, d) scaled to length 1; a zero row stays zero.

    A zero vector has similarity 0 and distance 1 to every unit vector, and its gradient passes unscaled. (A
    division by max(length, 1e-12) would multiply that gradient by 1e12.)

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.masked_fill(length < SHORTEST, 1.0)


def checked(embeddings: Tensor, labels: Tensor, n_classes: int | None = None) -> Tensor:
    """Return ``embeddings`` (B, d) in fp32 (fp64 is kept) once they and ``labels`` (B,) prove usable.

    Raises: BookError for wrong shapes, an empty batch, labels that are no integers or lie outside
    [0, n_classes), and numbers that are not finite. The last two read one flag back from the device; inside
    ``torch.compile`` they are left out.
    """
    if embeddings.dim() != 2 or len(embeddings) == 0 or labels.shape != embeddings.shape[:1]:
        seen = f"embeddings {tuple(embeddings.shape)} with labels {tuple(labels.shape)}"
        raise BookError(seen, "(B, d) and (B,) with B at least 1")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise BookError(f"labels of type {labels.dtype}", "integers", "pass class indices")
    if torch.compiler.is_compiling():
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    usable = embeddings.isfinite().all()
    if n_classes is not None:
        usable = usable & (labels >= 0).all() & (labels < n_classes).all()
    if not usable:
        broken = (~embeddings.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if broken:
            raise BookError(
                f"NaN or infinity in {len(broken)} of {len(embeddings)} embeddings (first: row {broken[0]})",
                "finite numbers",
                "lower the learning rate or look at the inputs of these rows",
            )
        low, high = int(labels.min()), int(labels.max())
        raise BookError(
            f"labels in {low}..{high}", f"0..{n_classes}-1", "renumber the classes or pass another n_classes"
        )
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bool masks (B, B): pairs of one class (no item with itself), pairs of two classes."""
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def distances(similarity: Tensor) -> Tensor:
    """Return Euclidean distances of unit vectors from their cosine ``similarity``, any shape, in [1e-4, 2].

    The 1e-8 under the root (as in the code of Wu et al. 2017) keeps the gradient of equal vectors finite.
    """
    return ((2 - 2 * similarity).clamp(min=0) + 1e-8).sqrt()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``mask``; with an empty mask 0, with zero gradient.

    >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


class Objective(nn.Module):
    """Base: ``objective(embeddings, labels)`` checks the input, leaves autocast, scales rows to length 1.

    ``embeddings`` (B, d) of any length and type and integer ``labels`` (B,) give a scalar in fp32. Where no
    pair or triplet of the batch says anything (one class only, classes of one sample, all margins met) the
    loss is exactly 0, attached to the graph, with zero gradient. A subclass defines ``loss`` on unit vectors.

    Raises: BookError as :func:`checked`.
    """

    n_classes: int | None = None  #: number of classes that learned parts know

    def forward(self, embeddings: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the scalar loss; ``options`` go to ``loss``."""
        with without_autocast(embeddings):
            return self.loss(unit(checked(embeddings, labels, self.n_classes)), labels, **options)

    def loss(self, e: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Return the scalar loss of unit vectors ``e`` (B, d)."""
        raise NotImplementedError  # abstract: each objective defines its own

    def own_lr(self, lr: float) -> float:
        """Return the learning rate that suits the learned parts when the network has ``lr``."""
        return lr

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return optimiser groups of the learned parts, without decay, for a network at ``lr``; may be []."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learned, "lr": self.own_lr(lr), "weight_decay": 0.0}] if learned else []
