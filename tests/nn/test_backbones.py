"""What every backbone does: stages, preprocessing, frozen norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvlib.errors import BookError
from cvlib.metrics import feature_batches, metric_name
from cvlib.nn.backbones import Backbone, BatchNorm, EfficientNetLite0, ResNet50, SmallCNN

NETS = {"lite0": EfficientNetLite0, "resnet": ResNet50, "small": SmallCNN}


def randomised(net: Backbone) -> Backbone:
    """Norms with statistics, weights and biases of their own, so that none of them can be left out."""
    for module in net.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@pytest.fixture(params=NETS)
def net(request) -> Backbone:
    return randomised(NETS[request.param]())


def images(n: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_stages_in_two_parts_are_the_whole(net):
    whole = net(images())
    assert whole.shape == (2, net.width, *([4, 4] if isinstance(net, SmallCNN) else [1, 1]))
    for cut in (*range(1, len(net.stages)), -2):
        assert torch.equal(net.run(net.run(images(), stop=cut), start=cut), whole)
    x = net.preprocess(images())
    for stage in net.stages:
        x = stage(x)
    assert torch.equal(x, whole)
    assert not torch.equal(net.run(images(), start=0, stop=-1), whole)


def test_stages_hold_every_parameter_once(net):
    held = [id(p) for stage in net.stages for p in stage.parameters()]
    fc = {id(p) for name, p in net.named_parameters() if name.startswith("fc.")}
    assert len(held) == len(set(held)) and set(held) | fc == {id(p) for p in net.parameters()}


def test_only_the_last_stages_learn_from_a_kept_middle(net):
    with torch.no_grad():
        middle = net.run(images(), stop=-2)
    net.run(middle, start=-2).square().mean().backward()
    last = {id(p) for stage in net.stages[-2:] for p in stage.parameters()}
    assert {id(p) for p in net.parameters() if p.grad is not None} == last


def norms(net):
    return {k: v.clone() for k, v in net.state_dict().items() if "running" in k or "tracked" in k}


def test_frozen_norms_stay_so_whatever_is_called(net):
    x = images(4)
    expected, before = net(x).detach(), norms(net)
    assert net.freeze_batch_norm() is net
    parts = [net, nn.Sequential(*net.stages), copy.deepcopy(net)]
    for part in parts:
        part.train()
        assert part.training
        y = part(net.preprocess(x) if isinstance(part, nn.Sequential) else x)
        torch.testing.assert_close(y.detach(), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in norms(net).items())
    net(x).mean().backward()
    assert all(m.weight.grad is not None for m in net.modules() if isinstance(m, BatchNorm))


def test_unfrozen_norms_follow_their_batches(net):
    before = norms(net)
    net.train()
    net(images(4, 64))
    assert all(not torch.equal(v, before[k]) for k, v in norms(net).items())


def test_gradients_reach_every_stage(net):
    net.train()
    net(images(4, 64)).square().mean().backward()
    grads = [p.grad for stage in net.stages for p in stage.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert sum(bool(g.any()) for g in grads) > 0.99 * len(grads)


def test_preprocessing_by_hand(net):
    grey = torch.full((1, 3, 2, 2), 0.2)  # 0.6 of white
    wanted = [(0.6 - m) / s for m, s in zip(net.mean, net.std, strict=True)]
    torch.testing.assert_close(net.preprocess(grey)[0, :, 0, 0], torch.tensor(wanted))
    if isinstance(net, EfficientNetLite0):  # the weights' own: (pixel - 127) / 128 of 0..255
        torch.testing.assert_close(net.preprocess(grey), torch.full_like(grey, (0.6 * 255 - 127) / 128))
    if isinstance(net, SmallCNN):
        assert torch.equal(net.preprocess(grey), grey)
    with pytest.raises(BookError, match=r"images of shape \(3, 2, 2\); wanted \(B, 3, H, W\)"):
        net(grey[0])


def test_crop_takes_the_middle():
    """A photograph with a gradient from left to right, larger than the crop: linear, so resizing keeps it."""
    net, wide = SmallCNN(), torch.linspace(-1, 1, 97).expand(1, 3, 64, 97)
    net.image_size, net.resize_to = 28, 32
    cut = net.crop(wide)
    assert cut.shape == (1, 3, 28, 28) and net.crop(wide.mT).shape == (1, 3, 28, 28)
    assert cut.mean() == pytest.approx(0, abs=0.02)
    assert cut[0, 0, 0, -1] - cut[0, 0, 0, 0] == pytest.approx(27 / 48.5 * 2, abs=0.05)
    assert torch.equal(SmallCNN().crop(images()), images())  # already of that size
    assert net.crop(images(1, 8)).shape[2:] == (28, 28)  # small ones are enlarged


@pytest.mark.parametrize(
    ("name", "parameters", "with_fc", "macs"),
    [
        ("lite0", 3_371_008, 4_652_008, 385e6),  # published: 4.65 M, 385 M multiply-adds
        ("resnet", 23_508_032, 25_557_032, 4.089e9),  # published: 25,557,032 and 4.09 G at stride-in-3x3
        ("small", 1_259_040, 1_259_040, 36e6),  # by hand, 0.9 + 4.7 + 4.7 + 9.4 + 4.7 + 9.4 + 2.1
    ],
)
def test_published_counts(name, parameters, with_fc, macs):
    with torch.device("meta"):
        net = NETS[name]()
        x = torch.empty(1, 3, net.image_size, net.image_size)
    held = sum(p.numel() for stage in net.stages for p in stage.parameters())
    assert (held, sum(p.numel() for p in net.parameters())) == (parameters, with_fc)
    with FlopCounterMode(display=False) as counter:
        net.logits(x) if hasattr(net, "logits") else net(x)
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.01)


def test_features_and_names_for_metrics(net):
    features = feature_batches(net, images(3), batch_size=2)
    assert features.shape == (3, net.width)
    with torch.no_grad():
        torch.testing.assert_close(features, net(images(3)).mean((2, 3)), rtol=1e-3, atol=1e-4)
    assert metric_name("KID", net) in ("KID-EffNetLite0", "KID-resnet-50", "KID-small-cnn")


def test_small_cnn_learns_colours():
    """Noise with a little red, green or blue in it: eight steps suffice, from a loss of ln 3 = 1.1."""
    torch.manual_seed(0)
    net, labels = SmallCNN(), torch.arange(12) % 3
    head = nn.Linear(net.width, 3)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(8):
        x = torch.randn(12, 3, 32, 32) * 0.3
        x[torch.arange(12), labels] += 0.5
        loss = nn.functional.cross_entropy(head(net(x.clamp(-1, 1)).mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
