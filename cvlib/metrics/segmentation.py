"""How well discovered parts agree with true labels, after an assignment chosen on other images.

Parts are anonymous: before they can be scored, each is assigned to a label. Choose the assignment on
validation images, score on test images, and say which of the two assignments it was.

Source: Lorenz et al. 2019 and Braun et al. 2020, Sec. 4 (intersection over union per label).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cvlib.errors import BookError

__all__ = [
    "UNLABELLED",
    "SegmentationScores",
    "checked_ids",
    "iou_table",
    "many_to_one",
    "one_to_one",
    "overlaps",
    "segmentation_scores",
]

UNLABELLED = -1  #: the label of a pixel whose true label nobody knows: it is not scored


def checked_ids(name: str, ids: Tensor, count: int, least: int = 0) -> Tensor:
    """Return ids (N, H, W) as int64, on the CPU. Raises: BookError unless ``least`` <= ids < ``count``."""
    if ids.is_floating_point() or ids.ndim != 3:
        raise BookError(f"{name} of shape {tuple(ids.shape)} and type {ids.dtype}", "integers (N, H, W)")
    ids = ids.detach().cpu().long()
    outside = ids[(ids < least) | (ids >= count)]
    if outside.numel():
        known = f"ids {least} to {count - 1}"
        raise BookError(f"{name} with the unknown id {int(outside[0])}", known, "merge or mask it first")
    return ids


def overlaps(parts: Tensor, labels: Tensor, n_parts: int, n_labels: int) -> Tensor:
    """Return how many pixels each part shares with each label in each image, int64 (N, n_parts, n_labels).

    ``parts`` and ``labels`` are ids (N, H, W); label 0 is the background, and pixels whose label is
    :data:`UNLABELLED`, -1, are not counted: an image without a mask has a table of zeros, and no score. All
    scores come from this table.
    Raises: BookError for other ids outside their range, other types, or masks of different shapes.

    >>> overlaps(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 1]]]), 2, 2)
    tensor([[[1, 0],
             [1, 1]]])
    """
    parts = checked_ids("parts", parts, n_parts)
    labels = checked_ids("labels", labels, n_labels, least=UNLABELLED)
    if parts.shape != labels.shape:
        raise BookError(f"parts {tuple(parts.shape)} and labels {tuple(labels.shape)}", "equal shapes")
    n, cells = len(parts), n_parts * n_labels
    image = torch.arange(n).view(-1, 1, 1) * cells
    cell = (image + parts * n_labels + labels)[labels != UNLABELLED]
    return torch.bincount(cell, minlength=n * cells).view(n, n_parts, n_labels)


def iou_table(overlap: Tensor) -> Tensor:
    """Return the intersection over union of every part with every label, float64 (P, L) in [0, 1].

    ``overlap`` is (P, L), or (N, P, L) and then summed over the images. What neither holds a pixel has 0.
    """
    table = (overlap.sum(0) if overlap.ndim == 3 else overlap).double()
    union = table.sum(1, keepdim=True) + table.sum(0) - table
    return table / union.clamp_min(1)


def many_to_one(overlap: Tensor) -> Tensor:
    """Return for each part the label with which its IoU over all images is highest, int64 (P,).

    Several parts may go to one label. A part without a pixel goes to the background, label 0; so does a tie's
    first. Source: the evaluation of Braun et al. 2020, which chooses it on the test images themselves.

    >>> many_to_one(torch.tensor([[9, 0], [1, 2], [0, 2], [0, 0]])).tolist()
    [0, 1, 1, 0]
    """
    return iou_table(overlap).argmax(1)


def one_to_one(overlap: Tensor) -> Tensor:
    """Return for each part its label, or -1: the matching with the highest sum of IoU, int64 (P,).

    No two parts share a label (Kuhn 1955); parts left over, or matched without a common pixel, have -1 and
    are scored as belonging nowhere.

    >>> one_to_one(torch.tensor([[9, 0], [1, 2], [0, 3]])).tolist()
    [0, -1, 1]
    """
    table = iou_table(overlap)
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    found = torch.full((len(table),), -1)
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    matched = table.gather(1, found.clamp_min(0)[:, None])[:, 0]
    return torch.where(matched > 0, found, -1)


@dataclass(frozen=True)
class SegmentationScores:
    """Intersection over union in [0, 1] of assigned parts; NaN for a label that no image and no part has."""

    per_image: Tensor  #: float64 (L,): mean over the images that show the label (the paper's number)
    pooled: Tensor  #: float64 (L,): of all images' pixels together; false parts count everywhere
    foreground: float  #: of everything but label 0, pooled
    overall: float  #: mean of ``per_image`` over the labels but 0
    pooled_overall: float  #: mean of ``pooled`` over the labels but 0
    images: Tensor  #: float64 (N,): mean over the labels but 0 that each image shows, NaN without any


def segmentation_scores(overlap: Tensor, assignment: Tensor) -> SegmentationScores:
    """Return the scores of images with ``overlap`` (N, P, L) under an ``assignment`` (P,) of parts to labels.

    The paper averages, for each label, over the images where it is present, so that a part seen where its
    label is absent costs nothing; ``pooled`` counts it. -1 in the assignment belongs nowhere.
    Raises: BookError if the assignment does not fit the table.
    """
    if overlap.ndim != 3 or not len(overlap):
        raise BookError(f"overlaps of shape {tuple(overlap.shape)}", "(N, P, L), N at least 1")
    n, n_parts, n_labels = overlap.shape
    assignment = assignment.cpu()
    if assignment.shape != (n_parts,) or not ((assignment >= -1) & (assignment < n_labels)).all():
        seen = f"an assignment {assignment.tolist()}"
        raise BookError(seen, f"{n_parts} labels between -1 and {n_labels - 1}")
    table = overlap.double()
    given = torch.zeros(n, n_labels + 1, n_labels, dtype=torch.float64)
    given.index_add_(1, torch.where(assignment < 0, n_labels, assignment), table)
    inside = given[:, :n_labels].diagonal(dim1=1, dim2=2)  # (N, L)
    true = table.sum(1)
    union = given[:, :n_labels].sum(2) + true - inside
    scores = inside / union  # NaN where neither is
    shown = torch.where(true > 0, scores, torch.nan)
    pooled = inside.sum(0) / union.sum(0)
    both = given[:, 1:n_labels, 1:].sum()
    either = given[:, 1:n_labels].sum() + given[:, :, 1:].sum() - both
    per_image = shown.nanmean(0)
    return SegmentationScores(
        per_image,
        pooled,
        float(both / either),
        float(per_image[1:].nanmean()),
        float(pooled[1:].nanmean()),
        shown[:, 1:].nanmean(1),
    )
