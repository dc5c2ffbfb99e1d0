from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.flow import AffineCoupling, TwinNets
from cvlib.nn.flow.coupling import WIDE, twin_weight


def plain(twin, x, c):
    """S and T one after the other, layer by layer, with the weights of ``twin``."""
    outputs = []
    for k in range(2):
        matrices = [p[k] if twin.is_wide else p[k].T for n, p in twin.named_parameters() if "weight" in n]
        biases = [p[k, 0] for n, p in twin.named_parameters() if "bias" in n]
        h = F.linear(x, matrices[0]) + c[k]
        for matrix, bias in zip(matrices[1:], biases, strict=True):
            h = F.linear(torch.where(h > 0, h, 0.01 * h), matrix, bias)
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("width, rows", [(16, 5), (16, 1), (WIDE, 5), (WIDE, 1)])
def test_two_nets_at_once_equal_one_after_the_other_with_their_gradients(width, rows):
    twin = TwinNets(3, 4, width, depth=1).double()
    x = torch.randn(5, 3).double().requires_grad_()
    c = torch.randn(2, rows, width).double().requires_grad_()
    inputs = [x, c, *twin.parameters()]
    wanted, seen = plain(twin, x, c), twin(x, c)
    torch.testing.assert_close(seen, wanted)
    g = torch.randn_like(seen)
    grads, wanted_grads = (torch.autograd.grad((out * g).sum(), inputs) for out in (seen, wanted))
    for grad, expected in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, expected)
    assert all(grad.is_contiguous() for grad in grads[2:])  # else every step copies the weights' gradients


def test_first_weights_are_those_of_linear_layers():
    """The range of nn.Linear counts the condition among the inputs."""
    twin, linear = TwinNets(40, 8, 256, depth=1, dim_cond=60), nn.Linear(100, 256)
    assert twin.weight0.abs().max().item() == pytest.approx(linear.weight.abs().max().item(), rel=1e-2)
    assert twin.weight1.abs().max().item() == pytest.approx(256**-0.5, rel=1e-2)


@pytest.mark.parametrize("width", [8, WIDE])
def test_twin_weight_holds_both_matrices(width):
    s, t = torch.randn(2, 3, 5)
    weight = twin_weight(s, t, width)
    assert weight.is_contiguous()
    for k, matrix in enumerate((s, t)):
        assert torch.equal(weight[k] if width >= WIDE else weight[k].T, matrix)


@pytest.mark.parametrize("dim, width, rows", [(6, 16, 4), (7, 16, 1), (2, 16, 4), (6, WIDE, 4)])
def test_inverse_and_log_determinant(dim, width, rows, logdet_of):
    coupling = AffineCoupling(dim, width, depth=1).double()
    c1, c2 = torch.randn(2, 2, rows, width).double()
    x = torch.randn(4, dim).double()
    y, logs = coupling(x, c1, c2)
    torch.testing.assert_close(coupling.inverse(y, c1, c2), x)
    for k in range(4):
        one = [c if rows == 1 else c[:, k : k + 1] for c in (c1, c2)]
        seen = logdet_of(lambda v, one=one: coupling(v, *one)[0], x[k : k + 1])
        torch.testing.assert_close(logs[k : k + 1].sum(1), seen)


def test_formula():
    coupling = AffineCoupling(5, 8, depth=0).double()
    c1, c2 = torch.randn(2, 2, 3, 8).double()
    a, b = torch.randn(3, 3).double(), torch.randn(3, 2).double()
    s1, t1 = plain(coupling.first, a, c1)
    b2 = b * torch.exp(torch.tanh(s1)) + t1
    s2, t2 = plain(coupling.second, b2, c2)
    a2 = a * torch.exp(torch.tanh(s2)) + t2
    y, _ = coupling(torch.cat([a, b], 1), c1, c2)
    torch.testing.assert_close(y, torch.cat([b2, a2], 1))


def test_scales_stay_within_e():
    coupling = AffineCoupling(4, 8)
    with torch.no_grad():
        for p in coupling.parameters():
            p.mul_(1e4)
    _, logs = coupling(torch.randn(50, 4), *torch.randn(2, 2, 50, 8))
    assert logs.abs().max() == 1


def test_one_feature_is_refused():
    with pytest.raises(BookError, match=r"1 feature.*at least 2"):
        AffineCoupling(1, 8)
