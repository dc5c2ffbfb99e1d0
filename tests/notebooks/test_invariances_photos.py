"""What the page "invariances_photos" defines, held against the networks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cvlib.nn.backbones import EfficientNetLite0
from cvlib.pages import definitions
from tests.tiny_study import close, gen

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(NOTEBOOKS / "invariances_photos.py")


@pytest.fixture(scope="module")
def story():
    return definitions(NOTEBOOKS / "invariances.py")


# the network


@pytest.fixture(scope="module")
def net(page):
    torch.manual_seed(0)
    net = page.build_network("efficientnet-lite0", 32)
    return page.untrained(net, torch.randn(32, 3, 16, 16, generator=gen()) * 0.3)


def test_the_network_sees_the_enlarged_crop(page, net, story):
    plain = EfficientNetLite0()
    plain.load_state_dict(net.state_dict())
    plain.eval()
    x = torch.randn(3, 3, 16, 16, generator=gen(1)) * 0.3
    large = F.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        close(net.logits(x), plain.logits(large))
        z = story.representations(net, x)
        close(z["logits"], net.logits(x))
        for name in z:
            close(z[name], story.representations(plain, large)[name])


def test_the_norms_of_the_untrained_network_have_the_statistics_of_its_crops(net):
    x = torch.randn(32, 3, 16, 16, generator=gen()) * 0.3
    with torch.no_grad():
        y = net.stem[0](net.preprocess(x))
    norm = net.stem[1]
    close(norm.running_mean, y.mean((0, 2, 3)))
    close(norm.running_var, y.var((0, 2, 3)))
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_the_attack_goes_through_the_enlargement_and_its_control_is_as_large(net, story):
    class Study:
        known = {"train": SimpleNamespace(labels={})}  # noqa: RUF012  # photographs have no concepts
        among = story.Study.among
        namer = net
        runtime = type("Here", (), {"device": torch.device("cpu")})

    x = torch.randn(6, 3, 16, 16, generator=gen(3)) * 0.2
    eps = 1e-3
    attacked, control = story.attack(Study(), x, eps), story.attack(Study(), x, eps, gen(4))
    for y in (attacked, control):
        close((y - x).abs(), torch.full_like(x, eps), atol=1e-6)
    with torch.no_grad():
        own = net.logits(x).argmax(1)
        loss = [F.cross_entropy(net.logits(y), own, reduction="none") for y in (x, attacked, control)]
    assert (loss[1] > loss[0]).all() and (loss[1] - loss[0] > (loss[2] - loss[0]).abs()).all()
