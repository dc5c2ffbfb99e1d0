"""What the page "taming_claims" defines: arms as the rules name them, and a judge that judges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cvlib.claims import load_rules, runs
from cvlib.data import load
from cvlib.nn import Quantized, VQModel, lpips_vgg16_hed
from cvlib.pages import definitions
from cvlib.train import Runtime

PAGES = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(PAGES / "taming_claims.py")


@pytest.fixture(scope="module")
def story():
    return definitions(PAGES / "taming.py")


@pytest.fixture(scope="module")
def runtime():
    return Runtime(device="cpu", precision="fp32")


class Copyist(nn.Module):
    """A "VQGAN" that returns its input, spoiled by ``noise``, and one code for everything."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.quantizer = VQModel(n_codes=4, dim_z=2, ch=32, ch_mult=(1,), z_channels=4).quantizer

    def forward(self, x):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        zero = torch.zeros(())
        indices = torch.zeros(len(x), 2, 2, dtype=torch.long)
        return x + self.noise * noise, Quantized(x, indices, zero, zero, zero)


def test_arms_are_those_of_the_rules(page):
    rules = load_rules("taming")
    assert set(page.ARMS) == set(rules.arms)
    judged = {"LPIPS-VGG16-HED", "KID-VGG16-HED", "PSNR"}
    assert set(rules.measures("l2")) == judged and set(rules.measures("vqgan")) == judged | {"L1"}


def test_arms_differ_in_the_loss_alone(page):
    vqgan, perceptual = page.ARMS["vqgan"], page.ARMS["perceptual"]
    assert vqgan.is_perceptual and vqgan.is_adversarial and vqgan.stretch == 1
    assert perceptual.is_perceptual and not perceptual.is_adversarial and perceptual.stretch == 1
    for name in ("l2", "l2-equal-time"):
        arm = page.ARMS[name]
        assert arm.pixel_loss == "l2" and not arm.is_perceptual and not arm.is_adversarial
    assert page.ARMS["l2"].learning_rate == page.ARMS["l2-equal-time"].learning_rate
    narrow = page.ARMS["vqgan-32groups"]
    assert narrow.group_width == 1 and replace(narrow, group_width=4, learning_rate=0) == replace(
        vqgan, learning_rate=0
    )


def test_recorded_runs_took_the_steps_of_their_arm(page):
    recorded = runs("taming")
    if not recorded:
        pytest.skip("no recorded runs yet")
    steps = {arm: {r["config"]["steps"] for r in recorded if r["arm"] == arm} for arm in page.ARMS}
    (n,) = steps["l2"]
    assert steps == {name: {round(arm.stretch * n)} for name, arm in page.ARMS.items()}


def test_the_second_control_took_as_long_by_the_clock(page):
    seconds = {arm: sorted(r["seconds"] for r in runs("taming") if r["arm"] == arm) for arm in page.ARMS}
    if not all(seconds.values()):
        pytest.skip("no recorded runs yet")
    median = {arm: values[len(values) // 2] for arm, values in seconds.items()}
    assert 0.8 < median["l2-equal-time"] / median["vqgan"] < 1.25, median


def test_judge_orders_copies_by_their_noise(page, story, runtime):
    images = load("emoji", "test", 32).images(torch.arange(64))
    lpips = lpips_vgg16_hed()
    scores = [page.judge(Copyist(noise), images, lpips, story, runtime) for noise in (0.02, 0.1, 0.4)]
    for measure, sign in (("LPIPS-VGG16-HED", 1), ("L1", 1), ("PSNR", -1), ("SSIM", -1)):
        values = [sign * score[measure] for score in scores]
        assert values == sorted(values), (measure, values)
    assert scores[0]["KID-VGG16-HED"] < scores[2]["KID-VGG16-HED"]
    assert scores[0]["codes used"] == 0.25 and scores[0]["perplexity"] == pytest.approx(1)


def test_judge_finds_nothing_wrong_with_a_copy(page, story, runtime):
    images = load("emoji", "test", 32).images(torch.arange(64))
    score = page.judge(Copyist(0.0), images, lpips_vgg16_hed(), story, runtime)
    # white is 1 + 1e-7 in fp32 (255 / 127.5 - 1), which the judge clamps: the last bit may differ
    assert score["L1"] == pytest.approx(0, abs=1e-6)
    assert score["LPIPS-VGG16-HED"] == pytest.approx(0, abs=1e-9)
    assert score["SSIM"] == pytest.approx(1)


def test_an_arm_trains_and_equal_seeds_give_equal_losses(page, story, runtime, tmp_path):
    train = load("emoji", "train", 32)
    first = []
    for place in ("a", "b"):
        _, _, result = page.train_arm(
            story, page.ARMS["l2"], 3, 3, train, 4, runtime, str(tmp_path / place), None
        )
        first.append(result.result["first_losses"]["l2"])
    assert first[0] == first[1] and len(first[0]) == 3
