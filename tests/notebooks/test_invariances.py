"""Layers, probes and flows of the page "invariances", held against steps by hand and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, r2_score

from cvlib.data.base import derived_generator
from cvlib.data.factors import factor_targets
from cvlib.nn.vae import DiagonalGaussian
from tests import tiny_study
from tests.tiny_study import CLASSES, DIM, HANDS, gen, images


@pytest.fixture(scope="module")
def page():
    return tiny_study.page()


@pytest.fixture(scope="module")
def nets():
    return tiny_study.experts()


@pytest.fixture(scope="module")
def study(page, nets, tmp_path_factory):
    return tiny_study.open_study(page, nets, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def flows(page, study):
    return {name: tiny_study.random_layer(page, study, name) for name in page.LAYERS}


# the layers, and a study of them


def layer_by_layer(net, x):
    """What comes out of the stem, each block, the head, the mean and the classifier, one after the other."""
    x = net.stem(x * (255 / 2) / 128 + (255 / 2 - 127) / 128)  # bytes less 127, by 128
    found = {"stem": x}
    for number, block in enumerate(net.blocks, start=1):
        found[f"block {number}"] = x = block(x)
    found["pooled"] = net.head(x).mean((2, 3))
    return found | {"logits": net.fc(found["pooled"])}


@torch.no_grad()
def test_representations_are_what_the_stages_give_one_after_the_other(page, nets):
    x, namer = images(), nets[0]
    found, wanted = page.representations(namer, x), layer_by_layer(namer, x)
    assert list(found) == list(page.LAYERS[:-1])
    for name, z in found.items():
        torch.testing.assert_close(z, wanted[name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["logits"], namer.logits(x))


class Said:
    """A study of which only the answers and the labels are known."""

    def __init__(self, answer, concept):
        self.labels = {"concept": concept}
        self.logits = F.one_hot(answer, 10).float()

    def z(self, split, name):
        assert (split, name) == ("test", "logits")
        return self.logits


def test_measured_are_drawings_that_the_namer_names_rightly(page):
    concept = torch.randint(10, (90,), generator=gen(1))
    answer = torch.where(torch.rand(90, generator=gen(2)) < 0.4, concept, (concept + 3) % 10)
    wanted = [k for k in range(90) if answer[k] == concept[k]]
    assert 20 < len(wanted) < 60
    study = Said(answer, concept)
    assert page.named_rightly(study, 200).tolist() == wanted
    some = page.named_rightly(study, 9).tolist()
    assert len(set(some)) == 9 and set(some) <= set(wanted)
    assert some[0] == wanted[0] and some[-1] == wanted[-1]  # spread over all of them
    steps = np.diff([wanted.index(k) for k in some])
    assert steps.max() - steps.min() <= 1
    hardly = Said(torch.where(torch.arange(90) < 7, concept, (concept + 1) % 10), concept)
    assert page.named_rightly(hardly, 200).tolist() == list(range(90))  # seven are too few


@torch.no_grad()
def test_a_study_knows_what_the_experts_say_of_its_drawings(page, study):
    rows = torch.tensor([7, 0, 4])
    x = study.known["test"].pictures(rows)
    wanted = layer_by_layer(study.namer, x)
    wanted["softmax"] = wanted["logits"].double().softmax(1).float()
    for name in page.LAYERS:
        torch.testing.assert_close(study.z("test", name, rows), wanted[name], rtol=2e-3, atol=2e-3)
        made_from = wanted["logits" if name == "softmax" else name]
        torch.testing.assert_close(study.encode(name, x), made_from, rtol=1e-4, atol=1e-4)
    q = study.autoencoder.encode(x)
    torch.testing.assert_close(study.latents[rows], q.mean, rtol=2e-3, atol=2e-3)
    batch = study.batch("test", "softmax", rows)
    assert list(batch) == ["moments", "logits"]
    torch.testing.assert_close(
        DiagonalGaussian(batch["moments"]).log_variance, q.log_variance, rtol=2e-3, atol=2e-3
    )


def test_a_study_has_labels_factors_and_one_view_of_each_drawing_for_probes(page, nets, tmp_path):
    study = tiny_study.open_study(page, nets, tmp_path, n_views=2)
    data = study.known["train"].data
    assert study.known["test"].data is data and len(study.known["train"]) == len(study.known["test"]) == 80
    assert study.known["train"].labels["item"][study.fitted].tolist() == list(range(40))
    assert study.counts == {"concept": CLASSES, "hand": HANDS}
    for field in ("concept", "hand"):
        assert torch.equal(study.labels[field], data.labels[field].repeat(2))
    views = [derived_generator(0, "view", view) for view in (2, 3)]  # none of those to learn from
    drawn = torch.cat([data.draw(torch.arange(40), view, True).factors for view in views])
    torch.testing.assert_close(study.factors, factor_targets(drawn), atol=5e-3, rtol=0)  # kept as float16
    fresh = study.known["fresh"]
    assert (fresh.first_view, fresh.n_views) == (4, 2)  # nor of those to be tested on


def test_skipped_views_belong_to_nobody(page, nets, tmp_path):
    story = tiny_study.open_study(page, nets, tmp_path, n_views=3)
    ledger = tiny_study.open_study(page, nets, tmp_path, n_views=3, skipped=page.TEST_VIEWS)
    views = {
        name: [(part.first_view, part.first_view + part.n_views) for part in one.known.values()]
        for name, one in (("story", story), ("ledger", ledger))
    }
    assert views == {"story": [(0, 3), (3, 5), (5, 8)], "ledger": [(0, 3), (5, 7), (7, 10)]}


@torch.no_grad()
def test_a_study_of_few_concepts_has_all_their_drawings_and_knows_no_others(page, nets, study, tmp_path):
    thin = tiny_study.open_study(page, nets, tmp_path, n_concepts=3)
    assert study.concepts.tolist() == [0, 1, 2, 3, 4] and thin.concepts.tolist() == [0, 2, 4]
    x = images(20, seed=5)
    all_of_them, few = study.judged(x), thin.judged(x)
    assert torch.equal(few.concept[:, [0, 2, 4]], all_of_them.concept[:, [0, 2, 4]])
    assert (few.concept[:, [1, 3]] == -math.inf).all() and all_of_them.concept.isfinite().all()
    assert torch.equal(few.hand, all_of_them.hand)
    for split in ("train", "test"):
        whole, found = (one.known[split].data.labels for one in (study, thin))
        is_kept = (whole["concept"] == 0) | (whole["concept"] == 2) | (whole["concept"] == 4)
        assert found["concept"].tolist() == whole["concept"][is_kept].tolist()
        assert found["hand"].tolist() == whole["hand"][is_kept].tolist()


@torch.no_grad()
def test_pictures_and_judgements_come_in_the_order_of_what_was_asked(study):
    z = torch.randn(300, DIM, generator=gen()) * 2  # more than are painted together
    pictures = study.decode(z)
    for k in (0, 255, 256, 299):
        alone = study.autoencoder.decode(z[k : k + 1]).clamp(-1, 1)
        torch.testing.assert_close(pictures[k : k + 1], alone, rtol=1e-4, atol=1e-5)
    some = pictures[:3]
    for ours, theirs in zip(study.judged(some), study.judge(some), strict=True):
        torch.testing.assert_close(ours, theirs)


# probes


@pytest.mark.parametrize("rows, features", [(50, 7), (7, 50), (12, 12)])
def test_ridge_is_that_of_scikit_learn(page, rows, features):
    x = torch.randn(rows, features, generator=gen()) + 3
    y = torch.randn(rows, 4, generator=gen(1)) - 2
    new = torch.randn(20, features, generator=gen(2))
    theirs = Ridge(alpha=0.3 * rows).fit(x.double(), y.double()).predict(new.double())
    ours = page.ridge(x, y, 0.3)(new)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=1e-4, atol=1e-4)


def test_a_probe_is_as_strong_as_rows_that_it_has_not_seen_allow(page):
    """Noise gets the largest strength, an exact law of few features the least."""
    x, new = torch.randn(60, 50, generator=gen()), torch.randn(200, 50, generator=gen(1))
    noise = torch.randn(60, 2, generator=gen(2))
    torch.testing.assert_close(page.best_ridge(x, noise)(new), page.ridge(x, noise, 1000.0)(new))
    law = x[:, :1] * 3 + 1
    found = page.best_ridge(x[:, :3], law)(new[:, :3])
    torch.testing.assert_close(found, page.ridge(x[:, :3], law, 0.1)(new[:, :3]))
    assert page.explained_by(found, new[:, :1] * 3 + 1) > 0.98
    assert page.explained_by(law.mean().expand(60, 1), law) == pytest.approx(0, abs=1e-5)


def test_probes_see_up_to_four_views_of_each_drawing_and_scales_one(page, nets, tmp_path):
    many = tiny_study.open_study(page, nets, tmp_path, n_views=6)
    assert many.probed.tolist() == list(range(160)) and many.fitted.tolist() == list(range(40))
    assert tiny_study.open_study(page, nets, tmp_path).probed.tolist() == list(range(40))


def test_standardised_uses_the_statistics_of_the_other(page):
    like, x = torch.randn(30, 2, 3, generator=gen()) * 5 + 1, torch.randn(4, 2, 3, generator=gen(1))
    like[:, 1, 2] = 7.0  # a dead feature
    own, other = page.standardised(like), page.standardised(x, like)
    flat = like.flatten(1).numpy()
    spread = flat.std(0, ddof=1)[:5]
    np.testing.assert_allclose(own.numpy()[:, :5], (flat - flat.mean(0))[:, :5] / spread, atol=1e-5)
    wanted = (x.flatten(1).numpy() - flat.mean(0))[:, :5] / spread
    np.testing.assert_allclose(other.numpy()[:, :5], wanted, atol=1e-5)
    assert (own[:, 5] == 0).all() and other.isfinite().all()


def r2_by_group(truth, said):
    by_column = r2_score(truth, said, multioutput="raw_values")
    sizes = {"background": 3, "hue": 2, "size": 1, "shift": 2, "rotation": 1}
    parts = np.split(by_column, np.cumsum(list(sizes.values()))[:-1])
    return {name: part.mean() for name, part in zip(sizes, parts, strict=True)}


def test_explained_is_the_r2_of_scikit_learn(page):
    truth = torch.randn(80, 9, generator=gen()) * torch.arange(1.0, 10)
    said = truth + torch.randn(80, 9, generator=gen(1)) * torch.linspace(0.2, 9, 9)
    assert page.explained(said, truth) == pytest.approx(r2_by_group(truth, said), abs=1e-5)


def test_a_probe_reads_on_test_what_scikit_learn_reads(page, study):
    """From numbers that hold concept and factors, with noise, and know nothing of the hand."""
    chance = gen()

    def holds(split):
        part = study.known[split]
        concept = F.one_hot(part.labels["concept"], CLASSES).float()
        clean = torch.cat([concept, factor_targets(part.column("factors"))], 1)
        return clean + 0.1 * torch.randn(clean.shape, generator=chance)

    x, x_test = holds("train"), holds("test")
    found = page.probe(study, x, x_test)
    mean, std = x.double().mean(0), x.double().std(0)
    a, b = (x.double() - mean) / std, (x_test.double() - mean) / std
    factors = factor_targets(study.known["train"].column("factors"))
    wanted = r2_by_group(study.factors, Ridge(alpha=0.1 * 40).fit(a, factors).predict(b))
    for field, count in (("concept", CLASSES), ("hand", HANDS)):
        indicators = np.eye(count)[study.known["train"].labels[field]]
        answer = Ridge(alpha=0.1 * 40).fit(a, indicators).predict(b).argmax(1)
        wanted[field] = accuracy_score(study.labels[field], answer)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found["concept"] == 1 and min(found[group] for group in page.GROUPS) > 0.8


# flows


def test_the_condition_is_z_with_mean_0_and_variance_1(page, study, flows):
    rows = {name: study.known["train"].column(name) for name in ("pooled", "logits")}
    for name in ("pooled", "logits", "softmax"):
        z = flows[name].condition(rows)
        assert z.mean().item() == pytest.approx(0, abs=1e-3)
        assert z.std().item() == pytest.approx(1, abs=1e-3)
    e = rows["logits"].double().exp()
    by_hand = (e / e.sum(1, keepdim=True) - 0.2) / 0.5
    ours = page.LayerFlow(study, "softmax", flows["softmax"].flow, mean=0.2, std=0.5).condition(rows)
    torch.testing.assert_close(ours.double(), by_hand, atol=1e-5, rtol=1e-4)


def pieces(layer, rows, split="test"):
    """Latents and conditions of rows, from what is cached of them."""
    part = layer.study.known[split]
    z = part.column("logits" if layer.name == "softmax" else layer.name, rows)
    z = z.softmax(1) if layer.name == "softmax" else z
    return part.column("moments", rows)[:, :DIM], (z - layer.mean) / layer.std


@pytest.mark.parametrize("name", ["block 2", "block 6", "pooled", "softmax"])
@torch.no_grad()
def test_resampled_latents_have_the_drawn_v_under_the_representation_that_is_kept(flows, name):
    layer, rows = flows[name], torch.tensor([7, 0, 4])
    found = layer.resample(rows, 5, gen(3), temperature=0.5)
    _, cond = pieces(layer, rows)
    drawn = 0.5 * torch.randn(15, DIM, generator=gen(3)).view(3, 5, DIM)
    for k in range(3):
        own, other = (cond[i].expand(5, *cond.shape[1:]) for i in (k, (k + 1) % 3))
        torch.testing.assert_close(layer.flow(found[k], own)[0], drawn[k], atol=1e-3, rtol=1e-3)
        assert (layer.flow(found[k], other)[0] - drawn[k]).abs().max() > 0.1
    still = layer.resample(rows, 2, gen(3), temperature=0.0)
    torch.testing.assert_close(still[:, 0], layer.flow.inverse(torch.zeros(3, DIM), cond))


def test_many_rows_are_resampled_as_few_are(page, study, flows):
    """More rows than go together: each keeps its place and its own representation."""
    layer = flows["logits"]
    rows = torch.arange(10).repeat(9)
    found = layer.resample(rows, 1, gen(), temperature=0.0)[:, 0]
    torch.testing.assert_close(found, found[:10].repeat(9, 1), atol=1e-5, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-2


def z_of(layer, rows):
    return layer.study.known["test"].column("logits" if layer.name == "softmax" else layer.name, rows)


@pytest.mark.parametrize("name", ["block 2", "block 4", "logits", "softmax"])
def test_an_exchange_with_itself_is_none(study, flows, name):
    rows = torch.tensor([1, 5, 9])
    same = flows[name].exchanged(flows[name].invariances("test", rows), z_of(flows[name], rows))
    torch.testing.assert_close(same, study.latents[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["block 4", "logits", "softmax"])
@torch.no_grad()
def test_an_exchange_has_v_of_the_one_under_z_of_the_other(flows, name):
    layer, v_from, z_from = flows[name], torch.tensor([1, 5, 9]), torch.tensor([2, 2, 0])
    x, own = pieces(layer, v_from)
    _, other = pieces(layer, z_from)
    v, _ = layer.flow(x, own)
    torch.testing.assert_close(layer.invariances("test", v_from), v)
    found = layer.exchanged(v, z_of(layer, z_from))
    torch.testing.assert_close(layer.flow(found, other)[0], v, atol=1e-3, rtol=1e-3)
    assert (found - x).abs().max() > 1e-2
    of_training = layer.flow(*pieces(layer, v_from, "train"))[0]
    torch.testing.assert_close(layer.invariances("train", v_from), of_training)


@torch.no_grad()
def test_the_nll_is_a_mean_over_all_test_drawings(flows):
    for name in ("block 6", "softmax"):
        each = []
        for k in range(40):
            v, log_det = flows[name].flow(*pieces(flows[name], torch.tensor([k])))
            log_p = torch.distributions.Normal(0.0, 1.0).log_prob(v).sum() + log_det.sum()
            each.append(-log_p.item() / DIM)
        assert flows[name].nll() == pytest.approx(sum(each) / 40, abs=1e-4)


def test_a_step_goes_down_the_nll_of_a_sampled_latent(page, study):
    layer = tiny_study.random_layer(page, study, "logits")
    batch = study.batch("train", "logits", torch.arange(16))
    mean, log_variance = batch["moments"].chunk(2, 1)
    noise = torch.randn(16, DIM, generator=derived_generator(3, "posterior"))
    z_bar = mean + (log_variance / 2).exp() * noise
    nll = layer.flow.nll(z_bar, layer.condition(batch)).mean().item() - DIM / 2 * math.log(2 * math.pi)
    step = page.flow_step(layer, torch.optim.Adam(layer.flow.parameters(), lr=3e-3))
    losses = [step(batch, 3)["loss"].item() for _ in range(12)]
    assert losses[0] == pytest.approx(nll / DIM, abs=1e-4)
    assert losses[-1] < losses[0] - 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", ["block 6", "softmax"])
def test_a_flow_starts_at_the_ridge_regression_of_the_latent(page, study, name):
    layer = tiny_study.random_layer(page, study, name)
    page.fit_guess(layer)
    batch = study.batch("train", name, torch.arange(40))
    z, x = layer.condition(batch).flatten(1).double(), batch["moments"][:, :DIM].double()
    a, b = z - z.mean(0), x - x.mean(0)
    penalty = 0.1 * a.square().sum() / a.shape[1]
    by_rows = torch.linalg.solve(a @ a.T + penalty * torch.eye(40, dtype=torch.float64), b)
    new = layer.condition(study.batch("test", name, torch.arange(10))).flatten(1)
    wanted = (new.double() - z.mean(0)) @ a.T @ by_rows + x.mean(0)
    torch.testing.assert_close(layer.flow.guess(new), wanted.float(), rtol=1e-3, atol=1e-3)
    assert wanted.std(0).mean() > 0.01


def test_what_begins_near_its_best_learns_slowly(page, study):
    flow = tiny_study.random_layer(page, study, "softmax").flow
    fast, slow = page.rate_groups(flow, 1e-2)
    assert slow["lr"] == pytest.approx(1e-3) and {*slow["params"]} == {*flow.guess.parameters()}
    assert {*fast["params"]} | {*slow["params"]} == {*flow.parameters()}
    assert not {*fast["params"]} & {*slow["params"]}


def test_maps_with_too_many_entries_are_not_guessed(page):
    large = page.build_flow(4, (2, 65, 64), n_blocks=1, width=8, depth=1, dim_h=3)
    assert large.guess is None and page.rate_groups(large, 1.0)[1]["params"] == []
    assert page.build_flow(4, (2, 64, 64), n_blocks=1, width=8, depth=1, dim_h=3).guess is not None


def test_a_trained_flow_is_judged_at_its_end_and_recognised(page, study, tmp_path):
    recipe = page.Recipe(steps=4, batch_size=8, n_blocks=2, width=16, depth=1)
    layer, run = page.train_flow(study, "softmax", recipe, 0, str(tmp_path), quiet=True)
    p = study.known["train"].column("logits").double().softmax(1)
    assert layer.mean == pytest.approx(p.mean().item(), abs=1e-5)
    assert layer.std == pytest.approx(p.std().item(), abs=1e-5)
    assert run.history[-1]["eval/nll"] == pytest.approx(layer.nll(), abs=1e-5)
    again, second = page.train_flow(study, "softmax", recipe, 0, str(tmp_path), quiet=True)
    assert second.folder == run.folder and again.nll() == pytest.approx(layer.nll(), abs=1e-6)
    _, other = page.train_flow(study, "softmax", recipe, 1, str(tmp_path), quiet=True)
    assert other.folder != run.folder


def test_a_reader_may_draw_again(page, study, flows, monkeypatch):
    """The live cell: the same number draws the same pictures, temperature 0 the same picture seven times."""
    shown = []
    for name, value in {"flows": flows, "study": study}.items():
        monkeypatch.setattr(page, name, value, raising=False)
    monkeypatch.setattr(page, "picture", lambda pictures, **_: shown.append(pictures))
    for temperature, number in ((1.0, 0), (1.0, 0), (1.0, 1), (0.0, 0)):
        page.play(3, "softmax", temperature, number)
    first, again, other, still = shown
    assert len(first) == 8 and torch.equal(first, again) and not torch.equal(first, other)
    torch.testing.assert_close(first[0], study.known["test"].pictures(torch.tensor([3]))[0])
    torch.testing.assert_close(still[1:], still[1:2].expand(7, -1, -1, -1))
