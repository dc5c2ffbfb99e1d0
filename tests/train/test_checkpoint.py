"""Checkpoints that are cut off, damaged, foreign, or do not fit on the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.train import load_weights
from cvlib.train.checkpoint import (
    load_optimizer,
    pack,
    prune_checkpoints,
    read_checkpoint,
    unpack,
    write_checkpoint,
)


@pytest.fixture
def begun(experiment, tmp_path):
    """A run folder with checkpoints 4 and 8 of 12 steps."""

    def crash(t):
        if t == 9:
            raise RuntimeError("crash")

    run = experiment()
    run.before_step = crash
    with pytest.raises(RuntimeError, match="crash"):
        run.run(tmp_path / "run")
    return tmp_path / "run"


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_cut_off_file_is_named_with_both_sizes_and_the_way_on(experiment, begun):
    file = begun / "checkpoint-00000008/weights.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 100)
    with pytest.raises(BookError) as error:
        experiment().run(begun)
    text = one_line(error)
    assert f"{file} has {size - 100} bytes; wanted {size};" in text
    assert f"delete the folder {file.parent} to go on from checkpoint-00000004" in text
    shutil.rmtree(file.parent)  # as told
    whole, again = experiment(), experiment()
    whole.run(begun.parent / "whole")
    assert again.run(begun).resumed_from == 4
    again.assert_same(whole)


def test_one_wrong_bit_is_noticed(experiment, begun):
    file = begun / "checkpoint-00000008/optimizers.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BookError, match=r"is damaged: its .* bytes have another SHA-256"):
        experiment().run(begun)


@pytest.mark.parametrize("name", ["rng.safetensors", "manifest.json", "state.json"])
def test_missing_file_is_named(experiment, begun, name):
    (begun / "checkpoint-00000008" / name).unlink()
    with pytest.raises(BookError, match=f"{name} is missing") as error:
        load_weights(begun, experiment().modules)
    one_line(error)


def test_unreadable_config_and_foreign_folder(experiment, begun):
    (begun / "config.json").write_text('{"config": ')
    with pytest.raises(BookError, match=r"config.json is missing or unreadable"):
        experiment().run(begun)
    (begun / "config.json").unlink()
    with pytest.raises(BookError, match=r"has checkpoints but no config.json"):
        experiment().run(begun)


def test_checkpoint_of_another_model(experiment, begun):
    other = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(BookError, match=r"lacks|unknown") as error:
        load_weights(begun, {"model": other})
    assert "another configuration" in one_line(error)
    with pytest.raises(BookError, match=r"holds no module 'net'; wanted one of: critic, model"):
        load_weights(begun, {"net": other})
    with pytest.raises(BookError, match="has no checkpoint"):
        load_weights(begun / "nowhere", {"model": other})


def test_full_disk_while_saving_keeps_what_was_there(experiment, begun, monkeypatch):
    """The first fsync of the next checkpoint fails, as on a full disk."""
    before = sorted(p.name for p in begun.rglob("*"))
    run = experiment()
    real = os.fsync

    def full(handle):
        if "checkpoint" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BookError, match=r"no space left to write .*checkpoint-00000012") as error:
        run.run(begun)
    one_line(error)
    assert sorted(p.name for p in begun.rglob("*")) == before  # nothing new, nothing lost
    monkeypatch.setattr(os, "fsync", real)
    whole, again = experiment(), experiment()
    whole.run(begun.parent / "whole")
    assert again.run(begun).resumed_from == 8
    again.assert_same(whole)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB, where the machine lets us make one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_really_full_disk(experiment, tiny_disk):
    """Fills up while checkpoints and log lines are written, frees up, goes on: equal to never full."""
    ballast = tiny_disk / "ballast"
    run = experiment()
    run.before_step = lambda t: ballast.write_bytes(b"x" * _free(tiny_disk)) if t == 5 else None
    with pytest.raises(BookError, match="no space left to write") as error:
        run.run(tiny_disk / "run")
    one_line(error)
    assert [p.name for p in (tiny_disk / "run").glob("*checkpoint-*")] == ["checkpoint-00000004"]
    read_checkpoint(tiny_disk / "run/checkpoint-00000004")
    lines = (tiny_disk / "run/log.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)  # no torn line
    ballast.unlink()
    whole, again = experiment(), experiment()
    whole.run(tiny_disk.parent / "whole")
    assert again.run(tiny_disk / "run").resumed_from == 4
    again.assert_same(whole)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_pack_and_unpack_are_inverse():
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "avg": torch.randn(2, 3)}, 1: {}},
        "groups": [{"betas": (0.5, 0.9), "lr": 0.1 + 0.2, "eps": 1e-8, "none": None, "flag": True}],
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
    }
    tensors: dict[str, torch.Tensor] = {}
    back = unpack(json.loads(json.dumps(pack(tree, tensors))), tensors)
    assert back["groups"] == tree["groups"] and list(back["state"]) == [0, 1]
    assert torch.equal(back["state"][0]["avg"], tree["state"][0]["avg"])
    assert (back["a/b"].item(), back["a"]["b"].item()) == (1, 0)
    with pytest.raises(TypeError, match="cannot keep x: set"):
        pack({"x": {1}}, {})


def test_only_the_last_two_are_kept(tmp_path):
    for step in (2, 10, 100_000_000):  # the last has nine digits and still counts as the newest
        write_checkpoint(tmp_path, step, {"w": torch.ones(1)}, {})
    prune_checkpoints(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000010", "checkpoint-100000000"]


def test_optimizer_moments_keep_the_memory_format():
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(conv.parameters())
    conv(torch.randn(1, 4, 5, 5)).sum().backward()
    adam.step()
    tensors: dict[str, torch.Tensor] = {}
    tree = pack(adam.state_dict(), tensors)
    kept = unpack(tree, {name: tensor.contiguous() for name, tensor in tensors.items()})
    other = torch.optim.Adam(conv.parameters())
    load_optimizer(other, kept, "here")
    moment = other.state[conv.weight]["exp_avg"]
    assert moment.stride() == conv.weight.stride() != moment.contiguous().stride()
    assert torch.equal(moment, adam.state[conv.weight]["exp_avg"])
    with pytest.raises(BookError, match=r"groups of \[2\] weights; wanted \[1\]"):
        load_optimizer(torch.optim.Adam([conv.bias]), kept, "here")


def test_full_disk_at_a_log_line_leaves_the_log_as_it_was(experiment, begun, monkeypatch):
    """The line is written, then the flush fails: it must not stay, or a resumed run would have it twice."""
    log, real = begun / "log.jsonl", os.fsync
    before = log.read_text()
    run = experiment()

    def full(handle):
        if Path(f"/proc/self/fd/{handle}").readlink() == log:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BookError, match=r"no space left to write .*log\.jsonl"):
        run.run(begun)
    steps = [json.loads(line)["step"] for line in before.splitlines()]
    assert steps == [3, 6, 9]  # 9 came after the checkpoint of 8: cut off on resuming
    assert log.read_text().splitlines() == before.splitlines()[:2]
