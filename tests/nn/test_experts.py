"""Experts: what a judge is asked, and networks that come frozen out of weights files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cvlib.data import emoji
from cvlib.data.factors import TARGETS as FACTORS
from cvlib.data.factors import factor_targets
from cvlib.errors import BookError
from cvlib.nn import experts
from cvlib.nn.backbones import EfficientNetLite0
from cvlib.nn.experts import Judge
from cvlib.nn.vae import VectorAutoencoder
from cvlib.train import Runtime, weights_metadata
from cvlib.train.weights import save_weights


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# the nine numbers


def test_targets_have_mean_0_and_variance_1_under_the_draws_of_the_data():
    drawn = emoji.sample_factors(50_000, gen()).tensor().double()
    found = factor_targets(drawn)
    assert found.shape == (50_000, len(FACTORS))
    torch.testing.assert_close(found.mean(0), torch.zeros(9, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(found.T.cov(), torch.eye(9, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("end, sign", [(0, -1), (1, 1)])
def test_the_ends_of_a_uniform_factor_are_plus_and_minus_the_root_of_3(end, sign):
    """Uniform in [-a, a] has the variance a^2 / 3: it is 1 for the root of 3, whatever the bounds were."""
    table = torch.tensor([[-1.0, -1.0, -1.0, 0.0, 0.7, -0.1, -0.1, -math.pi / 6]]) * (-1) ** end
    table[:, 4] = (0.7, 1.1)[end]
    found = dict(zip(FACTORS, factor_targets(table)[0].tolist(), strict=True))
    for name in ("red", "green", "blue", "size", "right", "down", "rotation"):
        assert found[name] == pytest.approx(sign * math.sqrt(3), abs=1e-5), name


def test_the_middle_of_every_factor_is_nought_and_a_hue_is_a_point_on_a_circle():
    table = torch.zeros(4, 8)
    table[:, 4] = math.sqrt(0.7 * 1.1)  # the middle of a log-uniform factor is the geometric mean
    table[:, 3] = torch.tensor([0.0, math.pi / 2, math.pi, -math.pi])
    found = factor_targets(table)
    hue = [FACTORS.index("hue, cosine"), FACTORS.index("hue, sine")]
    circle = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, 0.0]]) * math.sqrt(2)
    torch.testing.assert_close(found[:, hue], circle, atol=1e-5, rtol=0)
    others = [k for k in range(9) if k not in hue]
    torch.testing.assert_close(found[:, others], torch.zeros(4, 7), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "column, factor, value, wanted",
    [
        (0, "red", 0.5, 0.5 * math.sqrt(3)),
        (1, "green", -0.5, -0.5 * math.sqrt(3)),
        (2, "blue", 0.25, 0.25 * math.sqrt(3)),
        (4, "size", 1.0, math.sqrt(3) * (2 * math.log(1 / 0.7) / math.log(1.1 / 0.7) - 1)),
        (5, "right", 0.05, 0.5 * math.sqrt(3)),
        (6, "down", -0.02, -0.2 * math.sqrt(3)),
        (7, "rotation", math.pi / 18, math.sqrt(3) / 3),
    ],
)
def test_each_target_is_that_of_its_own_factor(column, factor, value, wanted):
    table = emoji.sample_factors(3, gen()).tensor()
    before = factor_targets(table)
    table[1, column] = value
    after = factor_targets(table)
    assert after[1, FACTORS.index(factor)].item() == pytest.approx(wanted, abs=1e-5)
    changed = (before != after).nonzero().tolist()
    assert changed == [[1, FACTORS.index(factor)]]


# the judge


def test_a_judge_answers_in_three_shapes_and_learns_from_each():
    torch.manual_seed(0)
    judge = Judge(n_classes=5, n_hands=7, places=3)
    said = judge(torch.randn(4, 3, 48, 48))
    assert [tuple(answer.shape) for answer in said] == [(4, 5), (4, 7), (4, 9)]
    for answer, own in zip(said, (judge.concept, judge.hand, judge.factors), strict=True):
        judge.zero_grad()
        answer.square().sum().backward(retain_graph=True)
        assert judge.trunk.layers[0][0].weight.grad.abs().sum() > 0
        for head in (judge.concept, judge.hand, judge.factors):
            grads = [p.grad for p in head.parameters()]
            assert all((g is not None and g.abs().sum() > 0) == (head is own) for g in grads)


def test_only_the_factors_are_read_from_where_things_lie():
    """The pooled answers forget the order of the places; the answer of the factors does not."""
    torch.manual_seed(0)
    judge = Judge(n_classes=5, n_hands=7, places=2).eval()
    features = torch.rand(1, 512, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    judge.trunk = nn.Identity()
    a, b = judge(features), judge(features.flip(3))
    torch.testing.assert_close(a.concept, b.concept)
    torch.testing.assert_close(a.hand, b.hand)
    assert (a.factors - b.factors).abs().max() > 1e-3


# files


def autoencoder():
    return VectorAutoencoder(16, 4, (8, 8), thumbnail=8)


def outputs(net, x):
    """All that a network says of images, as one tuple of tensors."""
    if isinstance(net, VectorAutoencoder):
        q = net.encode(x)
        return q.mean, q.log_variance, net.decode(q.mean)
    return (net.logits(x),) if isinstance(net, EfficientNetLite0) else tuple(net(x))


KINDS = {
    "autoencoder": (autoencoder, experts.load_autoencoder),
    "namer": (lambda: EfficientNetLite0(6), experts.load_namer),
    "judge": (lambda: Judge(5, 7, places=1), experts.load_judge),
}


class Case(NamedTuple):
    kind: str
    path: Path
    net: nn.Module  # what was written to the file, in evaluation mode
    config: dict[str, object]
    load: Callable[[Path], nn.Module]


@pytest.fixture(scope="module", params=list(KINDS))
def case(request, tmp_path_factory):
    build, load = KINDS[request.param]
    torch.manual_seed(0)
    net = build()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():  # statistics as after training, or the signal dies out on its way
        outputs(net, torch.rand(32, 3, 16, 16, generator=gen(1)) * 2 - 1)
    config = {"n_classes": 6} if request.param == "namer" else net.config
    path = tmp_path_factory.mktemp("weights") / "expert.safetensors"
    save_weights(path, net, metadata={"kind": request.param, "model": config, "scores": {"right": 0.5}})
    return Case(request.param, path, net.eval(), config, load)


@torch.no_grad()
def test_a_network_out_of_a_file_says_what_the_one_in_it_said(case):
    loaded = case.load(case.path)
    assert type(loaded) is type(case.net)
    x = torch.rand(3, 3, 16, 16, generator=gen()) * 2 - 1
    known = outputs(case.net, x)
    assert any((answer[0] - answer[1]).abs().max() > 1e-4 for answer in known)  # not one for all
    for ours, theirs in zip(outputs(loaded, x), known, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_network_stored_as_bf16_says_what_its_rounded_weights_say(case, tmp_path):
    half = tmp_path / "half.safetensors"
    save_weights(half, case.net, dtype=torch.bfloat16, metadata={"kind": case.kind, "model": case.config})
    loaded = case.load(half)
    for name, weight in loaded.state_dict().items():
        stored = case.net.state_dict()[name]
        wanted = stored.bfloat16().to(stored.dtype) if stored.is_floating_point() else stored
        assert weight.dtype == stored.dtype and torch.equal(weight, wanted), name


@torch.no_grad()
def test_a_loaded_network_is_frozen_for_good(case):
    net = case.load(case.path)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(module.training for module in net.modules())
    x = torch.rand(3, 3, 16, 16, generator=gen()) * 2 - 1
    before = {name: value.clone() for name, value in net.state_dict().items()}
    said = outputs(net, x)
    nn.ModuleList([net]).train()  # whoever holds it trains
    for ours, theirs in zip(outputs(net, x), said, strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_gradients_pass_through_a_frozen_network(case):
    """An attack asks for the slope at the picture, not at the weights."""
    x = (torch.rand(2, 3, 16, 16, generator=gen()) * 2 - 1).requires_grad_()
    (slope,) = torch.autograd.grad(outputs(case.load(case.path), x)[0].square().sum(), x)
    assert slope.abs().max() > 0


def test_a_file_of_another_kind_is_refused_in_one_line(case):
    for other, (_, load_other) in KINDS.items():
        if other != case.kind:
            with pytest.raises(BookError, match=f"weights of kind {case.kind}; wanted {other}") as caught:
                load_other(case.path)
            assert "\n" not in str(caught.value) and str(case.path) in str(caught.value)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("note", [None, {"model": {}}, {"kind": "flow", "model": {}}, "own kind alone"])
def test_a_file_that_does_not_say_what_it_is_is_refused(kind, note, tmp_path):
    path = tmp_path / "some.safetensors"
    save_weights(path, nn.Linear(2, 2), metadata={"kind": kind} if note == "own kind alone" else note)
    with pytest.raises(BookError, match=f"wanted {kind}; take the file"):
        KINDS[kind][1](path)


def test_weights_of_another_configuration_are_refused(case, tmp_path):
    changed = {"autoencoder": {"dim": 5}, "namer": {"n_classes": 7}, "judge": {"n_hands": 8}}[case.kind]
    path = tmp_path / "other.safetensors"
    save_weights(path, case.net, metadata={"kind": case.kind, "model": {**case.config, **changed}})
    with pytest.raises(BookError, match="of shape"):
        case.load(path)


@pytest.mark.parametrize("kind", list(KINDS))
def test_absent_and_damaged_files_are_told(kind, tmp_path):
    load, path = KINDS[kind][1], tmp_path / "expert.safetensors"
    with pytest.raises(BookError, match="does not exist"):
        load(path)
    save_weights(path, nn.Linear(2, 2), metadata={"kind": kind, "model": {}})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BookError, match="as its header says"):
        load(path)


def test_measured_norms_are_those_of_the_images_and_stay():
    torch.manual_seed(0)
    net, x = EfficientNetLite0(6), torch.rand(12, 3, 32, 32, generator=gen()) * 2 - 1
    experts.measure_norms(net, x, batch=12)
    conv, norm = net.stem[0], net.stem[1]
    with torch.no_grad():
        seen = conv(net.preprocess(x))
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-3, atol=1e-6)
    before = norm.running_mean.clone()
    net.train()(x + 1)
    assert torch.equal(norm.running_mean, before)


@torch.no_grad()
def test_the_three_experts_are_loaded_by_name(tmp_path):
    torch.manual_seed(0)
    nets = {
        "experts_namer": (EfficientNetLite0(6).eval(), "namer", {"n_classes": 6}),
        "experts_judge": (Judge(5, 7, places=1).eval(), "judge", None),
        "experts_autoencoder": (autoencoder().eval(), "autoencoder", None),
        "experts_brief": (VectorAutoencoder(16, 3, (8, 8), thumbnail=8).eval(), "autoencoder", None),
    }
    for name, (net, kind, config) in nets.items():
        save_weights(tmp_path / name, net, metadata={"kind": kind, "model": config or net.config})
    runtime, x = Runtime(device="cpu", precision="fp32"), torch.rand(2, 3, 16, 16, generator=gen()) * 2 - 1
    for wanted in ("experts_autoencoder", "experts_brief"):
        found = experts.load_experts(tmp_path.joinpath, runtime, wanted)
        for net, name in zip(found, ("experts_namer", wanted, "experts_judge"), strict=True):
            for said, own in zip(outputs(net, x), outputs(nets[name][0], x), strict=True):
                torch.testing.assert_close(said, own)
            assert not any(p.requires_grad for p in net.parameters())
    assert found.autoencoder.config["dim"] == 3


def test_the_books_autoencoder_keeps_22_db_of_concepts_it_has_never_seen():
    weights = Path(__file__).resolve().parents[2] / "book" / "results" / "weights"
    known = weights_metadata(weights / "experts_autoencoder.safetensors")
    assert known["scores"]["test PSNR (dB), unseen concepts"] >= 22
