"""What the page "parts_learning" defines, held against brute force, autograd and closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.data import load
from cvlib.data.bodies import merge
from cvlib.errors import BookError
from cvlib.notebooks.parts_model import grid_places
from cvlib.pages import definitions
from cvlib.train import Runtime, load_weights
from tests.tiny_parts import TINY, model_of, rand

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "parts_learning.py")


@pytest.fixture
def tiny(page):
    return page.PartsConfig(**TINY)


def test_the_whole_step_of_the_paper_shapes_is_cheaper(page):
    judge = page.vgg19(pretrained=False).to("meta")
    one_way = page.Objective(both_ways=False)
    ours = page.step_work(page.paper_config(), one_way, 224, judge)
    released = page.step_work(page.wide(page.paper_config()), replace(one_way, is_routed=False), 224, judge)
    assert ours < released / 1.35


def test_the_schedule_is_geometric_between_its_ends(page):
    aim = page.Objective(sharpness=(1.0, 100.0), concentration=(2.0, 32.0), begin=0.2, finish=0.6)
    values = [aim.at(t)["sharpness"] for t in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert values == pytest.approx([1, 1, 10, 100, 100])
    values = [aim.at(t)["concentration"] for t in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert values == pytest.approx([2, 2, 8, 32, 32])
    fading = [aim.at(t)["categorical"] for t in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert fading == pytest.approx([8, 8, 4, 0, 0])


def test_the_head_start_is_gone_when_the_schedule_ends(page):
    model = model_of(page, head_start=1.0)
    pi = torch.randn(2, TINY["dim_pi"])
    x = rand(2, 3, 16, 16)
    for progress, lead in ((0.0, 1.0), (0.4, 0.5), (1.0, 0.0)):
        model.losses(x, x, progress)
        torch.testing.assert_close(model.logits(pi), model.decoder(pi) + lead * grid_places(4, 16))


# who is taught by what


@pytest.mark.parametrize("both_ways", [True, False])
def test_losses_reach_their_addressees_alone(page, both_ways):
    model = model_of(page, both_ways=both_ways, patch=1.0)
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


def test_one_summed_loss_lets_the_priors_into_the_encoder(page):
    model = model_of(page, is_routed=False)
    losses, _ = model.losses(rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1), 1.0)
    assert page.moved_by(model, losses)["priors"]["shape"].abs().max() > 0


def test_without_the_constraint_nothing_depends_on_the_critics(page):
    model = model_of(page, is_constrained=False)
    x = rand(2, 3, 16, 16), rand(2, 3, 16, 16, seed=1)
    losses, log = model.losses(*x, 1.0)
    assert "constraint" not in losses and "g" not in log
    found = []
    for scale in (1.0, -3.0):  # other critics, the same gradients everywhere else
        torch.manual_seed(1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "critic" in name:
                    p.mul_(scale)
        model.zero_grad()
        torch.manual_seed(2)
        loss, _ = model(*x, 1.0)
        loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if "critic" not in n})
    assert found[0] and all(torch.equal(g, found[1][name]) for name, g in found[0].items())


def test_a_detached_call_moves_inputs_only(page):
    net, x = nn.Linear(3, 1), rand(4, 3).requires_grad_()
    page.detached_call(net, x).sum().backward()
    assert net.weight.grad is None and x.grad.abs().max() > 0


def test_painting_in_the_own_appearance_is_what_training_does(page):
    model = model_of(page).eval()
    x = rand(2, 3, 16, 16)
    ids = model.parts(x)
    masks = F.one_hot(ids, 4).movedim(-1, 1).float()
    alpha = model.appearance.of_parts(x, masks)
    expected = model.generator(page.assembled(masks, alpha), masks).clamp(-1, 1)
    torch.testing.assert_close(model.paint(ids, model.alphas(x, ids)), expected)
    torch.testing.assert_close(ids, model.logits(model.shape(x).mean).argmax(1))


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
    watched, truth = train.images(torch.arange(6)), merge(train.masks(torch.arange(6)))
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


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(page, tiny, tmp_path):
    """λ and r belong to no optimiser: they too must lie in the checkpoint."""
    runtime = Runtime(device="cpu", precision="fp32")
    train = load("bodies", "train", 16, shapes=2, poses=3, pairs="pose")
    watched, truth = train.images(torch.arange(4)), merge(train.masks(torch.arange(4)))
    recipe = page.Recipe(steps=4, batch_size=2, n_checks=2)
    aim = page.Objective(mi_target=-5.0)

    def run(root, halt=None):
        count = 0

        def measure(model):
            nonlocal count
            count += 1
            if count == halt:
                raise KeyboardInterrupt
            return {"looked": 1.0}

        return page.train_parts(
            tiny, aim, recipe, train, watched, truth, seed=0, runtime=runtime, root=str(root), n_kept=2,
            measure=measure,
        )  # fmt: skip

    whole, album, result = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # at its second check, after step 4; step 2 is saved
        run(tmp_path / "halved", halt=2)
    again, album_again, resumed = run(tmp_path / "halved")
    assert 0 < resumed.resumed_from < 4
    assert again.duals.lam == whole.duals.lam > 0 and again.duals.r == whole.duals.r
    for one, other in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(album_again.pages, album.pages) and torch.equal(album_again.steps, album.steps)
    assert resumed.result["first_losses"] == result.result["first_losses"]


def test_a_distance_with_another_name_is_told(page):
    with pytest.raises(BookError, match="'lpips'"):
        page.build_distance("lpips", page.PartsConfig())


ASKED = {
    "image_size": 64,
    "n_parts": 5,
    "covariance": "diagonal",
    "mi_target": 0.3,
    "mi_slack": 0.2,
    "reconstruction": "pyramid",
    "steps": 7,
    "batch_size": 3,
    "learning_rate": 0.5,
}


def test_settings_are_those_that_were_asked_for(page):
    config, aim, recipe = page.settings("small", **ASKED)
    assert config == page.PartsConfig(image_size=64, n_parts=5, covariance="diagonal")
    assert aim == page.Objective(mi_target=0.3, mi_slack=0.2)
    assert recipe == page.Recipe(7, 3, 0.5)
    before_gradients = page.settings("small", **ASKED, wall="gradient")[1]
    assert before_gradients == replace(aim, head_start=page.HEAD_START["gradient"])
    with pytest.raises(BookError, match=r"wall 'brick'; wanted one of plain, gradient, photo"):
        page.settings("small", **ASKED, wall="brick")


def test_the_papers_settings_keep_its_weights_and_paces(page):
    config, aim, recipe = page.settings("paper", **ASKED | {"image_size": 128, "reconstruction": "vgg19"})
    assert config == replace(page.paper_config(5, 128), covariance=ASKED["covariance"])
    assert recipe == page.Recipe(7, 3, 0.5, critic_pace=1.0)
    assert aim == replace(page.paper_objective(), mi_target=0.3, mi_slack=0.2) and aim.reconstruction == 1
    small = page.settings("small", **ASKED | {"reconstruction": "vgg19"})[1]
    assert small.reconstruction == 1 < page.Objective.reconstruction  # five layers add up
    with pytest.raises(BookError, match=r"network 'large'; wanted small or paper"):
        page.settings("large", **ASKED)
