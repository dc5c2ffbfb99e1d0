from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.nn.convert import convert_patchgan
from cvlib.nn.discriminator import (
    PatchDiscriminator,
    hinge_d_loss,
    hinge_g_loss,
    vanilla_d_loss,
    vanilla_g_loss,
)


@pytest.mark.parametrize("prefix", ["", "loss.discriminator."])
def test_golden(golden, prefix):
    wanted, state = golden("patchgan")
    model = PatchDiscriminator(ch=16, n_layers=2).eval()
    checkpoint = (
        {prefix + key: value for key, value in state.items()} | {"other": torch.zeros(1)} if prefix else state
    )
    model.load_state_dict(convert_patchgan(checkpoint, prefix))
    torch.testing.assert_close(model(wanted["x"]), wanted["y"], rtol=1e-4, atol=1e-6)


def test_size_of_the_paper(count):
    with torch.device("meta"):
        model = PatchDiscriminator()
        assert count(model) == pytest.approx(2.77e6, abs=5e3)
        sides = [model(torch.empty(1, 3, s, s)).shape[-1] for s in (256, 128, 64)]
    assert sides == [30, 14, 6]


def test_each_logit_judges_70_pixels():
    model, x = PatchDiscriminator(ch=4, norm="none"), torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = model(x)
    assert logits.shape[-1] == 18
    (gradient,) = torch.autograd.grad(logits[0, 0, 9, 9], x)
    seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
    assert seen[-1] - seen[0] + 1 == 70


def test_group_norm_judges_each_image_alone():
    x = torch.randn(4, 3, 32, 32)
    alone, mixed = PatchDiscriminator(ch=16, norm="group"), PatchDiscriminator(ch=16, norm="batch")
    torch.testing.assert_close(alone(x)[:1], alone(x[:1]), rtol=1e-4, atol=1e-5)
    assert (mixed(x)[:1] - mixed(x[:1])).abs().max() > 1e-3


@pytest.mark.parametrize("norm, biases", [("batch", 2), ("group", 2), ("none", 5)])
def test_bias_only_where_no_norm_follows(norm, biases):
    convs = [m for m in PatchDiscriminator(ch=4, norm=norm).modules() if isinstance(m, nn.Conv2d)]
    assert sum(conv.bias is not None for conv in convs) == biases


@torch.no_grad()
def test_initial_weights():
    model = PatchDiscriminator()
    convs = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.Conv2d)])
    norms = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert convs.std() == pytest.approx(0.02, rel=0.01)
    assert (norms.mean().item(), norms.std().item()) == pytest.approx((1, 0.02), rel=0.1)


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    # real: 0, 0.5, 2; fake: 0, 1
    assert hinge_d_loss(real, fake) == pytest.approx((2.5 / 3 + 0.5) / 2)
    assert hinge_g_loss(fake) == pytest.approx(1.5)


def test_vanilla_is_cross_entropy():
    real, fake = torch.randn(2, 50) * 3
    bce = F.binary_cross_entropy_with_logits
    expected = (bce(real, torch.ones(50)) + bce(fake, torch.zeros(50))) / 2
    torch.testing.assert_close(vanilla_d_loss(real, fake), expected)
    torch.testing.assert_close(vanilla_g_loss(fake), bce(fake, torch.ones(50)))


@pytest.mark.parametrize("g_loss", [hinge_g_loss, vanilla_g_loss])
def test_generator_wants_higher_logits_and_losses_are_fp32(g_loss):
    fake = torch.randn(20, requires_grad=True)
    (gradient,) = torch.autograd.grad(g_loss(fake), fake)
    assert (gradient < 0).all()
    assert g_loss(fake.bfloat16()).dtype == torch.float32
