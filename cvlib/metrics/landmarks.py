"""Landmarks told from where the parts are: centroids, a linear map, and the share of correct keypoints.

Source: the protocol of Thewlis et al. 2017 (landmarks regressed linearly from unsupervised ones).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.metrics.segmentation import checked_ids

__all__ = ["LandmarkRegression", "part_centroids", "pck"]


def part_centroids(parts: Tensor, n_parts: int) -> Tensor:
    """Return the mean place of every part's pixels, float64 (N, n_parts, 2): right and down, in pixels.

    The first pixel's centre is (.5, .5). A part without a pixel has NaN. ``parts`` are ids (N, H, W).
    Raises: BookError for ids outside 0 to ``n_parts`` - 1, which would count for another image.

    >>> part_centroids(torch.tensor([[[0, 1, 1]]]), 3)[0].tolist()
    [[0.5, 0.5], [2.0, 0.5], [nan, nan]]
    """
    parts = checked_ids("parts", parts, n_parts)
    n, height, width = parts.shape
    where = (torch.arange(n).view(-1, 1, 1) * n_parts + parts).flatten()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    count = torch.bincount(where, minlength=n * n_parts).double()
    sums = [
        torch.bincount(where, axis.expand(n, -1, -1).flatten().double(), minlength=n * n_parts)
        for axis in (x, y)
    ]
    return (torch.stack(sums, 1) / count[:, None]).view(n, n_parts, 2)


@dataclass(frozen=True)
class LandmarkRegression:
    """A linear map with offset from the centroids of P parts to K landmarks."""

    mean: Tensor  #: (P, 2), what stands in for a part that an image does not show
    weights: Tensor  #: (2 P + 1, 2 K)

    @classmethod
    def fit(cls, centroids: Tensor, landmarks: Tensor, ridge: float = 1.0) -> LandmarkRegression:
        """Return the map with the least squared error plus ``ridge`` times its squared weights, in pixels.

        ``centroids`` (N, P, 2) with NaN for absent parts, ``landmarks`` (N, K, 2) with NaN for hidden ones:
        each landmark is fitted to the images that show it, and predicted as NaN if none does. The offset is
        not shrunk. Raises: BookError for different N, or fewer than 2.
        """
        if len(centroids) != len(landmarks) or len(centroids) < 2:
            raise BookError(
                f"{len(centroids)} images and {len(landmarks)} sets of landmarks", "equal, 2 or more"
            )
        mean = centroids.double().nanmean(0).nan_to_num(0.0)
        x, y = _design(centroids, mean), landmarks.double()
        shrink = ridge * torch.eye(x.shape[1], dtype=torch.float64)
        shrink[-1, -1] = 0
        weights = torch.full((x.shape[1], *y.shape[1:]), torch.nan, dtype=torch.float64)
        for k, seen in enumerate(y.isfinite().all(2).T):
            if seen.any():
                shown = x[seen]
                weights[:, k] = torch.linalg.solve(shown.T @ shown + shrink, shown.T @ y[seen, k])
        return cls(mean, weights.flatten(1))

    def predict(self, centroids: Tensor) -> Tensor:
        """Return the landmarks (N, K, 2) of images with these centroids (N, P, 2)."""
        return (_design(centroids, self.mean) @ self.weights).unflatten(1, (-1, 2))


def _design(centroids: Tensor, mean: Tensor) -> Tensor:
    filled = torch.where(centroids.isnan(), mean, centroids.double())
    return torch.cat([(filled - mean).flatten(1), torch.ones(len(filled), 1, dtype=torch.float64)], 1)


def pck(
    predicted: Tensor, true: Tensor, image_size: int, shares: Sequence[float] = (0.025, 0.05, 0.1)
) -> dict[float, float]:
    """Return the share of landmarks (N, K, 2) within ``share * image_size`` pixels, for each.

    Hidden ones, NaN in ``true``, do not count; without any other, all shares are NaN. A NaN that is predicted
    is wrong.

    >>> pck(torch.tensor([[[0.0, 3.0], [9.0, 0.0]]]), torch.zeros(1, 2, 2), 100, (0.025, 0.03, 0.1))
    {0.025: 0.0, 0.03: 0.5, 0.1: 1.0}
    """
    if predicted.shape != true.shape:
        raise BookError(f"landmarks {tuple(predicted.shape)} and {tuple(true.shape)}", "equal shapes")
    distance = (predicted.double() - true.double()).norm(dim=-1)[true.isfinite().all(-1)]
    return {share: float((distance <= share * image_size + 1e-9).double().mean()) for share in shares}
