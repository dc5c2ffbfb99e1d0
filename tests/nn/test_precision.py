from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.nn import precision
from cvlib.nn.backbones import SmallCNN
from cvlib.nn.precision import quick_bf16, without_autocast


def test_types_stay_and_autocast_comes_back():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_shapes_without_numbers_pass():
    x = torch.empty(2, 2, device="meta")
    with without_autocast(x):
        assert (x @ x).shape == (2, 2)


@pytest.fixture
def old_cpu(monkeypatch):
    """A CPU of which the library thinks that it has no bf16 units."""
    monkeypatch.setattr(precision, "pays_bf16", lambda device: False)


def bf16(call, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return call(x)


CALLS = {
    "strided": (lambda x: F.conv2d(x, weight(8, 4, 3), stride=2, padding=1), (2, 4, 9, 9)),
    "in groups": (lambda x: F.conv2d(x, weight(4, 1, 3), weight(4), padding=1, groups=4), (2, 4, 9, 9)),
    "bias by name": (lambda x: F.conv2d(x, weight(8, 4, 1), bias=weight(8)), (2, 4, 5, 5)),
    "linear": (lambda x: F.linear(x, weight(8, 4), weight(8)), (5, 4)),
}


def weight(*shape: int) -> torch.Tensor:
    """Weights that are no bf16 numbers; the last size of a kernel counts twice."""
    shape = (*shape, shape[-1]) if len(shape) == 3 else shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", CALLS)
def test_products_are_those_of_bf16_units(old_cpu, name):
    call, shape = CALLS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    wanted = bf16(call, x)

    def quickly(x):
        with quick_bf16(x):
            return call(x)

    found = bf16(quickly, x)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted.float(), rtol=2**-7, atol=1e-3)  # one step of bf16
    assert (found == wanted).float().mean() > 0.95 and (found != call(x)).any()


def test_nothing_changes_without_autocast_or_where_bf16_pays(old_cpu, monkeypatch):
    x = weight(2, 4, 6)
    with quick_bf16(x):
        assert F.conv2d(x, weight(8, 4, 3)).dtype == torch.float32
    monkeypatch.setattr(precision, "pays_bf16", lambda device: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not isinstance(quick_bf16(x), torch.overrides.TorchFunctionMode)
        with without_autocast(x):
            assert not isinstance(quick_bf16(x), torch.overrides.TorchFunctionMode)


def test_gradients_pass(old_cpu):
    layer, x = nn.Linear(4, 3), weight(6, 4)

    def slopes(quick: bool):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16), quick_bf16(x) if quick else without_autocast(x):
            layer(x).float().square().sum().backward()
        return layer.weight.grad.clone()

    torch.testing.assert_close(slopes(True), slopes(False), rtol=0.05, atol=0.05)


def test_a_backbone_under_autocast_gives_the_same_features(old_cpu, monkeypatch):
    torch.manual_seed(0)
    net, x = SmallCNN().eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        quick = bf16(net.run, x)
        monkeypatch.setattr(precision, "pays_bf16", lambda device: True)
        plain, exact = bf16(net.run, x), net.run(x)
    assert quick.dtype == plain.dtype == torch.bfloat16
    error = (quick.float() - plain.float()).norm() / plain.float().norm()
    assert error < 0.5 * (plain.float() - exact).norm() / exact.norm()


def test_where_autocast_stays_out_a_card_multiplies_exactly():
    on_a_card = SimpleNamespace(device=torch.device("cuda"))
    torch.set_float32_matmul_precision("high")
    try:
        with without_autocast(on_a_card):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        with without_autocast(torch.ones(1)):
            assert torch.get_float32_matmul_precision() == "high"  # nothing to do for a CPU
    finally:
        torch.set_float32_matmul_precision("highest")
