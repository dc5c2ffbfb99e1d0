"""The device that is none raises where a graphics card would, and computes what the CPU computes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cvlib.train import Runtime
from cvlib.train.journal import Journal

spec = importlib.util.spec_from_file_location("pretend", Path(__file__).with_name("pretend.py"))
device = sys.modules["pretend"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(device)


@pytest.fixture
def there():
    with device.pretend() as where:
        yield where


def test_a_tensor_goes_there_and_comes_back(there):
    x = torch.randn(3, 4)
    y = x.to(there)
    assert y.device == there and y.shape == x.shape and y.dtype == x.dtype and not y.is_meta
    assert y.cpu().device.type == "cpu" and torch.equal(y.cpu(), x)
    y += 1
    assert torch.equal(y.cpu(), x + 1) and y.sum().item() == pytest.approx((x + 1).sum().item())
    assert f"{y[0, 0]:.3f}" == f"{x[0, 0] + 1:.3f}" and y[0].tolist() == (x + 1)[0].tolist()


def test_a_copy_is_a_copy(there):
    x = torch.zeros(3)
    y = x.to(there)
    back = y.cpu()
    back += 1
    assert torch.equal(y.cpu(), torch.zeros(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.zeros(2, device=d),
        lambda d: torch.tensor([1.0, 2.0], device=d),
        lambda d: torch.arange(3, device=d),
        lambda d: torch.rand(2, device=d),
        lambda d: torch.zeros(2).to(d).new_zeros(3),
        lambda d: torch.zeros(2).to(d).new_tensor(3.0),
        lambda d: torch.zeros(2, device=d)[torch.tensor([0])],  # CUDA takes places from the CPU
        lambda d: torch.zeros(2, device=d) + torch.tensor(1.0),  # and single numbers
        lambda d: torch.zeros(2, device=d).index_put((torch.tensor([0]),), torch.tensor(1.0)),
    ],
)
def test_what_is_made_there_lies_there(there, make):
    assert isinstance(make(there), device.Held)


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.stack([a.sum(), b.sum()]),
        lambda a, b: torch.where(a > 0, b, a),
        lambda a, b: nn.functional.linear(a[None], b[None]),
        lambda a, b: b[a.long()],  # the CPU's, indexed from there
        lambda a, b: a.index_put_((torch.arange(3),), b),
        lambda a, b: b + a.sum(),  # a single number of the device is no number of the CPU
        lambda a, b: torch.equal(a, b),
        lambda a, b: a.gather(0, b.long()),
        lambda a, b: torch.rand(3, device=a.device, generator=torch.Generator()),
        lambda a, b: a.uniform_(generator=torch.Generator()),
        lambda a, b: a.numpy(),
        lambda a, b: a.double(),  # MPS refuses
        lambda a, b: b.double().to(a.device),
    ],
)
def test_what_cuda_refuses_is_refused(there, mix):
    with pytest.raises((RuntimeError, TypeError)):
        mix(torch.zeros(3).to(there), torch.zeros(3))


def train(where, steps=5):
    """Return the weights of a small network after some steps on ``where``, and the losses."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.LazyLinear(2))
    images, labels = torch.randn(16, 3, 6, 6), torch.randint(0, 2, (16,))
    net(images)
    net.to(where)
    optimizer, losses = torch.optim.AdamW(net.parameters(), lr=0.01), []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net(images.to(where)), labels.to(where))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {name: value.cpu() for name, value in net.state_dict().items()}, losses


def test_training_there_is_training_here_to_the_last_bit(there):
    here, losses = train("cpu")
    away, others = train(there)
    assert losses == others and losses[-1] < losses[0] and device.ran.total() > 100
    for name, value in here.items():
        assert torch.equal(value, away[name]), name


def test_runtimes_pick_it_with_the_memory_format_of_a_card(there):
    runtime = Runtime()
    assert runtime.device == there and runtime.precision == "fp32"
    net = runtime.prepare(nn.Conv2d(3, 8, 3))
    out = net(runtime.to_device({"image": torch.randn(2, 3, 6, 6)})["image"])
    assert out.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        out.view(2, -1)


def test_a_step_may_count_on_the_cpu_what_it_loses_on_the_device(there, tmp_path):
    journal = Journal(tmp_path, steps=4, runtime=Runtime(), quiet=True)
    for t in range(4):
        lost, counted = torch.tensor(float(t), device=there), torch.tensor(2.0)
        journal.record(t, {"revived": counted, "loss": lost, "speed": 1.0}, images=8)
    journal.write(4, {})
    (row,) = journal.rows
    assert (row["loss"], row["revived"], row["speed"]) == (1.5, 2.0, 1.0)


def test_a_network_left_behind_is_found(there):
    runtime = Runtime()
    with pytest.raises(
        RuntimeError, match=r"addmm.* met \(2, 3\) of the device and \(4,\), \(3, 4\) of the CPU"
    ):
        nn.Linear(3, 4)(torch.zeros(2, 3).to(runtime.device))


def test_afterwards_all_is_as_it_was():
    with device.pretend():
        pass
    assert Runtime("cpu").device.type == "cpu"
    assert torch.zeros(2, device="meta").is_meta and not isinstance(
        torch.zeros(2, device="meta"), device.Held
    )
