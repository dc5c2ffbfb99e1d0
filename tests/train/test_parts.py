"""Configurations, schedules, averages, random states, runtime: against closed forms."""

from __future__ import annotations

import json
import math
import random
import subprocess
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.train import (
    EMA,
    Runtime,
    canonical_json,
    config_digest,
    constant,
    git_commit,
    isolated_rng,
    microbatches,
    pays_bf16,
    run_folder,
    seed_everything,
    warmup_cosine,
    warmup_linear,
)
from cvlib.train.schedules import apply_schedules


def test_canonical_json_is_one_text_for_one_meaning():
    assert canonical_json({"b": (1, 2.0), "a": {"y": 0.1, "x": None}}) == '{"a":{"x":null,"y":0.1},"b":[1,2]}'
    value = 0.1 + 0.2
    assert json.loads(canonical_json({"v": value}))["v"] == value  # all digits
    assert config_digest({"a": 1}) != config_digest({"a": True}) != config_digest({"a": "1"})
    for bad in (math.nan, object(), {1: 2}):
        with pytest.raises(BookError, match=r"config\.a"):
            canonical_json({"a": bad})


def test_run_folder_differs_when_the_configuration_does(tmp_path):
    one, two = (run_folder(tmp_path, "gpt", {"seed": seed}) for seed in (0, 1))
    assert one != two and one.parent == tmp_path
    assert one.name == "gpt-" + config_digest({"seed": 0})[:8]


@pytest.mark.parametrize("make", [warmup_linear, warmup_cosine])
def test_schedules_rise_then_fall_to_the_final_factor(make):
    factors = [make(10, 100, final=0.1)(t) for t in range(101)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.55) and factors[100] == pytest.approx(0.1)
    assert make(10, 100, final=0.1)(200) == pytest.approx(0.1)
    assert [constant(4)(t) for t in (0, 3, 99)] == [0.25, 1, 1]


def test_schedules_scale_every_group_from_its_base_rate():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    sgd = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    for t in (0, 5):  # the second call must not compound the first
        apply_schedules({"sgd": sgd}, {"sgd": warmup_linear(0, 10)}, t)
    assert [group["lr"] for group in sgd.param_groups] == pytest.approx([0.5, 0.05])


def test_ema_against_the_sum():
    layer = nn.Linear(1, 1, bias=False)
    ema = EMA(layer, decay=0.5)
    mean = layer.weight.item()
    for n in range(1, 30):
        nn.init.normal_(layer.weight)
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * layer.weight.item()
    assert ema.mean["weight"].item() == pytest.approx(mean, rel=1e-5)  # fp32 against fp64
    last = layer.weight.item()
    with pytest.raises(RuntimeError), ema.applied():
        assert layer.weight.item() == pytest.approx(mean, rel=1e-5)
        raise RuntimeError
    assert layer.weight.item() == last
    with pytest.raises(BookError, match="other weights"):
        ema.load_state_dict(EMA(nn.Linear(1, 1)).state_dict())


def draw() -> tuple[float, ...]:
    return torch.rand(()).item(), np.random.rand(), random.gauss(0, 1), torch.randn(3)[1].item()  # noqa: NPY002


def test_isolated_rng_leaves_all_generators_as_they_were():
    seed_everything(3)
    wanted = [draw() for _ in range(3)]
    seed_everything(3)
    assert draw() == wanted[0]
    with isolated_rng(seed=5):
        inside = draw()
    with isolated_rng():
        assert draw() == wanted[1]  # goes on from where it stands, and is put back
    assert [draw(), draw()] == wanted[1:]
    seed_everything(5)
    assert draw() == inside


def test_microbatches_give_the_gradient_of_the_whole():
    x, y = torch.randn(7, 4), torch.randn(7, 1)
    net = nn.Linear(4, 1)
    (net(x) - y).square().mean().backward()
    wanted = net.weight.grad.clone()
    net.zero_grad()
    for piece, share in microbatches({"x": x, "y": y, "name": "kept"}, 3):
        assert piece["name"] == "kept"
        ((net(piece["x"]) - piece["y"]).square().mean() * share).backward()
    torch.testing.assert_close(net.weight.grad, wanted)


def test_runtime_refuses_what_is_not_there():
    with pytest.raises(BookError, match="device is 'gpu'; wanted auto, cpu, cuda or mps"):
        Runtime("gpu")
    with pytest.raises(BookError, match="precision is 'fp16'; wanted auto, fp32 or bf16"):
        Runtime("cpu", "fp16")
    if not torch.cuda.is_available():
        with pytest.raises(BookError, match="'cuda', which this torch does not find"):
            Runtime("cuda")


@pytest.mark.parametrize("asked", ["auto", "cuda", "cuda:1"])
def test_runtime_numbers_the_card_that_it_is_given(asked, monkeypatch):
    chosen = []

    def set_device(device):  # torch's own rule: a card has a number
        chosen.append(torch.cuda._utils._get_device_index(device))

    for name, value in {
        "is_available": lambda: True,
        "current_device": lambda: 1,
        "set_device": set_device,
        "is_bf16_supported": lambda **_: True,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    alone = SimpleNamespace(
        num_processes=1, process_index=0, device=torch.device("cuda")
    )  # as accelerate says
    monkeypatch.setattr("cvlib.train.runtime.PartialState", lambda cpu: alone)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    try:
        runtime = Runtime(asked)
    finally:
        torch.set_float32_matmul_precision(before)
    assert runtime.device == torch.device("cuda", 1) and chosen == [1]
    assert runtime.precision == "bf16" and runtime.fused == {"fused": True}


def test_runtime_precision_and_memory_format():
    runtime = Runtime("cpu", "bf16")
    conv = runtime.prepare(nn.Conv2d(4, 4, 3))
    assert conv.weight.is_contiguous()  # channels_last is for CUDA; see Runtime.prepare
    with runtime.autocast():
        assert conv(torch.zeros(1, 4, 5, 5)).dtype == torch.bfloat16
    with Runtime("cpu", "fp32").autocast():
        assert conv(torch.zeros(1, 4, 5, 5)).dtype == torch.float32
    assert Runtime("cpu").precision == ("bf16" if pays_bf16(torch.device("cpu")) else "fp32")
    for word in ("cpu", "bf16", torch.__version__):
        assert word in runtime.describe()


def test_backward_from_a_tensor_with_its_gradient():
    runtime, x = Runtime("cpu"), torch.randn(5, requires_grad=True)
    g = torch.randn(5)
    runtime.backward(x**2, g)
    torch.testing.assert_close(x.grad, 2 * x.detach() * g)


def test_clip_returns_the_norm_before_and_scales_all_groups():
    a, b = (torch.zeros(1, requires_grad=True) for _ in range(2))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    sgd = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=1.0)
    assert Runtime("cpu").clip(sgd, 1.0) == pytest.approx(5.0)
    assert [a.grad.item(), b.grad.item()] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_commit_outside_a_checkout_is_unknown(tmp_path):
    assert git_commit(tmp_path) == "unknown"


def test_a_commit_has_a_plus_if_code_differs_and_none_for_results(tmp_path):
    def git(*words):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True
        )

    results = tmp_path / "book" / "results" / "demo.json"
    results.parent.mkdir(parents=True)
    results.write_text("{}")
    rules = tmp_path / "book" / "results" / "rules" / "demo.yaml"
    rules.parent.mkdir()
    rules.write_text("seeds: [0]")
    (tmp_path / "code.py").write_text("x = 1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert git_commit(tmp_path) == commit
    results.write_text('{"runs": 1}')
    assert git_commit(tmp_path) == commit == git_commit(tmp_path / "book")
    rules.write_text("seeds: [1]")
    assert git_commit(tmp_path) == f"{commit}+"
    rules.write_text("seeds: [0]")
    (tmp_path / "code.py").write_text("x = 2")
    assert git_commit(tmp_path) == f"{commit}+" == git_commit(tmp_path / "book")
