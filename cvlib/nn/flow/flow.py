"""Conditional flow: an invertible network t with v = t(x | c), trained so that v is Gaussian whatever c is.

Source: Rombach et al. 2020a (Making Sense of CNNs) and 2020b (Network-to-Network Translation): their
conditional invertible network and its maximum-likelihood objective.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.nn.flow.activations import InvertibleLeakyReLU
from cvlib.nn.flow.actnorm import ActNorm, no_batch_yet, too_few_values
from cvlib.nn.flow.conditioning import LabelEmbedder
from cvlib.nn.flow.coupling import AffineCoupling
from cvlib.nn.flow.shuffle import Shuffle
from cvlib.nn.precision import without_autocast

__all__ = ["ConditionalFlow", "FlowBlock", "Projection"]


class Projection:
    """What B conditions add to the first layers of all nets of a flow: ``data`` (2 n_blocks, 2, B, width).

    And what they let guess of x, ``guess`` (B, dim), if the flow has a guess. ``flow.project`` makes it once;
    forward, inverse and sample take it in place of the condition. Indexing picks conditions: with K labels,
    ``table = flow.project(torch.arange(K))``, then ``table[labels]``.
    """

    def __init__(self, data: Tensor, guess: Tensor | None = None) -> None:
        self.data, self.guess = data, guess

    def __len__(self) -> int:
        return self.data.shape[2]

    def __getitem__(self, rows: Tensor) -> Projection:
        guess = None if self.guess is None else self.guess.index_select(0, rows)
        return Projection(self.data.index_select(2, rows), guess)


class FlowBlock(nn.Module):
    """ActNorm, activation if any, double affine coupling, shuffle: the order of the authors' code.

    The figure of the paper draws coupling, ActNorm, shuffle: the same but for one ActNorm at the ends.
    """

    def __init__(self, dim: int, width: int, depth: int, dim_cond: int, alpha: float | None) -> None:
        super().__init__()
        self.norm = ActNorm(dim)
        self.activation = None if alpha is None else InvertibleLeakyReLU(alpha)
        self.coupling = AffineCoupling(dim, width, depth, dim_cond)
        self.shuffle = Shuffle(dim)

    def forward(self, x: Tensor, c1: Tensor, c2: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return y (B, dim) and logs, (B, dim) or (dim,), that sum up to log|det dy/dx|."""
        x, log_diag = self.norm(x)
        logs = [log_diag]
        if self.activation is not None:
            x, log_diag = self.activation(x)
            logs.append(log_diag)
        x, log_diag = self.coupling(x, c1, c2)
        return self.shuffle(x), [*logs, log_diag]

    def inverse(self, y: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
        """Return x with ``forward(x, c1, c2)[0] == y``."""
        x = self.coupling.inverse(self.shuffle.inverse(y), c1, c2)
        if self.activation is not None:
            x = self.activation.inverse(x)
        return self.norm.inverse(x)


class ConditionalFlow(nn.Module):
    """``n_blocks`` invertible blocks that share one condition; ``embedder=None`` makes it unconditional.

    With a ``guess`` (:class:`~cvlib.nn.flow.LinearGuess`, or any module from the condition to (B, dim)) the
    blocks see x minus what it guesses: a conditional shift before them, of determinant 1.
    The embedder (:class:`~cvlib.nn.flow.VectorEmbedder`, :class:`~cvlib.nn.flow.LabelEmbedder`,
    :class:`~cvlib.nn.flow.MapEmbedder`, or any module with a width ``dim``) is evaluated once a pass, and one
    matrix product brings its output into the first layers of all nets. Runs in the type of the weights under
    autocast too, since errors of the inverse grow with every block.

    Shapes: x, z (B, dim) or (B, dim, 1, 1); the condition is what the embedder takes, or a
    :class:`Projection` of B rows, or of one row for all. Raises: BookError if x or the condition has another
    width or number of rows, if a condition is absent or superfluous, if x, v or the condition is not finite,
    or if an ActNorm has scale 0, which no inverse can undo. What is refused leaves the flow as it was.

    >>> from cvlib.nn.flow import VectorEmbedder
    >>> flow = ConditionalFlow(dim=4, width=16, n_blocks=3, embedder=VectorEmbedder((6, 8, 5)))
    >>> x, cond = torch.randn(10, 4), torch.randn(10, 6)
    >>> v, logdet = flow(x, cond)
    >>> torch.allclose(flow.inverse(v, cond), x, atol=1e-5), flow.sample(cond).shape
    (True, torch.Size([10, 4]))
    """

    def __init__(
        self,
        dim: int,
        width: int = 1024,
        depth: int = 2,
        n_blocks: int = 20,
        embedder: nn.Module | None = None,
        activation: Literal["none", "lrelu"] = "none",
        alpha: float = 0.9,
        guess: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if guess is not None and embedder is None:
            raise BookError(
                "a guess without an embedder", "both or none", "an unconditional flow has no condition"
            )
        if activation not in ("none", "lrelu"):
            raise BookError(f"activation {activation!r}", "'none' or 'lrelu'")
        self.config: dict[str, Any] = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "n_blocks": n_blocks,
            "activation": activation,
            "alpha": alpha,
        }
        self.dim, self.embedder, self.guess = dim, embedder, guess
        dim_cond: int = 0 if embedder is None else embedder.dim  # type: ignore[assignment]
        slope = alpha if activation == "lrelu" else None
        self.blocks = nn.ModuleList(FlowBlock(dim, width, depth, dim_cond, slope) for _ in range(n_blocks))
        # the condition's part of the first layers and their biases, for S1, T1, S2, T2 of every block in turn
        fan = torch.tensor([[dim - dim // 2], [dim // 2]]).repeat(n_blocks, 2).view(-1, 1, 1) + dim_cond
        weight, bias = (torch.empty(4 * n_blocks, rows, width).uniform_(-1, 1) for rows in (dim_cond, 1))
        self.cond_weight, self.cond_bias = nn.Parameter(weight * fan**-0.5), nn.Parameter(bias * fan**-0.5)

    def project(self, cond: Tensor | None) -> Projection:
        """Return what ``cond`` adds to the first layers, for any number of passes to come."""
        with without_autocast(self.cond_bias):
            if self.embedder is None:
                if cond is not None:
                    raise BookError(f"a condition {tuple(cond.shape)}", "none: the flow is unconditional")
                return Projection(self.cond_bias.unflatten(0, (-1, 2)))
            if cond is None:
                raise BookError("no condition", "one for each sample", "pass cond=")
            h = self._embed(cond)
            weight, bias = self.cond_weight, self.cond_bias
            if h.shape[1:] != weight.shape[1:2]:
                name = type(self.embedder).__name__
                raise BookError(f"{name} gives {tuple(h.shape)}", f"(B, {weight.shape[1]}), as its dim says")
            data = torch.baddbmm(bias, h.expand(len(bias), -1, -1), weight).unflatten(0, (-1, 2))
            if self.guess is None:
                return Projection(data)
            labels = self.embedder if isinstance(self.embedder, LabelEmbedder) else None
            return Projection(data, self.guess(cond if labels is None else labels.one_hot(cond)))

    def _embed(self, cond: Tensor) -> Tensor:
        """Return h (B, dim_cond)."""
        assert self.embedder is not None
        return self.embedder(cond.to(self.cond_bias.dtype) if cond.is_floating_point() else cond)

    def forward(self, x: Tensor, cond: Tensor | Projection | None = None) -> tuple[Tensor, Tensor]:
        """Return v = t(x | cond), of the shape of ``x``, and log|det dv/dx| (B,)."""
        with without_autocast(x):
            v, logs = self._flat(x), []
            if self._is_waiting():
                self._check_first(x, cond)
            given = self._conditions(x, cond)
            c, v = given.data.unbind(0), v if given.guess is None else v - given.guess
            for i, block in enumerate(self.blocks):
                v, terms = block(v, c[2 * i], c[2 * i + 1])
                logs += terms
            # triangular Jacobians: log|det| is the sum of all logarithms on their diagonals
            logdet = torch.cat([t.expand(len(x), -1) for t in logs], dim=1).sum(1)
            self._check_finite(x, cond, logdet + v.sum(1), "x")
            return v.view_as(x), logdet

    def inverse(self, v: Tensor, cond: Tensor | Projection | None = None) -> Tensor:
        """Return x with ``forward(x, cond)[0] == v``."""
        with without_autocast(v):
            x = self._flat(v)
            if self._is_waiting():
                raise no_batch_yet()
            given = self._conditions(v, cond)
            c = given.data.unbind(0)
            for i in reversed(range(len(self.blocks))):
                x = self.blocks[i].inverse(x, c[2 * i], c[2 * i + 1])  # type: ignore[operator]
            x = x if given.guess is None else x + given.guess
            self._check_finite(v, cond, x.sum(1), "v")
            return x.view_as(v)

    def nll(self, x: Tensor, cond: Tensor | Projection | None = None) -> Tensor:
        """Return -log p(x | cond) (B,) in nats: |v|^2 / 2 - log|det| + dim / 2 log(2 pi).

        Its mean is the loss (Rombach et al. 2020a), which leaves out the last, constant term.
        """
        v, logdet = self(x, cond)
        return v.flatten(1).square().sum(1) / 2 - logdet + self.dim / 2 * math.log(2 * math.pi)

    @torch.no_grad()
    def sample(
        self,
        cond: Tensor | Projection | None = None,
        n: int | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return x = t^-1(v | cond), v ~ N(0, temperature^2): one each for B conditions, or ``n`` for one.

        Shape: (n, dim); n defaults to B. Raises: BookError if n is given with several conditions.
        """
        if self._is_waiting():
            raise no_batch_yet()
        c = cond if isinstance(cond, Projection) else self.project(cond)
        if n is not None and len(c) not in (1, n):
            raise BookError(f"n = {n} with {len(c)} conditions", "one condition, or n of them")
        shape = (len(c) if n is None else n, self.dim)
        v = torch.randn(shape, generator=generator, dtype=c.data.dtype, device="cpu").to(c.data.device)
        return self.inverse(temperature * v, c)

    def _is_waiting(self) -> bool:
        """Whether the blocks still wait for their first batch; on the meta device nothing is known."""
        first = self.blocks[0]
        return not (self.cond_bias.is_meta or first.norm.is_initialized)  # type: ignore[union-attr]  # a FlowBlock's

    def _check_first(self, x: Tensor, cond: Tensor | Projection | None) -> None:
        """Refuse a first batch that the blocks will refuse, before the embedder's ActNorms start from it."""
        if not self.blocks[0].training:
            raise no_batch_yet()
        if len(x) < 2:
            raise too_few_values(len(x))
        self._check_given(x, cond, "x")

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[1:].numel() != self.dim or x.dim() not in (2, 4):
            raise BookError(f"latents {tuple(x.shape)}", f"(B, {self.dim})")
        return x.flatten(1).to(self.cond_bias.dtype)

    def _conditions(self, x: Tensor, cond: Tensor | Projection | None) -> Projection:
        """Return the projected condition, of B rows or of 1, checked."""
        rows = 1 if cond is None or (isinstance(cond, Tensor) and not cond.ndim) else len(cond)
        if rows not in (1, len(x)):  # before an embedder sees them: its ActNorms may still wait for a start
            raise BookError(f"{rows} conditions for {len(x)} samples", "one each, or one for all")
        if isinstance(cond, Projection):
            c = cond
        elif isinstance(self.embedder, LabelEmbedder) and cond is not None and self.embedder.is_rowwise:
            labels = self.embedder.one_hot(cond)
            table = self.project(torch.arange(self.embedder.dim_in, device=cond.device))
            guess = None if table.guess is None else labels @ table.guess
            c = Projection(labels @ table.data, guess)  # K rows through the embedder, not B
        else:
            c = self.project(cond)
        own = (2 * len(self.blocks), self.cond_bias.shape[2])
        if c.data.shape[::3] != own:
            seen = "a projection for {} halves of blocks of width {}".format(*c.data.shape[::3])
            raise BookError(seen, "{} of width {}".format(*own), "make it with this flow's project")
        if (c.guess is None) != (self.guess is None) or (
            c.guess is not None and c.guess.shape[1] != self.dim
        ):
            seen = "no guess" if c.guess is None else f"a guess of {c.guess.shape[1]} numbers"
            wanted = "none" if self.guess is None else f"one of {self.dim}"
            raise BookError(seen, wanted, "make the projection with this flow's project")
        return c

    def _check_finite(
        self, given: Tensor, cond: Tensor | Projection | None, result: Tensor, name: str
    ) -> None:
        """One look at the result of a pass, and the reason if it is not finite."""
        if given.is_meta or bool(result.isfinite().all()):
            return
        self._check_given(given, cond, name)
        for i, block in enumerate(self.blocks):
            if (block.get_parameter("norm.scale") == 0).any():
                raise BookError(f"block {i} has an ActNorm of scale 0", "nonzero scales", "it has no inverse")
        raise BookError(
            f"the flow left the finite numbers (largest |{name}| {given.abs().max():.3g})",
            "finite weights and latents",
            "lower the learning rate or clip gradients",
        )

    def _check_given(self, given: Tensor, cond: Tensor | Projection | None, name: str) -> None:
        """Raise BookError that names the rows of what was given that are not finite."""
        both = [(name, given, "latents")]
        if cond is not None:
            rows = cond.data.movedim(2, 0) if isinstance(cond, Projection) else cond
            both.append(("the condition", rows, "conditions"))
        for what, values, wanted in both:
            sound = torch.atleast_1d(values).isfinite().unsqueeze(-1).flatten(1).all(1)
            broken = (~sound).nonzero().flatten().tolist()
            if broken:
                raise BookError(f"{what} is not finite in row(s) {broken[:5]}", f"finite {wanted}")
