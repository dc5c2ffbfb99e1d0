"""Semantic flow: an unconditional flow whose output falls into factors, one for each labelled concept.

Source: Rombach et al. 2020a (Making Sense of CNNs); Esser et al. 2020a (A Disentangling Invertible
Interpretation Network for Explaining Latent Representations), with its estimate of the factors' sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.flow.flow import ConditionalFlow
from cvlib.nn.precision import without_autocast

__all__ = ["LinearFactors", "SemanticFlow", "factor_sizes", "pair_loss"]


class LinearFactors(nn.Module):
    """The best linear e: x (B, dim) whitened and turned so that a factor's block holds what its pairs share.

    ``pairs[F] = (x_a, x_b)``, (N_F, dim) each, are alike in factor F and drawn apart in all else. In whitened
    latents the directions that pairs of F agree on are the leading eigenvectors of their cross-covariance
    (discriminant analysis: Fukunaga 1990, Ch. 10). Every other pair chooses them, the rest say how much they
    correlate. A direction goes to the factor where that is highest, unless most of it is taken already.
    ``floor`` is the least correlation that counts, ``most`` the most directions of a factor; ``sizes`` is
    what came of it, e_0 first.
    Raises: BookError if a factor is left without a direction, or has fewer than four pairs, or some that are
    not finite or not alike in shape.
    """

    matrix: Tensor
    centre: Tensor

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], floor: float = 0.5, most: int = 16) -> None:
        super().__init__()
        _check_pairs(pairs, 4)
        everyone = torch.cat([end.double() for pair in pairs for end in pair])
        centre, dim = everyone.mean(0), everyone.shape[1]
        variance, axes = torch.linalg.eigh((everyone - centre).T.cov())
        white = axes @ torch.diag(variance.clamp_min(1e-8).rsqrt()) @ axes.T
        found = []
        for number, pair in enumerate(pairs):
            a, b = ((end.double() - centre) @ white for end in pair)
            directions = torch.linalg.eigh(a[::2].T @ b[::2] + b[::2].T @ a[::2])[1][:, -most:]
            one, other = a[1::2] @ directions, b[1::2] @ directions  # of pairs that did not choose them
            shared = (one * other).mean(0)
            found += [(agreed, number, directions[:, k]) for k, agreed in enumerate(shared.tolist())]
        taken = torch.zeros(0, dim, dtype=torch.float64)
        owners: list[int] = []
        for shared_by, number, direction in sorted(found, key=lambda entry: -entry[0]):
            rest = direction - taken.T @ (taken @ direction)
            if shared_by > floor and rest.norm() > 0.7 and len(owners) < dim - 1:
                taken, owners = torch.cat([taken, rest[None] / rest.norm()]), [*owners, number]
        counts = [owners.count(number) for number in range(len(pairs))]
        if min(counts) < 1:
            seen = f"no direction that pairs of factor {counts.index(0) + 1} agree on by more than {floor:g}"
            raise BookError(seen, "one for each factor", "give more pairs, or a lower floor")
        others = torch.linalg.svd(taken)[2][len(taken) :]
        order = sorted(range(len(owners)), key=lambda k: owners[k])
        matrix = (torch.cat([others, taken[order]]) @ white).float()
        self.sizes = [dim - len(owners), *counts]
        self.register_buffer("matrix", matrix)
        self.register_buffer("centre", centre.float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return e (B, dim) and log|det de/dx| (B,)."""
        with without_autocast(x):
            e = (x.to(self.matrix.dtype) - self.centre) @ self.matrix.T
            return e, torch.linalg.slogdet(self.matrix).logabsdet.expand(len(x))

    def inverse(self, e: Tensor) -> Tensor:
        """Return x with ``forward(x)[0] == e``."""
        with without_autocast(e):
            return torch.linalg.solve(self.matrix, e.T.to(self.matrix.dtype)).T + self.centre


class SemanticFlow(nn.Module):
    """e(x) = (e_0, ..., e_K): factors of the given ``sizes``, e_0 the residual; ``options`` as for the flow.

    Sizes are explicit: cutting 10 features into 6 equal pieces silently gives 5. With ``start``
    (:class:`LinearFactors`, of the same sizes) the flow goes on from its factors: it comes first, and what
    leaves the blocks is put back in the order in which it entered them, which their shuffles would lose.
    Raises: BookError if a size is not positive or the factors do not match it.

    >>> flow = SemanticFlow((2, 1, 3), width=16, n_blocks=2)
    >>> factors, logdet = flow(torch.randn(8, 6))
    >>> [tuple(e.shape) for e in factors], tuple(flow.inverse(factors).shape)
    ([(8, 2), (8, 1), (8, 3)], (8, 6))
    """

    places: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        width: int = 512,
        n_blocks: int = 12,
        start: LinearFactors | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if min(sizes) < 1:
            raise BookError(f"factors of sizes {tuple(sizes)}", "at least 1 feature each")
        if start is not None and start.sizes != list(sizes):
            raise BookError(f"a start with factors of sizes {start.sizes}", f"{list(sizes)}")
        self.sizes, self.start = list(sizes), start
        self.flow = ConditionalFlow(sum(sizes), width, n_blocks=n_blocks, **options)
        self.config = {**self.flow.config, "sizes": self.sizes}
        self.register_buffer("places", torch.arange(sum(sizes)) if start is None else _places(self.flow))

    def forward(self, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the factors, (B, size) each, of x (B, sum of sizes), and log|det de/dx| (B,)."""
        if self.start is None:
            e, logdet = self.flow(x)
        else:
            first, own = self.start(x.flatten(1))
            e, logdet = self.flow(first)
            e, logdet = e[:, self.places.argsort()], logdet + own
        return e.flatten(1).split(self.sizes, dim=1), logdet

    def inverse(self, factors: Sequence[Tensor]) -> Tensor:
        """Return x (B, dim): a factor taken from another x changes one concept."""
        seen = [e.shape[1] for e in factors]
        if seen != self.sizes:
            raise BookError(f"factors of sizes {seen}", f"{self.sizes}")
        if len(rows := {len(e) for e in factors}) > 1:
            raise BookError(f"factors of {', '.join(map(str, sorted(rows)))} rows", "as many in each")
        e = torch.cat(list(factors), dim=1)
        return (
            self.flow.inverse(e)
            if self.start is None
            else self.start.inverse(self.flow.inverse(e[:, self.places]))
        )

    def pair_loss(self, x_a: Tensor, x_b: Tensor, shared: Tensor, sigma_ab: float = 0.975) -> Tensor:
        """Return the loss (B,) of pairs that share concepts; see :func:`pair_loss`."""
        e, logdet = self(torch.cat([x_a, x_b]))
        e_a, e_b = ([f[rows] for f in e] for rows in (slice(len(x_a)), slice(len(x_a), None)))
        return pair_loss(e_a, e_b, shared, sigma_ab) - logdet[: len(x_a)] - logdet[len(x_a) :]


def _places(flow: ConditionalFlow) -> Tensor:
    """Return where each output (dim,) of a flow came in, by its shuffles and the halves that change sides."""
    x = torch.arange(flow.dim)[None]
    for block in flow.blocks:
        a, b = x.split(block.coupling.sizes, dim=1)  # type: ignore[union-attr]  # a FlowBlock's
        x = block.shuffle(torch.cat((b, a), dim=1))  # type: ignore[operator]  # likewise
    return x[0]


def pair_loss(
    e_a: Sequence[Tensor], e_b: Sequence[Tensor], shared: Tensor, sigma_ab: float = 0.975
) -> Tensor:
    """Return -log p(e_a) p(e_b | e_a) (B,) without its constants, for pairs alike in some factors.

    e_a is standard normal. So is e_b but for the shared factors, where e_b ~ N(sigma_ab e_a, 1 - sigma_ab^2);
    sigma_ab in (0, 1) is the correlation that one supposes, 0.975 in the authors' code.

    shared: the number (B,) of the factor F, or booleans (B, K + 1), True for each shared factor: a pair that
    differs in one concept only shares all others. Source: Esser et al. 2020a, supervision by pairs.

    Raises: BookError if sigma_ab is outside (0, 1), a factor number is none of them, or ``shared`` does not
    speak of every pair.

    >>> e = [torch.ones(1, 2), torch.ones(1, 1)]
    >>> pair_loss(e, e, torch.tensor([1]), sigma_ab=0.6)  # 3/2 + 2/2 + (0.4)^2 / 0.64 / 2
    tensor([2.6250])
    """
    if not 0 < sigma_ab < 1:
        raise BookError(f"sigma_ab {sigma_ab}", "a correlation between 0 and 1, both excluded")
    wanted = (len(e_a[0]), len(e_a)) if shared.dtype == torch.bool else (len(e_a[0]),)
    if shared.shape != wanted:
        raise BookError(f"what is shared, {tuple(shared.shape)}", f"{wanted}, an entry for each pair")
    if shared.dtype != torch.bool:
        if ((shared < 0) | (shared >= len(e_a))).any():
            seen = f"factors from {shared.min().item()} to {shared.max().item()}"
            raise BookError(seen, f"0 to {len(e_a) - 1}", "or booleans for several factors")
        shared = nn.functional.one_hot(shared.long(), len(e_a)).bool()
    energy_a = torch.stack([e.square().sum(1) for e in e_a]).sum(0)
    energy_b = torch.stack([b.square().sum(1) for b in e_b], dim=1)
    residual = torch.stack([(b - sigma_ab * a).square().sum(1) for a, b in zip(e_a, e_b, strict=True)], dim=1)
    return (energy_a + torch.where(shared, residual / (1 - sigma_ab**2), energy_b).sum(1)) / 2


def _check_pairs(pairs: Sequence[tuple[Tensor, Tensor]], least: int) -> None:
    """Refuse pairs that no covariance can be taken of, and name the factor."""
    if not pairs:
        raise BookError("no factor", "pairs of at least one")
    for number, (x_a, x_b) in enumerate(pairs, 1):
        if x_a.shape != x_b.shape or x_a.ndim != 2 or x_a.shape[1] != pairs[0][0].shape[1]:
            seen = f"pairs of factor {number} of shapes {tuple(x_a.shape)} and {tuple(x_b.shape)}"
            raise BookError(seen, f"(N, {pairs[0][0].shape[-1]}) twice")
        if len(x_a) < least:
            raise BookError(f"{len(x_a)} pairs of factor {number}", f"at least {least}")
        if not (x_a.isfinite().all() and x_b.isfinite().all()):
            raise BookError(f"pairs of factor {number} are not finite", "finite latents")


def factor_sizes(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[int]:
    """Return the sizes of e_0, ..., e_K for K concepts from ``pairs[F] = (x_a, x_b)``, (N_F, dim) each.

    A concept gets room by how much of the variance its pairs share: score_F = sum_j Cov(x_a_j, x_b_j) /
    sum_j Var(x_j), residual score 1, sizes floor(dim softmax(scores)), and the residual takes the rest.
    Source: the authors' code of Esser et al. 2020a. Raises: BookError if a concept is left without a feature,
    or has fewer than two pairs, or some that are not finite or not alike in shape.
    """
    _check_pairs(pairs, 2)
    scores = [torch.ones(())]
    for x_a, x_b in pairs:
        a, b = (x.double() - x.double().mean(0) for x in (x_a, x_b))
        variance = (a.square().sum() + b.square().sum()) / 2
        scores.append(((a * b).sum() / variance).float())
    dim = pairs[0][0].shape[1]
    sizes = [int(size) for size in dim * torch.stack(scores).softmax(0)[1:]]
    sizes = [dim - sum(sizes), *sizes]
    if min(sizes) < 1:
        raise BookError(f"{dim} features for {len(pairs)} concepts give sizes {sizes}", "a wider latent")
    return sizes
