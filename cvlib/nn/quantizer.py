"""Vector quantization: each vector is replaced by its nearest entry in a learned codebook.

Source: van den Oord et al. 2017, Sec. 3; Esser et al. 2021, Eqs. 2-4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.precision import without_autocast

__all__ = ["CodeUsage", "Quantized", "VectorQuantizer", "kmeans", "nearest_code", "straight_through"]


class Quantized(NamedTuple):
    """What a quantizer returns for features of shape (B, D, H, W)."""

    z_q: Tensor  #: (B, D, H, W), equal to the chosen codes; its gradient passes straight to the features
    indices: Tensor  #: (B, H, W) int64, which code was chosen
    loss: Tensor  #: scalar, both terms below weighted with beta
    codebook_loss: Tensor  #: scalar, pulls the codes to the features
    commitment_loss: Tensor  #: scalar, pulls the features to their codes


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Return ``z_q`` in the forward pass and the identity of ``z`` in the backward pass.

    Source: van den Oord et al. 2017, Sec. 3.2. Shapes: z and z_q equal.
    Raises: ValueError if the shapes differ (broadcasting would hide a bug).

    >>> z = torch.tensor([0.2], requires_grad=True)
    >>> straight_through(z, torch.tensor([1.0])).backward(); z.grad
    tensor([1.])
    """
    if z.shape != z_q.shape:
        raise ValueError(f"z {tuple(z.shape)} and z_q {tuple(z_q.shape)} must match")
    return z + (z_q - z).detach()


@torch.no_grad()
def nearest_code(z: Tensor, codes: Tensor, chunk_elements: int = 2**22) -> Tensor:
    """Return for each row of ``z`` (N, D) the index (N,) of the nearest row of ``codes`` (K, D); Eq. 2.

    |z - e|^2 = |z|^2 - 2 z.e + |e|^2, and |z|^2 is the same for all codes, so one matrix product decides.
    It runs in fp32 over pieces of ``chunk_elements`` distances: the N x K matrix never exists, neither here
    nor for the backward pass. Ties go to the lower index.

    >>> nearest_code(torch.tensor([[0.9], [-3.0]]), torch.tensor([[1.0], [0.0], [-1.0]]))
    tensor([0, 2])
    """
    with without_autocast(z):
        z, codes = z.float(), codes.float()
        half_norms = codes.square().sum(dim=1) / 2
        pieces = z.split(max(1, chunk_elements // len(codes)))
        nearest = [torch.addmm(half_norms, piece, codes.T, alpha=-1).argmin(dim=1) for piece in pieces]
        return torch.cat(nearest)


@torch.no_grad()
def kmeans(
    points: Tensor,
    k: int,
    iterations: int = 10,
    generator: torch.Generator | None = None,
    spherical: bool = False,
) -> Tensor:
    """Return ``k`` centres (k, D) of ``points`` (N, D) by Lloyd's algorithm from k random points.

    A centre that loses all its points restarts at a random one. With ``spherical`` the centres are scaled to
    length 1. Raises: BookError if there are fewer points than centres.
    """
    if len(points) < k:
        raise BookError(f"{len(points)} vectors for {k} centres", f"at least {k}", "use more images")

    def draw(n: int) -> Tensor:
        rows = torch.randperm(len(points), generator=generator)[:n]
        return points[rows.to(points.device)]

    centres = draw(k)
    for _ in range(iterations):
        nearest = nearest_code(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=k)
        centres = sums / counts.clamp(min=1)[:, None]
        centres[counts == 0] = draw(int((counts == 0).sum()))
        if spherical:
            centres = F.normalize(centres, dim=1)
    return centres


class CodeUsage(nn.Module):
    """Counts of the codes chosen over a pass; usage within a single batch says little.

    A module only so that its counts travel with a model to a device and into a checkpoint.

    >>> usage = CodeUsage(4)
    >>> usage.update(torch.tensor([0, 0, 1, 1])); usage.fraction_used, round(usage.perplexity, 6)
    (0.5, 2.0)
    """

    counts: Tensor

    def __init__(self, n_codes: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(n_codes, dtype=torch.long))

    def update(self, indices: Tensor) -> None:
        """Add the codes of one batch, of any shape."""
        counts = torch.bincount(indices.flatten(), minlength=len(self.counts))
        self.counts = self.counts.to(counts.device) + counts

    def reset(self) -> None:
        """Forget all counts, at the start of a pass."""
        self.counts.zero_()

    def gather(self) -> None:
        """Sum the counts over all processes; nothing happens where there is one."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)

    @property
    def fraction_used(self) -> float:
        """Share of the codes that were chosen at least once, in [0, 1]."""
        return (self.counts > 0).double().mean().item()

    @property
    def entropy(self) -> float:
        """Entropy of the code frequencies in nats: the loss of a model that knows only frequencies."""
        p = self.counts.double() / self.counts.sum().clamp(min=1)
        return -torch.special.xlogy(p, p).sum().item()

    @property
    def perplexity(self) -> float:
        """exp(entropy): the number of equally frequent codes that would be as hard to guess."""
        return math.exp(self.entropy)


class VectorQuantizer(nn.Module):
    """Codebook of ``n_codes`` vectors of width ``dim_z`` with straight-through gradients.

    The loss is ``codebook_loss + beta * commitment_loss`` (Esser et al. 2021, Eq. 4). The authors' code put
    beta on the other term, and their published models were trained so: ``legacy=True`` gives
    ``beta * codebook_loss + commitment_loss``.

    With ``cosine`` features and codes are first scaled to length 1, so that a code is chosen by its direction
    (Yu et al. 2022, Sec. 3.2): a code can then no longer die by having the wrong length. Distances and losses
    are computed in fp32 under autocast too.
    """

    def __init__(
        self, n_codes: int, dim_z: int, beta: float = 0.25, legacy: bool = False, cosine: bool = False
    ) -> None:
        super().__init__()
        self.n_codes, self.dim_z, self.beta = n_codes, dim_z, beta
        self.legacy, self.cosine = legacy, cosine
        self.codebook = nn.Parameter(torch.empty(n_codes, dim_z))
        if cosine:
            nn.init.normal_(self.codebook, std=dim_z**-0.5)  # lengths near 1, every direction alike
        else:
            nn.init.uniform_(self.codebook, -1 / n_codes, 1 / n_codes)

    def extra_repr(self) -> str:
        return f"{self.n_codes}, {self.dim_z}, beta={self.beta}, legacy={self.legacy}, cosine={self.cosine}"

    def _scaled(self, vectors: Tensor, dim: int) -> Tensor:
        return F.normalize(vectors.float(), dim=dim) if self.cosine else vectors.float()

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes (B, D, H, W) for ``indices`` (B, H, W), differentiable in the codebook."""
        # gather first, scale second: N rows of work, not K; and no one-hot matrix product
        return rearrange(self._scaled(F.embedding(indices, self.codebook), dim=-1), "b h w d -> b d h w")

    def forward(self, z: Tensor) -> Quantized:
        """Return :class:`Quantized` for features ``z`` (B, D, H, W)."""
        if z.dim() != 4 or z.shape[1] != self.dim_z:
            raise ValueError(f"features {tuple(z.shape)}; wanted (B, {self.dim_z}, H, W)")
        z = self._scaled(z, dim=1)
        nearest = nearest_code(rearrange(z, "b d h w -> (b h w) d"), self._scaled(self.codebook, dim=1))
        indices = nearest.view(z.shape[0], *z.shape[2:])
        z_q = self.lookup(indices)
        codebook_loss = F.mse_loss(z_q, z.detach())
        commitment_loss = F.mse_loss(z, z_q.detach())
        if self.legacy:
            loss = self.beta * codebook_loss + commitment_loss
        else:
            loss = codebook_loss + self.beta * commitment_loss  # Eq. 4
        return Quantized(straight_through(z, z_q), indices, loss, codebook_loss, commitment_loss)

    @torch.no_grad()
    def init_kmeans(self, z: Tensor, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """Set the codebook to k-means centres of features ``z`` (B, D, H, W), needing B H W >= n_codes."""
        points = rearrange(self._scaled(z, dim=1), "b d h w -> (b h w) d")
        self.codebook.copy_(kmeans(points, self.n_codes, iterations, generator, spherical=self.cosine))
        self._agree()

    @torch.no_grad()
    def revive(
        self,
        z: Tensor,
        usage: CodeUsage,
        generator: torch.Generator | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Tensor:
        """Move the codes that ``usage`` never saw onto random features of ``z``; return their indices (n,).

        A code that is never chosen gets no gradient and would stay dead. The optimiser's moments of such a
        row belong to its old place: pass the ``optimizer`` to clear them. ``usage`` is left as it is, so
        reset it to start the next count. With several processes call ``usage.gather()`` first; all of them
        take the codebook of the first.
        """
        dead = (usage.counts == 0).nonzero().flatten().to(self.codebook.device)
        points = rearrange(self._scaled(z, dim=1), "b d h w -> (b h w) d")
        rows = torch.randint(len(points), (len(dead),), generator=generator).to(points.device)
        self.codebook[dead] = points[rows].to(self.codebook.dtype)
        self._agree()
        moments = {} if optimizer is None else optimizer.state.get(self.codebook, {})
        for value in moments.values():
            if torch.is_tensor(value) and value.shape == self.codebook.shape:
                value[dead] = 0
        return dead

    def _agree(self) -> None:
        """Let all processes continue with the same codebook."""
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.codebook.data, src=0)
