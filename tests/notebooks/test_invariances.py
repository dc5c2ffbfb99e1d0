"""What the page "invariances" defines, held against scikit-learn, known variances and steps by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, r2_score
from torch import nn

from cvlib.data import emoji
from cvlib.data.base import Dataset, Draws, derived_generator
from cvlib.data.outputs import Outputs
from cvlib.nn import SemanticFlow
from cvlib.nn.backbones import EfficientNetLite0
from cvlib.nn.experts import Judge, Judgement, factor_targets, freeze
from cvlib.nn.vae import DiagonalGaussian, VectorAutoencoder
from cvlib.pages import definitions
from cvlib.train import Runtime

ROOT = Path(__file__).resolve().parents[2]
CLASSES, HANDS, DIM, SIDE = 5, 3, 12, 64


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "invariances.py")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, side=SIDE, seed=1):
    coarse = torch.rand(n, 3, side // 8, side // 8, generator=gen(seed)) * 2 - 1
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


class Drawings(Dataset):
    """A coarse pattern for each item, on the background that was drawn; the other factors are only told."""

    def __init__(self, n, seed):
        self.name, self.split, self.image_size, self.hash = "patterns", str(seed), SIDE, f"{n} {seed}"
        self.patterns = images(n, seed=seed)
        chance = gen(seed)
        concept, hand = (torch.randint(k, (n,), generator=chance) for k in (CLASSES, HANDS))
        self.labels, self.label_names = {"concept": concept, "hand": hand}, {}

    def __len__(self):
        return len(self.patterns)

    def draw(self, index, generator, augment):
        none = torch.zeros(len(index))
        return Draws(none, none, none, emoji.sample_factors(len(index), generator).tensor())

    def render(self, index, draws, device="cpu"):
        shown = (self.patterns[index] + draws.factors[:, :3, None, None]) / 2
        return {"image": shown, "factors": draws.factors}


@pytest.fixture(scope="module")
def experts():
    """A tiny autoencoder, a namer with statistics as after training, and a judge; none has learned."""
    torch.manual_seed(0)
    nets = {
        "autoencoder": VectorAutoencoder(SIDE, DIM, (8, 8, 8), n_blocks=0, patch=2, thumbnail=16),
        "namer": EfficientNetLite0(CLASSES),
        "judge": Judge(CLASSES, HANDS, SIDE // 8),
    }
    for module in nets["namer"].modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        nets["autoencoder"].start_from(images(40, seed=9))
        nets["namer"].fc.weight.mul_(5)
        nets["namer"](images(16, seed=9))
    for net in nets.values():
        freeze(net)
    return nets


@pytest.fixture(scope="module")
def cached(page, experts, tmp_path_factory):
    """The columns of 40 training and 10 test drawings."""
    data = {"train": Drawings(40, 2), "test": Drawings(10, 3)}
    columns = ["moments", *page.LAYERS[:-1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvlib.data.outputs.cache_root", lambda: tmp_path_factory.mktemp("cache"))
        for name, net in experts.items():
            patch.setattr(page, name, net, raising=False)
        known = {split: Outputs(part, columns, page.describe, experts) for split, part in data.items()}
    return data, known


@pytest.fixture
def world(page, experts, cached, monkeypatch):
    """The page with the globals that its cells set, and a flow with random weights for each layer."""
    drawings, known = cached
    made = {
        "runtime": Runtime(device="cpu", precision="fp32"),
        "drawings": drawings,
        "known": known,
        "seed": 0,
        "dim": DIM,
        "n_classes": CLASSES,
        "n_hands": HANDS,
        "fitted": torch.arange(40),
        "latents": DiagonalGaussian(known["test"].column("moments")).mean,
        "test_labels": drawings["test"].labels,
        "test_factors": factor_targets(known["test"].column("factors")),
        **experts,
    }
    for name, value in made.items():
        monkeypatch.setattr(page, name, value, raising=False)
    flows = {}
    for name in page.LAYERS:
        torch.manual_seed(0)
        z = page.of_layer(known["train"], name)
        flow = page.build_flow(DIM, tuple(z.shape[1:]), n_blocks=2, width=16, depth=1, dim_h=8)
        condition = page.Condition(name, z.mean().item(), z.std().item())
        x = DiagonalGaussian(known["train"].column("moments")).mean
        with torch.no_grad():
            flow.cond_weight.mul_(
                8
            )  # what it says of a latent shall depend on the condition, as after training
            flow(x, (z - z.mean()) / z.std())  # its first batch
        flows[name] = (flow.eval(), condition, None)
    monkeypatch.setattr(page, "flows", flows, raising=False)
    return page


# the layers


def layer_by_layer(net, x):
    """Outputs of the stem, of the seven blocks, of the head, and of the classifier, one after the other."""
    x = net.stem(x * (255 / 2) / 128 + (255 / 2 - 127) / 128)  # bytes less 127, by 128
    found = [x]
    for stage in (*net.blocks, net.head):
        found.append(x := stage(x))
    found.append(x.mean((2, 3)))
    return [*found, net.fc(found[-1])]


@torch.no_grad()
def test_representations_are_what_the_stages_give_one_after_the_other(page, experts):
    x = images()
    found = page.representations(experts["namer"], x)
    stem, one, two, three, four, five, six, seven, head, pooled, logits = layer_by_layer(experts["namer"], x)
    wanted = {"block 2": two, "block 4": four, "block 6": six, "pooled": pooled, "logits": logits}
    assert list(found) == list(wanted) == list(page.LAYERS[:-1])
    for name, z in wanted.items():
        torch.testing.assert_close(found[name], z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["logits"], experts["namer"].logits(x))


@torch.no_grad()
def test_the_softmax_follows_from_the_logits(world):
    x = world.known["test"].pictures(torch.arange(3))
    p = world.of_layer(world.known["test"], "softmax", torch.arange(3))
    torch.testing.assert_close(p, world.namer.logits(x).softmax(1), atol=2e-3, rtol=0)
    again = world.encoded_again("softmax", x, batch=2)
    torch.testing.assert_close(again, world.namer.logits(x).softmax(1))
    maps = world.encoded_again("block 4", x, batch=2)
    torch.testing.assert_close(maps, layer_by_layer(world.namer, x)[4].flatten(1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_kept_of_a_picture_are_its_moments_and_all_layers(world):
    x = images(2)
    found = world.describe(x)
    q = world.autoencoder.encode(x)
    torch.testing.assert_close(DiagonalGaussian(found["moments"]).mean, q.mean)
    torch.testing.assert_close(DiagonalGaussian(found["moments"]).log_variance, q.log_variance)
    assert list(found) == ["moments", *world.LAYERS[:-1]]


@torch.no_grad()
def test_pictures_and_judgements_come_piece_by_piece_in_order(world):
    z = torch.randn(5, DIM, generator=gen())
    pictures = world.decode(z, batch=2)
    each = torch.cat([world.autoencoder.decode(one[None]).clamp(-1, 1) for one in z])
    torch.testing.assert_close(pictures, each, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(world.judged(pictures, batch=2), world.judge(pictures), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# probes


@pytest.mark.parametrize("rows, features", [(50, 7), (7, 50), (12, 12)])
def test_ridge_is_that_of_scikit_learn(page, rows, features):
    x = torch.randn(rows, features, generator=gen()) + 3
    y = torch.randn(rows, 4, generator=gen(1)) - 2
    new = torch.randn(20, features, generator=gen(2))
    theirs = Ridge(alpha=0.3 * rows).fit(x.double(), y.double()).predict(new.double())
    torch.testing.assert_close(
        page.ridge(x, y, 0.3)(new), torch.from_numpy(theirs).float(), rtol=1e-4, atol=1e-4
    )


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


def test_explained_is_the_r2_of_scikit_learn(page):
    truth = torch.randn(80, 9, generator=gen()) * torch.arange(1.0, 10)
    said = truth + torch.randn(80, 9, generator=gen(1)) * torch.linspace(0.2, 9, 9)
    by_column = r2_score(truth, said, multioutput="raw_values")
    wanted = {
        "background": by_column[:3].mean(),
        "hue": by_column[3:5].mean(),
        "size": by_column[5],
        "shift": by_column[6:8].mean(),
        "rotation": by_column[8],
    }
    assert page.explained(said, truth) == pytest.approx(wanted, abs=1e-5)


def test_a_probe_reads_on_test_what_scikit_learn_reads(world):
    """From numbers that hold concept and factors, with noise, and know nothing of the hand."""
    rows, chance = torch.arange(40), gen()

    def holds(split):
        part = world.known[split]
        concept = F.one_hot(part.labels["concept"], CLASSES).float()
        clean = torch.cat([concept, factor_targets(part.column("factors"))], 1)
        return clean + 0.1 * torch.randn(clean.shape, generator=chance)

    x, x_test = holds("train"), holds("test")
    found = world.probe(x, x_test, rows)
    mean, std = x.double().mean(0), x.double().std(0)
    a, b = (x.double() - mean) / std, (x_test.double() - mean) / std
    factors = factor_targets(world.known["train"].column("factors"))
    said = Ridge(alpha=0.1 * 40).fit(a, factors).predict(b)
    by_column = r2_score(world.test_factors, said, multioutput="raw_values")
    assert found["background"] == pytest.approx(by_column[:3].mean(), abs=1e-4)
    assert found["rotation"] == pytest.approx(by_column[8], abs=1e-4)
    for field, count in (("concept", CLASSES), ("hand", HANDS)):
        indicators = np.eye(count)[world.known["train"].labels[field]]
        answer = Ridge(alpha=0.1 * 40).fit(a, indicators).predict(b).argmax(1)
        assert found[field] == pytest.approx(accuracy_score(world.test_labels[field], answer))
    assert found["concept"] == 1 and min(found[group] for group in world.GROUPS) > 0.8


# flows


def test_the_condition_is_z_with_mean_0_and_variance_1(world):
    rows = {"logits": world.known["train"].column("logits"), "pooled": world.known["train"].column("pooled")}
    for name in ("pooled", "logits", "softmax"):
        _, condition, _ = world.flows[name]
        z = condition.of(rows)
        assert z.mean().item() == pytest.approx(0, abs=1e-3)
        assert z.std().item() == pytest.approx(1, abs=1e-3)
    e = rows["logits"].double().exp()
    by_hand = (e / e.sum(1, keepdim=True) - 0.2) / 0.5
    of = world.Condition("softmax", mean=0.2, std=0.5).of({"logits": rows["logits"]})
    torch.testing.assert_close(of.double(), by_hand, atol=1e-5, rtol=1e-4)
    assert world.column_of("softmax") == "logits" and world.column_of("block 4") == "block 4"


def pieces(world, name, rows):
    """Condition and latent of test rows, from the cache itself."""
    _, condition, _ = world.flows[name]
    z = world.known["test"].column(world.column_of(name), rows)
    z = z.softmax(1) if name == "softmax" else z
    x = world.known["test"].column("moments", rows)[:, :DIM]
    return x, (z - condition.mean) / condition.std


@pytest.mark.parametrize("name", ["block 2", "block 6", "pooled", "softmax"])
@torch.no_grad()
def test_resampled_latents_have_the_drawn_v_under_the_representation_that_is_kept(world, name):
    rows = torch.tensor([7, 0, 4])
    found = world.resample(name, rows, 5)
    flow = world.flows[name][0]
    _, cond = pieces(world, name, rows)
    drawn = torch.randn(15, DIM, generator=derived_generator(0, "resample", name)).view(3, 5, DIM)
    for k in range(3):
        v, _ = flow(found[k], cond[k : k + 1].expand(5, *cond.shape[1:]))
        torch.testing.assert_close(v, drawn[k], atol=1e-3, rtol=1e-3)
        other, _ = flow(found[k], cond[k - 1 : k or None].expand(5, *cond.shape[1:]))
        assert (other - drawn[k]).abs().max() > 0.1  # another representation would give another v
    assert torch.equal(found, world.resample(name, rows, 5))
    assert not torch.equal(found, world.resample(name, rows, 5, "other"))


@pytest.mark.parametrize("name", ["block 2", "block 4", "logits", "softmax"])
@torch.no_grad()
def test_a_swap_with_itself_is_no_swap(world, name):
    rows = torch.tensor([1, 5, 9])
    torch.testing.assert_close(world.swap(name, rows, rows), world.latents[rows], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["block 4", "logits", "softmax"])
@torch.no_grad()
def test_a_swap_has_v_of_the_one_under_z_of_the_other(world, name):
    v_from, z_from = torch.tensor([1, 5, 9]), torch.tensor([2, 2, 0])
    found, flow = world.swap(name, v_from, z_from), world.flows[name][0]
    x, own = pieces(world, name, v_from)
    _, other = pieces(world, name, z_from)
    v, _ = flow(x, own)
    torch.testing.assert_close(flow(found, other)[0], v, atol=1e-3, rtol=1e-3)
    assert (found - x).abs().max() > 1e-2
    torch.testing.assert_close(world.split_off(name, world.known["test"], v_from), v)


@torch.no_grad()
def test_seen_through_the_clean_picture_a_layer_shows_the_reconstruction(world):
    rows = torch.tensor([3, 8])
    pictures = world.known["test"].pictures(rows)
    for name in ("block 4", "softmax"):
        found = world.seen_through(name, rows, pictures)
        torch.testing.assert_close(
            found, world.decode(world.latents[rows]), atol=2e-3, rtol=0
        )  # z is float16
        other = world.seen_through(name, rows, pictures.flip(0))
        v_kept = world.decode(world.swap(name, rows, rows.flip(0)))
        torch.testing.assert_close(other, v_kept, atol=2e-3, rtol=0)
        assert (found - other).abs().max() > 5e-2


def test_a_step_goes_down_the_nll_of_a_sampled_latent(world):
    flow, condition, _ = world.flows["logits"]
    batch = world.known["train"].only("moments", "logits").render(torch.arange(16), None)
    moments = batch["moments"].double()
    noise = torch.randn(16, DIM, generator=derived_generator(3, "posterior"))
    z_bar = (moments[:, :DIM] + (moments[:, DIM:] / 2).exp() * noise).float()
    nll = flow.nll(z_bar, condition.of(batch)).mean().item() - DIM / 2 * math.log(2 * math.pi)
    step = world.flow_step(flow, condition, torch.optim.Adam(flow.parameters(), lr=3e-3))
    losses = [step(batch, 3)["loss"].item() for _ in range(12)]
    assert losses[0] == pytest.approx(nll / DIM, abs=1e-4)
    assert losses[-1] < losses[0] - 0.1


@torch.no_grad()
def test_the_test_nll_is_a_mean_over_all_test_drawings(world):
    for name in ("block 6", "softmax"):
        flow, condition, _ = world.flows[name]
        each = []
        for k in range(10):
            x, cond = pieces(world, name, torch.tensor([k]))
            v, log_det = flow(x, cond)
            log_p = torch.distributions.Normal(0.0, 1.0).log_prob(v).sum() + log_det.sum()
            each.append(-log_p.item() / DIM)
        assert world.test_nll(flow, condition) == pytest.approx(sum(each) / 10, abs=1e-4)


# measured


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_between_finds_the_share_of_a_random_effects_model(page, share):
    """Two draws a group: without the correction an answer of pure noise would be said to lie between by half."""
    groups = torch.randn(40_000, 1, 2, generator=gen()) * math.sqrt(share)
    within = torch.randn(40_000, 2, 2, generator=gen(1)) * math.sqrt(1 - share)
    found = page.between(5 + 3 * (groups + within))
    torch.testing.assert_close(found, torch.full((2,), share), atol=0.02, rtol=0)


def test_between_has_no_bias_in_few_groups(page):
    """Numerator and denominator are means over many small experiments: 8 groups of 3 draws, share 0.4."""
    groups = torch.randn(20_000, 8, 1, generator=gen()) * math.sqrt(0.4)
    answers = groups + torch.randn(20_000, 8, 3, generator=gen(1)) * math.sqrt(0.6)
    found = page.between(answers.permute(1, 2, 0))
    within = answers.var(2).mean(1)
    spread = found * within / (1 - found)  # the variance between, as it was found
    assert spread.mean().item() == pytest.approx(0.4, abs=0.01)


class Legible:
    """Latents that are their own pictures and state concept, hand and factors openly: (N, 5 + 3 + 9)."""

    def __init__(self, page, monkeypatch, n=300):
        chance = gen()
        labels = {
            "concept": torch.randint(CLASSES, (n,), generator=chance),
            "hand": torch.randint(HANDS, (n,), generator=chance),
        }
        factors = factor_targets(emoji.sample_factors(n, chance).tensor())
        indicators = [F.one_hot(labels["concept"], CLASSES), F.one_hot(labels["hand"], HANDS)]
        self.latents = torch.cat([*indicators, factors], 1)
        self.where = {"concept": slice(0, 5), "hand": slice(5, 8)}
        self.where |= {name: slice(8 + s.start, 8 + s.stop) for name, s in page.GROUPS.items()}
        made = {
            "latents": self.latents,
            "test_labels": labels,
            "test_factors": factors,
            "known": {"test": None},
            "decode": lambda z: z,
            "judged": lambda z: Judgement(*z.split([CLASSES, HANDS, 9], dim=1)),
            "encoded_again": lambda name, z: z,
            "of_layer": lambda part, name, rows: self.latents[rows],
        }
        for name, value in made.items():
            monkeypatch.setattr(page, name, value, raising=False)


@pytest.fixture
def legible(page, monkeypatch):
    return Legible(page, monkeypatch)


def test_a_layer_that_knows_all_leaves_nothing_to_v(page, legible, monkeypatch):
    def resample(name, rows, n, word):
        return legible.latents[rows][:, None].expand(-1, n, -1)

    monkeypatch.setattr(page, "resample", resample)
    rows = torch.arange(0, 300, 2)
    found = page.measure("logits", rows, 4)
    z = legible.latents[rows]
    z = (z - z.mean(0)).double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    other = (z * np.roll(z, 1, 0)).sum(1).mean()
    wanted = {"v explains": 0, "concept": 1, "hand": 1, **dict.fromkeys(page.GROUPS, 1)}
    assert found == pytest.approx(wanted | {"consistency": 1 - other}, abs=1e-4)


def test_a_layer_that_knows_nothing_leaves_all_to_v(page, legible, monkeypatch):
    def resample(name, rows, n, word):
        return legible.latents[torch.randint(300, (len(rows), n), generator=gen(7))]

    monkeypatch.setattr(page, "resample", resample)
    found = page.measure("logits", torch.arange(300), 6)
    assert found["v explains"] == pytest.approx(1, abs=0.05)
    assert found["concept"] == pytest.approx(1 / CLASSES, abs=0.05)
    assert found["hand"] == pytest.approx(1 / HANDS, abs=0.05)
    assert all(abs(found[group]) < 0.06 for group in page.GROUPS)
    assert abs(found["consistency"]) < 0.05


# attack


def cross_entropy(net, x, labels):
    return F.cross_entropy(net.logits(x), labels, reduction="none")


def test_an_attack_moves_every_pixel_by_at_most_epsilon_and_raises_the_cross_entropy(world):
    x = images(6, seed=4) * 0.9
    x[0] = x[0].sign()  # at the border of what a pixel can be
    epsilon = 1e-3  # little, since a network that has not learned is far from linear
    moved, noisy = world.attack(x, epsilon), world.attack(x, epsilon, gen(5))
    for changed in (moved, noisy):
        assert (changed - x).abs().max() <= epsilon + 1e-6 and changed.abs().max() <= 1
    step = (moved - x)[1:].abs()
    assert (step > 0.99 * epsilon).float().mean() > 0.99  # all of epsilon, wherever there is a slope
    with torch.no_grad():
        answer = world.namer.logits(x).argmax(1)
        before, after, control = (cross_entropy(world.namer, y, answer) for y in (x, moved, noisy))
    assert (after > before).all()
    assert (after - before).mean() > 5 * (control - before).abs().mean()


def test_noise_has_the_size_of_the_attack_and_no_direction(world):
    x = torch.zeros(2, 3, 64, 64)
    noisy = world.attack(x, 0.05, gen(1))
    assert torch.equal(noisy.abs(), torch.full_like(noisy, 0.05))
    assert noisy.mean().abs() < 5 * 0.05 / math.sqrt(noisy.numel())
    assert torch.equal(noisy, world.attack(x, 0.05, gen(1)))


# factors that can be exchanged


class Ledger:
    """Drawings whose picture is an entry: item, concept, hand and the eight factors."""

    def __init__(self, n=60):
        chance = gen(11)
        concept = torch.randint(4, (n,), generator=chance) + (torch.rand(n, generator=chance) < 0.3)
        self.labels = {"concept": concept, "hand": torch.randint(HANDS, (n,), generator=chance)}
        self.n = n

    def __len__(self):
        return self.n

    def draw(self, index, generator, augment):
        assert augment
        none = torch.zeros(len(index))
        return Draws(none, none, none, emoji.sample_factors(len(index), generator).tensor())

    def render(self, index, draws):
        entry = [index, self.labels["concept"][index], self.labels["hand"][index]]
        return {"image": torch.cat([torch.stack(entry, 1).float(), draws.factors], 1)}


@pytest.fixture
def ledger(page, monkeypatch):
    data = Ledger()
    reader = SimpleNamespace(encode=lambda x: SimpleNamespace(mean=x))
    made = {"drawings": {"train": data}, "autoencoder": reader, "seed": 0}
    for name, value in (made | {"runtime": Runtime(device="cpu", precision="fp32")}).items():
        monkeypatch.setattr(page, name, value, raising=False)
    return data


COLUMNS = {"background": {0, 1, 2}, "hue": {3}, "size": {4}, "shift": {5, 6}, "rotation": {7}}


@pytest.mark.parametrize("factor", ["concept", "hand", "background", "size", "shift", "rotation"])
def test_pairs_share_the_named_factor_and_nothing_else(page, ledger, factor):
    n = 3000
    a, b = page.pairs_of(factor, n, "train", "some")
    shared = COLUMNS.get(factor, set())
    for column in range(8):
        same = a[:, 3 + column] == b[:, 3 + column]
        assert same.all() if column in shared else same.float().mean() < 0.01, emoji.Factors.NAMES[column]
    for place, field in ((1, "concept"), (2, "hand")):
        same = (a[:, place] == b[:, place]).float().mean().item()
        if field == factor:
            assert same == 1
        elif factor in COLUMNS:  # as often as two drawings that know nothing of each other
            chance = (ledger.labels[field].bincount() / len(ledger)).square().sum().item()
            assert same == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / n))
        else:
            assert same < 0.9
    for end in (a, b):  # factors of either end as the data draw them
        torch.testing.assert_close(factor_targets(end[:, 3:]).var(0), torch.ones(9), atol=0.12, rtol=0)


@pytest.mark.parametrize("factor", ["concept", "hand"])
def test_partners_of_a_class_are_all_equally_likely(page, ledger, factor):
    n = 6000
    a, b = page.pairs_of(factor, n, "train", "some")
    first, second = a[:, 0].long(), b[:, 0].long()
    label = ledger.labels[factor]
    for k in label.unique().tolist():
        members = (label == k).nonzero()[:, 0]
        rows = second[label[first] == k]
        wanted = len(rows) / len(members)
        count = rows.bincount(minlength=len(ledger))
        assert count.sum() == count[members].sum() == len(rows)
        assert ((count[members] - wanted).abs() <= 5 * math.sqrt(wanted)).all()


def test_pairs_depend_on_seed_word_and_factor_alone(page, ledger, monkeypatch):
    a, b = page.pairs_of("size", 8, "train", "some")
    torch.manual_seed(99)
    again = page.pairs_of("size", 8, "train", "some")
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    assert not torch.equal(a, page.pairs_of("size", 8, "train", "other")[0])
    assert not torch.equal(a, page.pairs_of("shift", 8, "train", "some")[0])
    monkeypatch.setattr(page, "seed", 1)
    assert not torch.equal(a, page.pairs_of("size", 8, "train", "some")[0])


def test_batches_of_pairs_depend_on_seed_and_t_alone(page):
    ends = {name: (torch.randn(7 + k, 3), torch.randn(7 + k, 3)) for k, name in enumerate("xyz")}
    batches = page.PairBatches(ends, 50, seed=3)
    first = batches(4)
    torch.manual_seed(99)
    batches(5)
    for again in (batches(4), page.PairBatches(ends, 50, seed=3)(4)):
        assert all(torch.equal(first[name], again[name]) for name in ("a", "b", "factor"))
    for other in (batches(5), page.PairBatches(ends, 50, seed=4)(4)):
        assert not torch.equal(first["a"], other["a"])


def test_a_batch_holds_both_ends_of_pairs_and_the_number_of_what_they_share(page):
    ends = {name: (torch.randn(7 + k, 3), torch.randn(7 + k, 3)) for k, name in enumerate("xyz")}
    seen = set()
    for t in range(10):
        batch = page.PairBatches(ends, 50, seed=3)(t)
        for a, b, factor in zip(batch["a"], batch["b"], batch["factor"].tolist(), strict=True):
            one, other = list(ends.values())[factor - 1]  # number 0 is what is left
            (row,) = (one == a).all(1).nonzero()[:, 0].tolist()
            assert torch.equal(other[row], b)
            seen.add((factor, row))
    assert len(seen) == 7 + 8 + 9


@pytest.fixture
def semantic(world, monkeypatch):
    torch.manual_seed(0)
    flow = SemanticFlow([6, 1, 1, 1, 1, 1, 1], width=16, n_blocks=2, depth=1)
    with torch.no_grad():
        flow(DiagonalGaussian(world.known["train"].column("moments")).mean)  # its first batch
    monkeypatch.setattr(world, "semantic", flow.eval(), raising=False)
    return flow


@torch.no_grad()
def test_an_edit_exchanges_one_block_of_the_semantic_flow(world, semantic):
    z, donor = world.latents[:4], world.latents[4:8]
    for number, factor in enumerate(world.SHARED, start=1):
        found, _ = semantic(world.edited(z, donor, factor))
        own, _ = semantic(z)
        other, _ = semantic(donor)
        for k in range(7):
            wanted = other[k] if k == number else own[k]
            torch.testing.assert_close(found[k], wanted, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(world.edited(z, z, factor), z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", ["concept", "hand", "background", "size", "shift", "rotation"])
def test_after_the_move_a_probe_reads_the_donors_value_and_no_step_is_shorter(world, factor):
    x = world.known["train"].column("moments")[:, :DIM]
    if factor in ("concept", "hand"):
        y = np.eye({"concept": CLASSES, "hand": HANDS}[factor])[world.known["train"].labels[factor]]
    else:
        columns = {"background": slice(0, 3), "size": [5], "shift": slice(6, 8), "rotation": [8]}[factor]
        y = factor_targets(world.known["train"].column("factors"))[:, columns].numpy()
    probe = Ridge(alpha=0.1 * 40).fit(x.double(), y)
    z, donor = world.latents[:5], world.latents[5:]
    found = world.moved(z, donor, factor)
    reads, of_donor, before = (probe.predict(one.double()).reshape(5, -1) for one in (found, donor, z))
    np.testing.assert_allclose(reads, of_donor, atol=2e-4)
    assert np.abs(before - of_donor).max() > 0.02
    least, *_ = np.linalg.lstsq(np.atleast_2d(probe.coef_), (of_donor - before).T, rcond=1e-6)
    np.testing.assert_allclose((found - z).numpy(), least.T, atol=1e-3, rtol=1e-2)
    assert ((found - z).norm(dim=1) <= (donor - z).norm(dim=1) + 1e-4).all()


@pytest.mark.parametrize("factor", ["concept", "hand", "background", "size", "shift", "rotation"])
def test_edit_scores_of_the_best_edit_of_none_and_of_the_donor_itself(page, legible, factor):
    def best(z, donor, name):
        out = z.clone()
        out[:, legible.where[name]] = donor[:, legible.where[name]]
        return out

    rows = torch.arange(300)
    chance = {"concept": 1 / CLASSES, "hand": 1 / HANDS}.get(factor, 0.0)
    assert page.edit_scores(best, factor, rows) == pytest.approx((1, 1), abs=1e-5)
    arrives, stays = page.edit_scores(lambda z, donor, name: z, factor, rows)
    assert arrives == pytest.approx(chance, abs=0.08) and stays == pytest.approx(1, abs=1e-5)
    arrives, stays = page.edit_scores(lambda z, donor, name: donor, factor, rows)
    by_chance = [{"concept": 1 / CLASSES, "hand": 1 / HANDS}.get(name, 0.0) for name in page.SHARED]
    others = (sum(by_chance) - chance) / 5
    assert arrives == pytest.approx(1, abs=1e-5) and stays == pytest.approx(others, abs=0.05)
