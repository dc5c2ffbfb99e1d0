"""Weights as files: round trips, and every way in which a file can be the wrong one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.train import load_weights_file, save_weights, weights_metadata


def network() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    for p in net.parameters():
        nn.init.normal_(p)
    return net


def test_round_trip_with_metadata(tmp_path):
    net, other = network(), network()
    note = {"config": {"ch": 4, "rate": 0.1}, "command": "papermill ..."}
    save_weights(tmp_path / "w.safetensors", net, metadata=note)
    assert (
        load_weights_file(tmp_path / "w.safetensors", other)
        == note
        == weights_metadata(tmp_path / "w.safetensors")
    )
    for one, two in zip(net.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_halves_floats_and_leaves_counters(tmp_path):
    net, other = network(), network()
    net[1].num_batches_tracked.fill_(257)  # not a bf16 number
    save_weights(tmp_path / "w.safetensors", net, dtype=torch.bfloat16)
    load_weights_file(tmp_path / "w.safetensors", other)
    assert other[1].num_batches_tracked == 257
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, net[0].weight.bfloat16().float())


def test_tied_weights_are_written(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    save_weights(tmp_path / "w.safetensors", net)
    load_weights_file(tmp_path / "w.safetensors", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_cut_off_file(tmp_path, keep):
    file = tmp_path / "w.safetensors"
    save_weights(file, network())
    size = file.stat().st_size
    left = keep if keep >= 0 else size + keep
    os.truncate(file, left)
    with pytest.raises(BookError, match=f"has {left} bytes") as error:
        load_weights_file(file, network())
    assert str(file) in str(error.value)
    if keep == -1:
        assert f"wanted {size}" in str(error.value)


def test_not_a_weights_file(tmp_path):
    file = tmp_path / "w.safetensors"
    with pytest.raises(BookError, match="does not exist"):
        load_weights_file(file, network())
    file.write_bytes((20).to_bytes(8, "little") + b"{'no json'...........")
    with pytest.raises(BookError, match="unreadable header"):
        load_weights_file(file, network())


def test_other_shapes_or_names_leave_the_module_unchanged(tmp_path):
    file = tmp_path / "w.safetensors"
    save_weights(file, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5)))
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(BookError, match=r"has 1.weight of shape \(5,\); wanted \(4,\)"):
        load_weights_file(file, net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    save_weights(file, nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(1, 1)))
    with pytest.raises(BookError, match=r"lacks 1 weights \(0.bias\) and has unknown 2 weights \(2.bias\)"):
        load_weights_file(file, net)
