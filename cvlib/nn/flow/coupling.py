"""Double affine coupling: each half of the features is scaled and moved by what the other half says.

Source: Dinh et al. 2017 (Real NVP), Secs. 3.2 and 3.5; Rombach et al. 2020a (Making Sense of CNNs) and 2020b
(Network-to-Network Translation), whose scales pass a tanh.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.errors import BookError

__all__ = ["AffineCoupling", "TwinNets", "twin_weight"]

WIDE = 512  #: from this width on few rows times a weight stored (out, in) is fastest, below (in, out)


class _WideProduct(torch.autograd.Function):
    """bias + x W^T for stacked matrices W (2, out, in).

    Autograd's own gradient of W would come transposed and cost one more copy of the largest tensors.
    """

    @staticmethod
    def forward(ctx: Any, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias, x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_weight = torch.bmm(grad.transpose(1, 2), x)
        return grad, torch.bmm(grad, weight), grad_weight  # autograd sums the first to the bias's shape


def twin_weight(first: Tensor, second: Tensor, width: int) -> Tensor:
    """Return two matrices (out, in), as ``nn.Linear`` has them, as one weight of :class:`TwinNets`."""
    weight = torch.stack([first, second])
    return weight if width >= WIDE else weight.transpose(1, 2).contiguous()


class TwinNets(nn.Module):
    """The perceptrons S and T of one half, equal in shape, side by side: one batched product a layer.

    Each is Linear, LeakyReLU(0.01), ``depth`` times [Linear, LeakyReLU], Linear. What the condition and the
    bias add to the first layer comes ready-made, since one product makes it for all blocks of a flow. Weights
    are (2, in, out), from width 512 on (2, out, in); biases (2, 1, out).
    """

    def __init__(self, dim_in: int, dim_out: int, width: int, depth: int, dim_cond: int = 0) -> None:
        super().__init__()
        self.is_wide = width >= WIDE
        sizes = [dim_in, *[width] * (depth + 1), dim_out]
        fans = [dim_in + dim_cond, *sizes[1:-1]]  # nn.Linear's range, which counts the condition as an input
        for i, fan in enumerate(fans):
            draw = torch.empty(2, sizes[i + 1], sizes[i]).uniform_(-(fan**-0.5), fan**-0.5)
            self.register_parameter(f"weight{i}", nn.Parameter(twin_weight(draw[0], draw[1], width)))
            if i:
                bias = torch.empty(2, 1, sizes[i + 1]).uniform_(-(fan**-0.5), fan**-0.5)
                self.register_parameter(f"bias{i}", nn.Parameter(bias))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the outputs (2, B, dim_out) for x (B, dim_in) and c (2, B or 1, width)."""
        product = _WideProduct.apply if self.is_wide else torch.baddbmm
        params: Iterator[Any] = iter(self._parameters.values())  # weight0, weight1, bias1, ...: one look-up
        h = product(c, x.expand(2, -1, -1), next(params))
        for weight, bias in zip(params, params, strict=True):
            h = product(bias, F.leaky_relu_(h, 0.01), weight)
        return h


class AffineCoupling(nn.Module):
    """Map (a, b) to (b', a') with b' = b exp(S1(a, c)) + T1(a, c) and a' = a exp(S2(b', c)) + T2(b', c).

    S ends in a tanh, so that one coupling scales by at most e. The Jacobian is a product of two triangular
    ones: log|det| is the sum of S1 and S2. ``dim`` may be odd: a is then the longer half.

    Raises: BookError if there are no two halves.
    """

    def __init__(self, dim: int, width: int, depth: int = 2, dim_cond: int = 0) -> None:
        super().__init__()
        if dim < 2:
            raise BookError(f"{dim} feature(s) in a coupling", "at least 2, one for each half")
        self.sizes = [dim - dim // 2, dim // 2]
        self.first = TwinNets(self.sizes[0], self.sizes[1], width, depth, dim_cond)
        self.second = TwinNets(self.sizes[1], self.sizes[0], width, depth, dim_cond)

    def forward(self, x: Tensor, c1: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (B, dim) and the log-scales (B, dim), whose sum over features is log|det dy/dx|.

        c1, c2: what condition and bias add to the first layers of either pair of nets, (2, B or 1, width).
        """
        a, b = x.split(self.sizes, dim=1)
        s1, t1 = self.first(a, c1).unbind()
        s1 = torch.tanh(s1)
        b = torch.addcmul(t1, b, s1.exp())
        s2, t2 = self.second(b, c2).unbind()
        s2 = torch.tanh(s2)
        a = torch.addcmul(t2, a, s2.exp())
        return torch.cat((b, a), dim=1), torch.cat((s1, s2), dim=1)

    def inverse(self, y: Tensor, c1: Tensor, c2: Tensor) -> Tensor:
        """Return x (B, dim) with ``forward(x, c1, c2)[0] == y``."""
        b, a = y.split(self.sizes[::-1], dim=1)
        s2, t2 = self.second(b, c2).unbind()
        a = (a - t2) * torch.tanh(s2).neg().exp()
        s1, t1 = self.first(a, c1).unbind()
        b = (b - t1) * torch.tanh(s1).neg().exp()
        return torch.cat((a, b), dim=1)
