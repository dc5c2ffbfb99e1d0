"""Checkpoints as others release them, written here with torch's own writers, old and new."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.checkpoints import read_state
from cvlib.train import save_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(1), nn.Linear(4, 2))


@pytest.fixture
def net():
    return network()


def trained(net):
    """An optimiser with a state: numbers, lists and tensors."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.9))
    net(torch.randn(4, 3, 3, 3)).square().mean().backward()
    optimizer.step()
    return optimizer.state_dict()


def prefixed(net, before):
    return OrderedDict((before + name, value) for name, value in net.state_dict().items())


def released(net):
    """By name: what lies on the disk, as the trainers of each release write it."""
    optimizer = trained(net)
    epoch = {"epoch": 60, "arch": "resnet50", "best_prec1": torch.tensor(60.2)}
    return {
        "bare": net.state_dict(),
        "of parameters": {k: nn.Parameter(v, requires_grad=False) for k, v in net.state_dict().items()},
        "trainer": {"model": net.state_dict(), "loss": {"logvar": torch.zeros(())}, "optimizer": optimizer},
        "several cards": {**epoch, "state_dict": prefixed(net, "module."), "optimizer": optimizer},
        "a field": prefixed(net, "model."),
        "trainer of a field": {"model": prefixed(net, "model."), "global_step": 7, "optimizer": optimizer},
        "both": {"state_dict": prefixed(net, "module.model.")},
    }


KINDS = list(released(network()))


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_release_gives_the_same_tensors(net, tmp_path, kind, is_old):
    content, path = released(net)[kind], tmp_path / "released.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=not is_old)
    found, wanted = read_state(path), net.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    other = network()
    other.load_state_dict(found)  # and they are what torch itself takes


def test_safetensors(net, tmp_path):
    save_weights(tmp_path / "w.safetensors", net)
    found = read_state(str(tmp_path / "w.safetensors"))
    assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())


def test_a_prefix_that_only_some_names_have_stays(net, tmp_path):
    state = {**prefixed(net, "model."), "loss.logvar": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    assert read_state(tmp_path / "w.ckpt").keys() == state.keys()


class Trap:
    """Pickled, it would make a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("place", ["state", "beside"])
def test_code_in_a_file_does_not_run(net, tmp_path, place, is_old):
    trap = Trap(tmp_path / "sprung")
    content = {"state": {**net.state_dict(), "x": trap}, "beside": {"model": net.state_dict(), "args": trap}}
    torch.save(content[place], tmp_path / "evil.pth", _use_new_zipfile_serialization=not is_old)
    with pytest.raises(BookError, match=r"evil\.pth cannot be read as weights.*tensors alone"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_whole_module_is_refused(net, tmp_path):
    torch.save(net, tmp_path / "net.pth")
    with pytest.raises(BookError, match=r"net\.pth cannot be read as weights"):
        read_state(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], r"holds a list, not tensors by name; wanted a state dict"),
        ({}, "holds a dict, not tensors by name"),
        ({"model": {}}, "holds a dict, not tensors by name"),
        ({"epoch": 3, "weight": torch.zeros(2)}, "holds a int under 'epoch'"),
        ({"model": {"weight": torch.zeros(2), "config": {"width": 3}}}, "holds a dict under 'config'"),
        ({1: torch.zeros(2)}, "holds a Tensor under 1"),
    ],
)
def test_what_is_no_tensor_by_name_is_named(tmp_path, content, words):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(BookError, match=rf"odd\.pth {words}"):
        read_state(tmp_path / "odd.pth")


def test_absent_files_are_told(tmp_path):
    with pytest.raises(BookError, match=r"none\.ckpt does not exist; wanted the cINN"):
        read_state(tmp_path / "none.ckpt", "the cINN")
    with pytest.raises(BookError, match="does not exist"):
        read_state(tmp_path)


@pytest.mark.parametrize("is_old", [False, True])
def test_damaged_files_give_one_line_or_tensors(net, tmp_path, is_old):
    """Cut and overwritten anywhere: an error of one line, never one of torch's own."""
    path, rng = tmp_path / "w.pth", random.Random(0)
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=not is_old)
    whole, n_errors = path.read_bytes(), 0
    for k in range(150):
        at = rng.randrange(len(whole))
        noise = bytes(rng.randrange(256) for _ in range(20))
        path.write_bytes(whole[:at] if k % 2 else whole[:at] + noise + whole[at + 20 :])
        try:
            read_state(path)
        except BookError as error:
            n_errors += 1
            assert "\n" not in str(error)
    assert n_errors > 60
