"""How near a set of made images is to a set of real ones, seen through features (N, D) of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.metrics.scores import Score, checked_features

__all__ = ["PrecisionRecall", "frechet", "kid", "precision_recall", "real_floor"]

_CHUNK = 2048  # rows of a pairwise matrix held at once: 60,000 x 60,000 never is


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased squared MMD: pairs of a sample with itself are left out."""

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([_kernel(rows, b).sum() for rows in a.split(_CHUNK)]).sum()

    def within(a: Tensor) -> Tensor:
        own = (a.square().sum(1) / a.shape[1] + 1) ** 3
        return (total(a, a) - own.sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y)))


def _same_width(real: Tensor, fake: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if real.shape[1:] != fake.shape[1:]:
        raise BookError(f"features of shapes {tuple(real.shape)} and {tuple(fake.shape)}", "one width D")
    return checked_features("real", real, least), checked_features("made", fake, least)


def kid(real: Tensor, fake: Tensor, *, subsets: int = 20, subset_size: int = 500, seed: int = 0) -> Score:
    """Return the kernel distance: the unbiased squared MMD with the kernel (x·y / D + 1)³ over all pairs.

    Source: Binkowski et al. 2018, Sec. 4. Zero in the mean for equal distributions (single values may be
    negative), at any number of samples. ``std`` is the spread over ``subsets`` random subsets of
    ``subset_size`` (or half of what there is, if that is less): with overlap, so a rough guide only.

    Args: real, fake: (N, D) and (M, D), N and M at least 2. Raises: BookError for other shapes, NaN.
    """
    real, fake = _same_width(real, fake, 2)
    generator = torch.Generator().manual_seed(seed)
    size = max(2, min(subset_size, len(real) // 2, len(fake) // 2))

    def draw(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[:size].to(x.device)]

    values = [_mmd(draw(real), draw(fake)) for _ in range(subsets)]
    std = float(torch.tensor(values).std()) if subsets > 1 else None
    return Score(_mmd(real, fake), len(real), len(fake), std, real.shape[1])


def frechet(real: Tensor, fake: Tensor, dim: int | None = 64) -> Score:
    """Return |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), the distance of two fitted Gaussians.

    Source: Heusel et al. 2017, Eq. 6. Features are first projected on the ``dim`` leading principal axes
    of the *real* ones, which then must be the same for every arm compared; None keeps all D. Biased upwards
    by about D²/N: give N and :func:`real_floor` beside it.

    Raises: BookError if a side has not more samples than dimensions (its covariance would be singular).
    """
    width = real.shape[-1] if dim is None else min(dim, real.shape[-1])
    real, fake = _same_width(real, fake, width + 1)
    counts = len(real), len(fake)
    centre = real.mean(0)
    if width < real.shape[1]:
        axes = torch.linalg.eigh((real - centre).T @ (real - centre)).eigenvectors[:, -width:]
        real, fake = (real - centre) @ axes, (fake - centre) @ axes
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    s_real, s_fake = torch.cov(real.T).reshape(width, width), torch.cov(fake.T).reshape(width, width)
    values, vectors = torch.linalg.eigh(s_real)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # S1 S2 and the symmetric S1^½ S2 S1^½ have the same eigenvalues
    cross = torch.linalg.eigvalsh(root @ s_fake @ root).clamp_min(0).sqrt().sum()
    value = float(shift + s_real.trace() + s_fake.trace() - 2 * cross)
    return Score(max(value, 0.0), *counts, dim=width)


class PrecisionRecall(NamedTuple):
    """Precision: the share of made samples that look real; recall: of real ones that could be made."""

    precision: float
    recall: float
    n_real: int
    n_fake: int


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall of a set of made samples.

    Source: Kynkäänniemi et al. 2019, Eq. 1-2: a sample counts if it lies in the ball of any sample of the
    other side, whose radius is the distance to its k-th nearest neighbour on its own side. Both numbers
    depend on N: compare sets of one size.

    Raises: BookError if a side has not more than k samples.
    """
    real, fake = _same_width(real, fake, k + 1)
    return PrecisionRecall(
        _covered(fake, real, _radii(real, k)), _covered(real, fake, _radii(fake, k)), len(real), len(fake)
    )


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, (N,)."""
    pieces = []
    for start, rows in zip(range(0, len(x), _CHUNK), x.split(_CHUNK), strict=True):
        distances = _distances(rows, x)
        distances[torch.arange(len(rows)), start + torch.arange(len(rows))] = torch.inf  # not oneself
        pieces.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(pieces)


def _covered(x: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of the rows of x that lie in at least one ball."""
    inside = [(_distances(rows, centres) <= radii).any(1) for rows in x.split(_CHUNK)]
    return float(torch.cat(inside).double().mean())


def real_floor(
    metric: Callable[[Tensor, Tensor], Score], real: Tensor, *, splits: int = 10, seed: int = 0
) -> Score:
    """Return the metric between two random halves of the real features: what no generator gets under.

    Mean and standard deviation over ``splits``. The halves have N/2 samples; compare with a score from as
    many. Raises: what the metric raises, if the halves are too small for it.
    """
    generator = torch.Generator().manual_seed(seed)
    half, values = len(real) // 2, []
    for _ in range(splits):
        order = torch.randperm(len(real), generator=generator).to(real.device)
        values.append(float(metric(real[order[:half]], real[order[half : 2 * half]])))
    scores = torch.tensor(values, dtype=torch.float64)
    std = float(scores.std()) if splits > 1 else None
    return Score(float(scores.mean()), half, half, std, real.shape[1])
