"""What the page "invariances" measures, attacks and edits, held against cases whose outcome is known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cvlib.data import emoji
from cvlib.data.factors import factor_targets
from cvlib.nn.vae import DiagonalGaussian
from tests import tiny_study
from tests.tiny_study import CLASSES, HANDS, gen, images

SHARED = ("concept", "hand", "background", "size", "shift", "rotation")


@pytest.fixture(scope="module")
def page():
    return tiny_study.page()


@pytest.fixture(scope="module")
def study(page, tmp_path_factory):
    return tiny_study.open_study(page, tiny_study.experts(), tmp_path_factory.mktemp("cache"))


# measured


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_between_finds_the_share_of_a_random_effects_model(page, share):
    """Two draws a group: uncorrected, an answer of pure noise would be said to lie between by half."""
    groups = torch.randn(40_000, 1, 2, generator=gen()) * math.sqrt(share)
    within = torch.randn(40_000, 2, 2, generator=gen(1)) * math.sqrt(1 - share)
    found = page.between(5 + 3 * (groups + within))
    torch.testing.assert_close(found, torch.full((2,), share), atol=0.02, rtol=0)


def test_between_estimates_the_variance_between_without_bias_in_few_groups(page):
    """The mean over many small experiments, 8 groups of 3 draws with 0.4 of the variance between them."""
    groups = torch.randn(8, 1, 20_000, generator=gen()) * math.sqrt(0.4)
    answers = groups + torch.randn(8, 3, 20_000, generator=gen(1)) * math.sqrt(0.6)
    share, within = page.between(answers), answers.var(1).mean(0)
    assert (share * within / (1 - share)).mean().item() == pytest.approx(0.4, abs=0.01)


def test_the_share_of_a_sum_is_that_of_its_parts_weighed_by_their_variance(page):
    answers = torch.randn(50, 4, 3, generator=gen()) + 2 * torch.randn(50, 1, 3, generator=gen(1))
    answers *= torch.tensor([1.0, 10.0, 0.1])
    within = answers.var(1).mean(0)
    share = page.between(answers)
    whole = within / (1 - share)
    assert page.between(answers, whole=True) == pytest.approx(((share * whole).sum() / whole.sum()).item())


def test_the_variance_of_latents_is_that_of_their_draws(study):
    q = DiagonalGaussian(study.known["test"].column("moments"))
    drawn = torch.cat([q.sample(gen(seed)) for seed in range(400)])
    assert study.variance == pytest.approx(drawn.var(0).sum().item(), rel=0.03)


def test_a_perceptron_reads_what_no_line_can_and_nothing_where_nothing_is(page):
    n, chance = 3000, gen()
    x, x_test = torch.randn(n, 4, generator=chance), torch.randn(400, 4, generator=chance)

    def truth(z):  # which of two classes is a matter of two signs together
        return ((z[:, 0] > 0) ^ (z[:, 1] > 0)).long()

    noise = torch.randint(3, (n + 400,), generator=chance)
    factors = factor_targets(emoji.sample_factors(n, chance).tensor())
    fresh = SimpleNamespace(
        labels={"concept": truth(x), "hand": noise[:n]},
        column=lambda name: emoji.sample_factors(n, gen()).tensor(),
    )
    study = SimpleNamespace(
        known={"fresh": fresh},
        counts={"concept": 2, "hand": 3},
        factors=factors[:400],
        labels={"concept": truth(x_test), "hand": noise[n:]},
    )
    state = torch.get_rng_state()
    found = page.deep_probe(study, x, x_test)
    assert found["concept"] > 0.95 and found["hand"] == pytest.approx(1 / 3, abs=0.1)
    assert all(found[group] < 0.05 for group in page.GROUPS)
    line = page.best_ridge(page.standardised(x), F.one_hot(truth(x), 2).float())(page.standardised(x_test, x))
    assert page.right(line, truth(x_test)) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def legible(page):
    return tiny_study.Legible(page)


def test_a_layer_that_knows_all_leaves_nothing_to_v(page, legible):
    def resample(rows, n, generator):
        return legible.latents[rows][:, None].expand(-1, n, -1)

    rows = torch.arange(0, 300, 2)
    layer = SimpleNamespace(study=legible, name="logits", resample=resample)
    found = page.measure(layer, rows, gen(), 4)
    z = legible.latents[rows].double().numpy()
    z -= z.mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    other = (z * np.roll(z, 1, 0)).sum(1).mean()
    wanted = {
        "v explains": 0,
        "v explains, pictures": 0,
        "concept": 1,
        "hand": 1,
        **dict.fromkeys(page.GROUPS, 1),
    }
    assert found == pytest.approx(wanted | {"consistency": 1 - other}, abs=1e-4)


def test_a_layer_that_knows_nothing_leaves_all_to_v(page, legible):
    def resample(rows, n, generator):
        return legible.latents[torch.randint(300, (len(rows), n), generator=generator)]

    layer = SimpleNamespace(study=legible, name="logits", resample=resample)
    found = page.measure(layer, torch.arange(300), gen(7), 6)
    assert found["v explains"] == pytest.approx(1, abs=0.05)
    assert found["v explains, pictures"] == pytest.approx(1, abs=0.05)
    assert found["concept"] == pytest.approx(1 / CLASSES, abs=0.05)
    assert found["hand"] == pytest.approx(1 / HANDS, abs=0.05)
    assert all(abs(found[group]) < 0.06 for group in page.GROUPS)
    assert abs(found["consistency"]) < 0.05


# an attack, seen through


def test_an_attack_moves_every_pixel_by_at_most_epsilon_and_raises_the_cross_entropy(page, study):
    x = images(6, seed=4) * 0.9
    x[0] = x[0].sign()  # at the border of what a pixel can be
    epsilon = 1e-3  # little, since a network that has not learned is far from linear
    moved, noisy = page.attack(study, x, epsilon), page.attack(study, x, epsilon, gen(5))
    for changed in (moved, noisy):
        assert (changed - x).abs().max() <= epsilon + 1e-6 and changed.abs().max() <= 1
    step = (moved - x)[1:].abs()
    assert (step > 0.99 * epsilon).float().mean() > 0.99  # all of epsilon, wherever there is a slope
    with torch.no_grad():
        answer = study.namer.logits(x).argmax(1)
        before, after, control = (
            F.cross_entropy(study.namer.logits(y), answer, reduction="none") for y in (x, moved, noisy)
        )
    assert (after > before).all()
    assert (after - before).mean() > 5 * (control - before).abs().mean()


def test_noise_has_the_size_of_the_attack_and_no_direction(page, study):
    x = torch.zeros(2, 3, 64, 64)
    noisy = page.attack(study, x, 0.05, gen(1))
    assert torch.equal(noisy.abs(), torch.full_like(noisy, 0.05))
    assert noisy.mean().abs() < 5 * 0.05 / math.sqrt(noisy.numel())


def test_seen_through_the_clean_picture_a_layer_shows_the_reconstruction(page, study):
    rows = torch.tensor([3, 8])
    pictures = study.known["test"].pictures(rows)
    for name in ("block 4", "softmax"):
        layer = tiny_study.random_layer(page, study, name)
        found = page.seen_through(layer, rows, pictures)
        torch.testing.assert_close(
            found, study.decode(study.latents[rows]), atol=2e-3, rtol=0
        )  # z is float16
        other = page.seen_through(layer, rows, pictures.flip(0))
        z = study.known["test"].column("logits" if name == "softmax" else name, rows.flip(0))
        v_kept = layer.exchanged(layer.invariances("test", rows), z)
        torch.testing.assert_close(other, study.decode(v_kept), atol=2e-3, rtol=0)
        assert (found - other).abs().max() > 5e-2
