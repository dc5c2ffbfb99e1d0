"""Checks at the edges of the ray-caster; one line each for what a reader can mend."""

from __future__ import annotations

import torch
from torch import Tensor

from cvlib.errors import BookError

__all__ = ["want_positive", "want_rotation", "want_shape", "want_unit_range"]


def want_shape(name: str, x: Tensor, *shape: int | None, names: str = "", is_finite: bool = True) -> None:
    """Raise unless ``x`` has ``shape`` (None: any size), and only finite numbers if so asked."""
    fits = x.ndim == len(shape) and all(
        want in (None, size) for size, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = names or "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise BookError(f"{name} of shape {tuple(x.shape)}", wanted)
    if is_finite and x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise BookError(f"{name} with NaN or infinity", "finite numbers")


def want_positive(name: str, x: Tensor) -> None:
    """Raise unless every number is above 0."""
    if x.numel() and not bool((x > 0).all()):
        raise BookError(
            f"{name} of {x.min().item():.4g}", "above 0", "hide what should not be seen with shown"
        )


def want_unit_range(name: str, x: Tensor) -> None:
    """Raise unless every number lies in [0, 1], as colours do."""
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = x.min().item(), x.max().item()
        raise BookError(
            f"{name} from {low:.4g} to {high:.4g}", "values in [0, 1]", "images in [-1, 1]: (x + 1) / 2"
        )


def want_rotation(name: str, R: Tensor) -> None:
    """Raise unless every matrix (..., 3, 3) is a rotation, R Rᵀ = 1 and det R = 1, within 1e-4."""
    off = (
        (R @ R.mT - torch.eye(3, dtype=R.dtype, device=R.device)).abs().amax()
        if R.numel()
        else R.new_zeros(())
    )
    if not bool(off <= 1e-4):
        raise BookError(
            f"{name} with R Rᵀ off by {off.item():.2g}", "a rotation", "normalise its rows or quaternion"
        )
    if R.numel() and not bool((torch.linalg.det(R) > 0).all()):
        raise BookError(f"{name} with determinant -1, a mirror", "a rotation", "flip the sign of one axis")
