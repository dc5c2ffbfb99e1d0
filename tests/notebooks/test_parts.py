"""What the page "parts" defines, held against brute force, autograd and closed forms."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.data import load
from cvlib.errors import BookError
from cvlib.metrics.segmentation import iou_table, overlaps
from cvlib.pages import definitions
from cvlib.train import Runtime, load_weights, save_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "parts.py")


@pytest.fixture
def tiny(page):
    return page.PartsConfig(
        image_size=16,
        n_parts=4,
        dim_pi=8,
        dim_alpha=6,
        shape_widths=(8, 8),
        decoder_widths=(8, 8),
        generator_widths=(8, 8),
        appearance_widths=(8,),
        critic_width=16,
        critic_blocks=1,
    )


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=gen(seed)) * 2 - 1


def one_hot_masks(b=2, p=4, side=16, seed=0):
    return F.one_hot(torch.randint(0, p, (b, side, side), generator=gen(seed)), p).movedim(-1, 1).float()


def model_of(page, config, **objective):
    torch.manual_seed(0)
    model = page.PartsModel(config, page.Objective(**objective), page.pyramid_distance)
    model.duals.lam.fill_(3.0)  # a constraint that bites
    return model


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


def test_the_whole_step_of_the_paper_shapes_is_cheaper(page):
    judge = page.vgg19(pretrained=False).to("meta")
    one_way = page.Objective(both_ways=False)
    ours = page.step_work(page.paper_config(), one_way, 224, judge)
    released = page.step_work(page.wide(page.paper_config()), replace(one_way, is_routed=False), 224, judge)
    assert ours < released / 1.35


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


def test_the_schedule_is_geometric_between_its_ends(page):
    aim = page.Objective(sharpness=(1.0, 100.0), begin=0.2, finish=0.6)
    values = [aim.at(t)["sharpness"] for t in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert values == pytest.approx([1, 1, 10, 100, 100])
    fading = [aim.at(t)["categorical"] for t in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert fading == pytest.approx([8, 8, 4, 0, 0])


# who is taught by what


@pytest.mark.parametrize("both_ways", [True, False])
def test_losses_reach_their_addressees_alone(page, tiny, both_ways):
    model = model_of(page, tiny, both_ways=both_ways, patch=1.0)
    torch.manual_seed(1)
    losses, _ = model.losses(rand(3, 3, 16, 16), rand(3, 3, 16, 16, seed=1), 1.0)
    moved = page.moved_by(model, losses)
    for name, by_part in moved.items():
        reached = {part for part, gradient in by_part.items() if gradient.abs().max() > 0}
        assert reached == set(page.ROUTES[name]), name
    sum(losses.values()).backward()
    for part in page.PartsModel.MODULES:
        once = torch.cat([p.grad.flatten() for p in getattr(model, part).parameters()])
        apart = sum(by_part[part] for by_part in moved.values())
        torch.testing.assert_close(once, apart, atol=1e-4 * apart.abs().max().item(), rtol=1e-3)


def test_one_summed_loss_lets_the_priors_into_the_encoder(page, tiny):
    model = model_of(page, tiny, is_routed=False)
    losses, _ = model.losses(rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1), 1.0)
    assert page.moved_by(model, losses)["priors"]["shape"].abs().max() > 0


def test_without_the_constraint_nothing_depends_on_the_critics(page, tiny):
    model = model_of(page, tiny, is_constrained=False)
    losses, log = model.losses(rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1), 1.0)
    assert "constraint" not in losses and "g" not in log


def test_a_detached_call_moves_inputs_only(page):
    net, x = nn.Linear(3, 1), rand(4, 3).requires_grad_()
    page.detached_call(net, x).sum().backward()
    assert net.weight.grad is None and x.grad.abs().max() > 0


def test_painting_in_the_own_appearance_is_what_training_does(page, tiny):
    model = model_of(page, tiny).eval()
    x = rand(2, 3, 16, 16)
    ids = model.parts(x)
    masks = F.one_hot(ids, 4).movedim(-1, 1).float()
    alpha = model.appearance.of_parts(x, masks)
    expected = model.generator(page.assembled(masks, alpha), masks).clamp(-1, 1)
    torch.testing.assert_close(model.paint(ids, model.alphas(x, ids)), expected)
    torch.testing.assert_close(ids, model.decoder(model.shape(x).mean).argmax(1))


# distances


def test_pyramid_distance_of_a_constant_difference(page):
    x = rand(2, 3, 8, 8)
    torch.testing.assert_close(page.pyramid_distance(x, x + 0.5), torch.full((2,), 0.75))
    assert page.pyramid_distance(x, x).abs().max() == 0


def test_pyramid_distance_is_its_sum(page):
    x, y = rand(1, 1, 4, 4), rand(1, 1, 4, 4, seed=1)
    total = 0.0
    for level in range(2):
        n = 4 // 2**level
        d = torch.stack(
            [
                (x - y)[0, 0, i * 2**level : (i + 1) * 2**level, j * 2**level : (j + 1) * 2**level].mean()
                for i in range(n)
                for j in range(n)
            ]
        ).view(n, n)
        total += (d.abs() + d**2).mean() + 0.5 * (
            (d[1:] - d[:-1]).abs().mean() + (d[:, 1:] - d[:, :-1]).abs().mean()
        )
    torch.testing.assert_close(page.pyramid_distance(x, y, levels=2)[0], total / 2)


def test_vgg_distance_is_zero_for_equal_images_and_teaches_the_first(page):
    distance = page.VggDistance(page.vgg19(pretrained=False))
    x, y = rand(1, 3, 16, 16).requires_grad_(), rand(1, 3, 16, 16, seed=1).requires_grad_()
    assert distance(x, x).item() == 0
    (gradient,) = torch.autograd.grad(distance(x, y).sum(), x)
    assert gradient.abs().max() > 0


# training


def test_a_run_can_be_taken_up_with_its_duals_and_album(page, tiny, tmp_path):
    runtime = Runtime(device="cpu", precision="fp32")
    train = load("bodies", "train", 16, shapes=2, poses=3, pairs="pose")
    watched, truth = train.images(torch.arange(6)), page.merge(train.masks(torch.arange(6)))
    recipe = page.Recipe(steps=3, batch_size=2, n_checks=3)
    aim = page.Objective(mi_target=-5.0)  # never reached: λ must rise

    def run():
        return page.train_parts(
            tiny, aim, recipe, train, watched, truth, seed=0, runtime=runtime, root=str(tmp_path), n_kept=2
        )  # fmt: skip

    model, album, result = run()
    assert model.duals.lam > 0 and album.steps.tolist() == [1, 2, 3, 0]
    torch.testing.assert_close(album.pages[2].long(), page.parts_of(model, watched[:2], runtime))
    again, album_again, _ = run()  # finished before: all comes out of the checkpoint
    assert again.duals.lam == model.duals.lam and torch.equal(album_again.pages, album.pages)
    other = page.PartsModel(tiny, aim, page.pyramid_distance)
    load_weights(result.folder, {"parts": other})
    assert other.duals.lam == model.duals.lam and other.duals.r == model.duals.r


# grading and probes


def test_the_assignment_is_chosen_on_validation(page):
    labels = {
        name: torch.randint(0, 3, (2, 6, 6), generator=gen(k))
        for k, name in enumerate(("validation", "test"))
    }
    renamed = {name: (ids + 1) % 3 for name, ids in labels.items()}
    result = page.grade(renamed, labels, 3, 3)
    assert result.assignment.tolist() == [2, 0, 1] and result.scores.overall == 1
    swapped = {"validation": renamed["validation"], "test": (labels["test"] + 2) % 3}
    assert page.grade(swapped, labels, 3, 3).scores.overall < 0.5  # no help from the test labels


def test_pixel_clusters_find_colours(page):
    ids = torch.randint(0, 3, (4, 8, 8), generator=gen())
    colours = torch.tensor([[-1.0, 0, 1], [1, -1, 0], [0, 1, -1]])
    images = colours[ids].movedim(-1, 1) + 0.01 * rand(4, 3, 8, 8)
    found = page.PixelClusters(images, 3, seed=0).parts(images, 8)
    assert iou_table(overlaps(found, ids, 3, 3)).amax(0).tolist() == [1, 1, 1]


def test_colour_and_place_have_the_pixels_centres(page):
    features = page.colour_and_place(rand(1, 3, 2, 4), weight=2.0)
    assert features[0, 3].tolist() == [[-1.5, -0.5, 0.5, 1.5]] * 2
    assert features[0, 4, :, 0].tolist() == [-1, 1]


def test_the_probe_reads_a_linear_law_and_nothing_out_of_noise(page):
    x, x_test = torch.randn(500, 6, generator=gen()), torch.randn(300, 6, generator=gen(1))
    law = torch.randn(6, 2, generator=gen(2))
    assert page.probe_r2(x, x @ law + 3, x_test, x_test @ law + 3) > 0.99
    noise = torch.randn(500, 2, generator=gen(3)), torch.randn(300, 2, generator=gen(4))
    assert page.probe_r2(x, noise[0], x_test, noise[1]) < 0.05


def test_mean_colours_are_means_under_labels(page):
    images, labels = rand(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, 0] = 5  # torso, on the first image only
    colours = page.mean_colours(images, labels, ("torso", "background"))
    torch.testing.assert_close(colours[0, :3], images[0, :, 0].mean(1))
    torch.testing.assert_close(colours[1], images[1].mean((1, 2)).repeat(2))


def test_redressing_touches_the_named_parts_alone(page):
    a, b = rand(2, 4, 3), rand(2, 4, 3, seed=1)
    mixed = page.redress(a, b, torch.tensor([0, 2, 2, 1]), 2)
    assert torch.equal(mixed[:, 1:3], b[:, 1:3]) and torch.equal(mixed[:, ::3], a[:, ::3])


def test_locality_is_whole_where_the_painter_looks_at_one_pixel(page, tiny):
    model = model_of(page, tiny).eval()
    ids = torch.randint(0, 3, (2, 16, 16), generator=gen())
    alpha = rand(2, 4, 6)
    model.generator = nn.Module()
    model.generator.forward = lambda z, masks: 0.3 * z[:, :3]
    local = page.edit_locality(model, ids, alpha, alpha.roll(1, 0))
    torch.testing.assert_close(local[:3], torch.ones(3))
    assert math.isnan(local[3])  # no pixel has it


def test_swaps_are_pairs_of_shape_and_appearance(page, tiny):
    model = model_of(page, tiny).eval()
    ids, alpha = torch.randint(0, 4, (2, 16, 16), generator=gen()), rand(3, 4, 6)
    matrix = page.swapped(model, ids, alpha)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(
            matrix[i, j], model.paint(ids[i : i + 1], alpha[j : j + 1])[0], atol=1e-5, rtol=0
        )


def test_landmarks_follow_centroids(page):
    """A square of part 1 moves about; the joints are its corners."""
    at = torch.randint(0, 10, (400, 2), generator=gen())
    ids, joints = torch.zeros(400, 16, 16, dtype=torch.long), torch.zeros(400, 2, 2)
    for i, (y, x) in enumerate(at.tolist()):
        ids[i, y : y + 6, x : x + 6] = 1
        joints[i] = torch.tensor([[x, y], [x + 6.0, y + 6.0]])
    halves = {"validation": slice(0, 200), "test": slice(200, 400)}
    scores = page.landmark_scores(
        {name: ids[rows] for name, rows in halves.items()},
        {name: joints[rows] for name, rows in halves.items()},
        2,
        16,
    )
    assert scores[0.1] > 0.95
    flat = {name: torch.zeros_like(ids[rows]) for name, rows in halves.items()}
    other = page.landmark_scores(flat, {name: joints[rows] for name, rows in halves.items()}, 2, 16)
    assert other[0.1] < 0.5


def test_painted_masks_are_the_palette(page):
    assert torch.equal(
        page.painted(torch.tensor([[[3]]])).flatten(), torch.tensor(page.PALETTE[3]) / 127.5 - 1
    )


def test_wrong_settings_are_told(page):
    for options, told in [
        ({"covariance": "half"}, "'half'"),
        ({"appearance": "own"}, "'own'"),
        ({"shape_head": "max"}, "'max'"),
        ({"n_parts": 1}, "1 parts"),
        ({"image_size": 60}, "60 px"),
    ]:
        with pytest.raises(BookError, match=told):
            page.PartsConfig(**options)
    with pytest.raises(BookError, match="'lpips'"):
        page.build_distance("lpips", page.PartsConfig())


def test_a_committed_network_finds_the_same_parts(page, tiny, tmp_path):
    """Saved in bf16 and loaded by the page: as a copy whose weights were rounded."""
    model = model_of(page, tiny)
    path = tmp_path / "parts.safetensors"
    save_weights(path, model, dtype=torch.bfloat16, metadata={"model": asdict(tiny)})
    known = page.load_parts(path, Runtime(device="cpu"))
    assert known.config == tiny
    for mine, theirs in zip(known.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(torch.bfloat16).float())
    x = rand(2, 3, 16, 16)
    model.load_state_dict(known.state_dict())
    assert torch.equal(known.parts(x), model.eval().parts(x))
