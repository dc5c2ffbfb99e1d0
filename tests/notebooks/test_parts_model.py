"""What the page "parts_model" defines, held against brute force, autograd and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cvlib.errors import BookError
from cvlib.pages import definitions
from tests.tiny_parts import TINY, gen, one_hot_masks, rand

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "parts_model.py")


@pytest.fixture
def tiny(page):
    return page.PartsConfig(**TINY)


# shape code


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_posterior_is_the_gaussian_that_torch_knows(page, tiny, covariance):
    torch.manual_seed(0)
    q = page.ShapeEncoder(replace(tiny, covariance=covariance))(rand(3, 3, 16, 16))
    truth = torch.distributions.MultivariateNormal(q.mean, scale_tril=q.factor)  # checks that L is a factor
    standard = torch.distributions.MultivariateNormal(torch.zeros(8), torch.eye(8))
    torch.testing.assert_close(
        q.kl(), torch.distributions.kl_divergence(truth, standard), atol=1e-4, rtol=1e-4
    )
    assert (q.factor.tril(-1) == 0).all() == (covariance == "diagonal")


def test_samples_have_the_covariance_of_the_factor(page):
    factor = torch.tensor([[0.5, 0.0, 0.0], [0.3, 1.0, 0.0], [-0.4, 0.2, 0.7]])
    torch.manual_seed(0)
    q = page.Posterior(torch.tensor([1.0, 2.0, 3.0]).expand(40_000, 3), factor.expand(40_000, 3, 3))
    x = q.sample()
    torch.testing.assert_close(torch.cov(x.T), factor @ factor.T, atol=0.03, rtol=0)
    torch.testing.assert_close(x.mean(0), torch.tensor([1.0, 2.0, 3.0]), atol=0.02, rtol=0)


def test_the_encoder_knows_where_things_are(page, tiny):
    """Its mean pooling forgets places: only the coordinate channels can tell two shifted pictures apart."""
    torch.manual_seed(0)
    encoder = page.ShapeEncoder(replace(tiny, image_size=64, shape_head="mean"))
    x = torch.zeros(2, 3, 64, 64)
    x[0, :, 28:30, 28:30] = 1
    x[1, :, 36:38, 36:38] = 1
    a, b = encoder(x).mean
    assert (a - b).abs().max() > 1e-4
    encoder.stack.layers[0].weight.data[:, 3:] = 0  # blind for the coordinates
    c, d = encoder(x).mean
    assert (c - d).abs().max() < 1e-5


# the paper's sizes


def test_operations_of_the_paper_shapes(page):
    """The sheet's counts of the released networks: 13.8, 0.81 and 0.81 billion multiply-adds an image."""
    config = page.paper_config()
    with torch.device("meta"):
        x, code = torch.zeros(1, 3, 128, 128), torch.zeros(1, 256)
        work = {
            name: page.multiply_adds(lambda call=call: call()) / 1e9
            for name, call in {
                "released": lambda: page.SegmentationDecoder(page.wide(config))(code),
                "falling": lambda: page.SegmentationDecoder(config)(code),
                "shape": lambda: page.ShapeEncoder(config)(x),
                "appearance": lambda: page.AppearanceEncoder(config)(x),
            }.items()
        }
    assert work["released"] == pytest.approx(13.8, abs=0.05)
    assert work["shape"] == pytest.approx(0.81, abs=0.02) and work["appearance"] == pytest.approx(
        0.81, abs=0.01
    )
    assert work["falling"] < work["released"] / 20


def test_operations_are_those_of_a_product(page):
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert page.multiply_adds(lambda: a @ b) == 3 * 5 * 7


# masks and appearances


def test_hard_masks_pass_the_gradient_of_the_soft_ones(page):
    logits, w = rand(2, 4, 5, 5).requires_grad_(), rand(2, 4, 5, 5, seed=1)
    hard = page.hard_masks(logits.softmax(1))
    assert torch.equal(hard.detach().argmax(1), logits.argmax(1))
    (a,) = torch.autograd.grad((hard * w).sum(), logits)
    (b,) = torch.autograd.grad((logits.softmax(1) * w).sum(), logits)
    torch.testing.assert_close(a, b)


def test_a_tie_goes_to_one_part(page):
    hard = page.hard_masks(torch.full((1, 4, 2, 2), 0.25))
    assert hard.sum(1).eq(1).all() and hard[:, 0].eq(1).all()


def test_masked_parts_are_encoded_one_by_one(page, tiny):
    torch.manual_seed(0)
    encoder = page.AppearanceEncoder(replace(tiny, appearance="masked", has_colour=False))
    x, masks = rand(2, 3, 16, 16), one_hot_masks()
    alpha = encoder.of_parts(x, masks)
    for b, p in itertools.product(range(2), range(4)):
        alone = encoder(x[b : b + 1] * masks[b, p])
        torch.testing.assert_close(alpha[b, p], alone[0])


@pytest.mark.parametrize("appearance", ["masked", "shared"])
def test_what_a_part_shows_depends_on_it_alone_where_it_is_masked(page, tiny, appearance):
    torch.manual_seed(0)
    encoder = page.AppearanceEncoder(replace(tiny, appearance=appearance, appearance_widths=(8, 8)))
    masks = torch.zeros(1, 4, 16, 16)
    masks[:, 0, :, 4:], masks[:, 1, :, :4] = 1, 1
    x = rand(1, 3, 16, 16)
    y = x.clone()
    y[..., 0] = rand(1, 3, 16, seed=1)  # far inside part 1
    a, b = encoder.of_parts(x, masks), encoder.of_parts(y, masks)
    torch.testing.assert_close(a[:, 0], b[:, 0])
    assert (a[:, 1] - b[:, 1]).abs().max() > 1e-3
    z = x.clone()
    z[..., 3] = 1  # at the border
    leaks = (encoder.of_parts(z, masks)[:, 0] - a[:, 0]).abs().max() > 1e-5
    assert leaks == (appearance == "shared")  # the price of pooling, told on the page


def test_the_first_numbers_of_an_appearance_are_the_mean_colour(page, tiny):
    encoder = page.AppearanceEncoder(tiny)
    x, masks = rand(2, 3, 16, 16), one_hot_masks()
    alpha = encoder.of_parts(x, masks)
    for b, p in itertools.product(range(2), range(4)):
        inside = masks[b, p] > 0
        torch.testing.assert_close(alpha[b, p, :3], x[b][:, inside].mean(1), atol=0.01, rtol=0)


@pytest.mark.parametrize("appearance", ["masked", "shared"])
def test_an_empty_part_has_a_constant_appearance(page, tiny, appearance):
    torch.manual_seed(0)
    encoder = page.AppearanceEncoder(replace(tiny, appearance=appearance))
    masks = one_hot_masks(p=3)
    masks = torch.cat([masks, torch.zeros(2, 1, 16, 16)], 1)
    a = encoder.of_parts(rand(2, 3, 16, 16), masks)[:, 3]
    b = encoder.of_parts(rand(2, 3, 16, 16, seed=1), masks)[:, 3]
    assert a.isfinite().all() and torch.equal(a, b)


def test_assembly_is_a_lookup(page):
    ids = torch.randint(0, 4, (2, 5, 5), generator=gen())
    masks, alpha = F.one_hot(ids, 4).movedim(-1, 1).float(), rand(2, 4, 3)
    z = page.assembled(masks, alpha)
    for b, i, j in itertools.product(range(2), range(5), range(5)):
        torch.testing.assert_close(z[b, :, i, j], alpha[b, ids[b, i, j]])


# information


def test_the_critic_loss_is_least_at_the_log_density_ratio(page):
    """Discrete codes with a known joint: the best T is log p(a, b) / p(a) p(b)."""
    joint = torch.tensor([[0.4, 0.1], [0.1, 0.4]])
    product = joint.sum(1, keepdim=True) * joint.sum(0)
    T = torch.zeros(2, 2, requires_grad=True)
    count = (joint * 10).long()
    rows, columns = torch.tensor([(i, j) for i in range(2) for j in range(2) for _ in range(count[i, j])]).T
    everyone = torch.ones(10, 10, dtype=torch.bool)  # every row with every column is the product, exactly
    for _ in range(400):
        loss = page.critic_loss(T[rows][:, columns], everyone)
        (slope,) = torch.autograd.grad(loss, T)
        T.data -= 2 * slope
    torch.testing.assert_close(T.detach(), (joint / product).log(), atol=1e-2, rtol=0)


def test_the_critic_loss_counts_foreign_pairs_alone(page):
    table = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])
    foreign = torch.tensor([[False, True], [False, False]])
    by_hand = 0.5 * (math.log1p(math.exp(-1)) + math.log1p(math.exp(-0.5))) + math.log1p(math.exp(2))
    assert page.critic_loss(table, foreign).item() == pytest.approx(by_hand / 2, rel=1e-6)
    alone = page.critic_loss(table[:1, :1], foreign[:1, :1])  # one pair: nobody else is there
    assert alone.item() == pytest.approx(0.5 * math.log1p(math.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("g", [-2.0, -0.5, -0.25, 0.0, 0.3])
@pytest.mark.parametrize("lam", [0.0, 1.0, 4.0])
def test_the_lagrangian_raises_the_multiplier_by_its_own_rule(page, g, lam):
    """Its slope at g is the next multiplier max(0, λ + 4 g), which is what the method of multipliers asks."""
    x = torch.tensor(g, requires_grad=True)
    (slope,) = torch.autograd.grad(page.lagrangian(x, torch.tensor(lam)), x)
    duals = page.Duals(-3.0, 7.5)
    duals.lam.fill_(lam)
    duals.update(torch.tensor(g), torch.zeros(()))
    assert slope.item() == pytest.approx(max(0.0, lam + 4 * g)) == pytest.approx(duals.lam.item())


def test_r_stays_in_its_range_and_both_duals_are_saved(page):
    duals = page.Duals(-1.0, 0.5)
    for _ in range(40):
        duals.update(torch.tensor(1.0), torch.tensor(1.0))
    assert duals.r.item() == 0.5 and duals.lam.item() == 160
    other = page.Duals(-1.0, 0.5)
    other.load_state_dict(duals.state_dict())
    assert other.lam == 160 and other.r == 0.5
    assert page.Duals(1.0, 2.0).r == 1


# priors


def test_priors_are_their_sums(page):
    soft = torch.randn(2, 3, 5, 6, generator=gen()).softmax(1)
    logits = rand(2, 3, 5, 6)
    for b in range(2):
        smooth = border = outside = variance = 0.0
        for p in range(3):
            total, s = 0.0, soft[b, p]
            for i, j in itertools.product(range(5), range(6)):
                value = logits[b, p]
                smooth += 0.5 * (value[i + 1, j] - value[i, j]).item() ** 2 if i < 4 else 0
                smooth += 0.5 * (value[i, j + 1] - value[i, j]).item() ** 2 if j < 5 else 0
                if i < 4 and j < 5:
                    square = (s[i + 1, j] - s[i, j]) ** 2 + (s[i, j + 1] - s[i, j]) ** 2
                    total += min(0.5 * square.item(), 0.05)
            border += total**2
            y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (5, 6))
            y, x = y[:, None].expand(5, 6), x.expand(5, 6)
            cy, cx = ((s * c).sum() / s.sum() for c in (y, x))
            far = ((y - cy).abs() > 0.4) | ((x - cx).abs() > 0.4)
            outside += (s * far).sum().item()
            spread = (s * ((y - cy) ** 2 + (x - cx) ** 2)).sum() / s.sum()
            variance += spread.item()
        assert page.smoothness(logits)[b].item() == pytest.approx(smooth, rel=1e-4)
        assert page.mumford_shah(soft, 0.5, 0.05)[b].item() == pytest.approx(border, rel=1e-4)
        assert page.outside_patch(soft, 0.4)[b].item() == pytest.approx(outside, rel=1e-4)
        assert page.spread(soft)[b].item() == pytest.approx(variance, rel=1e-3)
        h = torch.distributions.Categorical(soft[b].movedim(0, -1)).entropy().mean()
        torch.testing.assert_close(page.entropy(soft)[b], h)


def test_priors_of_an_empty_part_are_finite(page):
    soft = torch.zeros(1, 3, 6, 6)
    soft[:, 0] = 1
    soft.requires_grad_()
    total = page.spread(soft).sum() + page.outside_patch(soft, 0.3).sum()
    (gradient,) = torch.autograd.grad(total + page.entropy(soft).sum(), soft)
    assert total.isfinite() and gradient.isfinite().all()


def test_wrong_shapes_are_told(page):
    for options, told in [
        ({"covariance": "half"}, "'half'"),
        ({"appearance": "own"}, "'own'"),
        ({"shape_head": "max"}, "'max'"),
        ({"n_parts": 1}, "1 parts"),
        ({"image_size": 60}, "60 px"),
    ]:
        with pytest.raises(BookError, match=told):
            page.PartsConfig(**options)


@pytest.mark.parametrize("n_parts, columns, rows", [(4, 2, 2), (5, 3, 2), (25, 5, 5)])
def test_parts_begin_in_the_cells_of_a_grid(page, n_parts, columns, rows):
    """The likeliest part of a pixel is that of its cell, and no lead is larger than the depth."""
    side = 30
    places = page.grid_places(n_parts, side, depth=6.0)
    assert places.shape == (n_parts, side, side) and places.min() >= -6 and places.max() <= 0
    at = torch.arange(side)
    wanted = (at * rows // side)[:, None] * columns + at * columns // side
    known = wanted < n_parts  # the last row may be short
    assert torch.equal(places.argmax(0)[known], wanted[known])
    one_cell = places[0, side // rows // 2, side // columns // 2 + side // columns]  # the middle of the next
    assert one_cell.item() == pytest.approx(-6 * (1 - math.exp(-1 / 3)), abs=0.4)
