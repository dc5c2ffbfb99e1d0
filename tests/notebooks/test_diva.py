"""What the page "diva" defines, held against brute force, autograd and closed forms."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.data.base import derived_generator
from cvlib.errors import BookError
from cvlib.nn.backbones import SmallCNN
from cvlib.nn.objectives import MarginLoss, agreement
from cvlib.pages import definitions
from cvlib.train import Runtime

ROOT = Path(__file__).resolve().parents[2]
START = 3  # the last two stages of the small network learn


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "diva.py")


@pytest.fixture
def runtime():
    return Runtime(device="cpu", precision="fp32")


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return SmallCNN()


def units(*shape, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1
    )


LABELS = torch.tensor([3, 3, 0, 0, 7, 7, 5, 5])


def build(page, backbone, config, batch_size=8):
    torch.manual_seed(1)
    net = page.DivaNet(backbone, START, len(config.tasks), config.dim)
    return page.Diva(config, net, n_classes=8, batch_size=batch_size)


def batch_of(seed=0):
    views = torch.randn(2, 8, 128, 4, 4, generator=torch.Generator().manual_seed(seed)).relu()
    return {"views": list(views), "label": LABELS}


def draws(name):
    return derived_generator(0, name)


class Source:
    """Eight random maps, as what comes out of the frozen stages."""

    labels, stage, hash = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), START, "eight"

    def __init__(self):
        self.maps = torch.randn(8, 128, 4, 4, generator=torch.Generator().manual_seed(3)).relu()

    def __len__(self):
        return 8

    def take(self, index, generator, n=1):
        return [
            self.maps[index] + 0.1 * torch.randn(self.maps[index].shape, generator=generator)
            for _ in range(n)
        ]

    def fixed(self, index):
        return self.maps[index]


# heads and their aggregation


def test_heads_are_the_pieces_of_one_linear_layer_scaled_to_length_one(page, backbone):
    net = page.DivaNet(backbone, START, 3, 5).eval()
    x = batch_of()["views"][0]
    e = net(x)
    pooled = backbone.eval().run(x, start=START).mean((2, 3))
    for k in range(3):
        piece = pooled @ net.heads.weight[5 * k : 5 * k + 5].T + net.heads.bias[5 * k : 5 * k + 5]
        torch.testing.assert_close(e[:, k], piece / piece.norm(dim=1, keepdim=True))


def test_without_frozen_stages_it_takes_images(page, backbone):
    net = page.DivaNet(backbone, 0, 1, 4).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(net.features(images), backbone.eval()(images).mean((2, 3)))


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [0.5, 2, 2, 2], [1, 0, 0, 0]])
def test_similarity_of_the_aggregate_is_the_weighted_mean_of_the_heads(page, weights):
    e = units(9, 4, 6, dtype=torch.float64)
    z = page.aggregate(e, weights)
    expected = sum(w**2 * e[:, k] @ e[:, k].T for k, w in enumerate(weights)) / sum(w**2 for w in weights)
    assert (z @ z.T - expected).abs().max() < 1e-6


def test_aggregate_wants_a_weight_for_each_head(page):
    with pytest.raises(BookError, match=r"3 weights .*wanted 4"):
        page.aggregate(units(2, 4, 3), [1, 1, 1])


# miners


def test_permuted_labels_pair_true_classmates_once_in_b_minus_one(page):
    labels = torch.arange(8).repeat_interleave(2)
    generator = torch.Generator().manual_seed(0)
    same = torch.stack(
        [
            labels == labels[page.shared_triplets(units(16, 4), labels, generator).positive]
            for _ in range(4000)
        ]
    ).double()
    # two anchors of a pair are right or wrong together: 8 independent ones a draw, but for their coupling
    assert abs(same.mean() - 1 / 15) < 4 * math.sqrt(1 / 15 / (4000 * 8))


def test_permuted_labels_keep_the_sizes_of_the_classes(page):
    found = page.permuted(torch.tensor([0, 0, 0, 1, 2, 2]), torch.Generator().manual_seed(1))
    assert torch.bincount(found).tolist() == [3, 1, 2]


def test_third_class_triplets_have_three_classes(page):
    for seed in range(20):
        a, p, n, valid = page.shared_triplets(
            units(8, 4, seed=seed), LABELS, torch.Generator().manual_seed(seed), "third class"
        )
        assert valid.all()
        assert all(len({LABELS[i].item() for i in row}) == 3 for row in zip(a, p, n, strict=True))


def test_third_class_negatives_follow_the_inverse_density(page):
    e, labels = units(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    generator = torch.Generator().manual_seed(0)
    n = 6000
    drawn = torch.stack([page.third_class_triplets(e, labels, generator).negative[0] for _ in range(n)])
    r = (e[0] - e[2:]).norm(dim=1).clamp(min=0.5)
    weight = r ** (2 - 3)  # 1/q in three dimensions, where the second factor has the power 0
    expected = weight / weight.sum()
    frequency = torch.bincount(drawn, minlength=6)[2:] / n
    assert (frequency - expected).abs().max() < 4 * math.sqrt(0.25 / n)


def test_third_class_needs_three_classes(page):
    assert not page.third_class_triplets(units(4, 3), torch.tensor([0, 0, 1, 1])).valid.any()


def test_faithful_intra_triplets_are_all_draws_with_replacement_alike(page):
    labels = torch.tensor([4, 1, 1, 4])
    generator = torch.Generator().manual_seed(0)
    n = 4000
    counts = torch.zeros(4, 4, 4)
    for _ in range(n):
        t = page.intra_triplets(labels, generator)
        counts.index_put_(t[:3], torch.ones(4), accumulate=True)
    for a, p, q in itertools.product(range(4), repeat=3):
        is_one_class = labels[a] == labels[p] == labels[q]
        expected = 1 / 16 if is_one_class else 0  # two classes, then eight triplets of two members
        assert abs(counts[a, p, q] / (4 * n) - expected) < (
            4 * math.sqrt(1 / 16 / (4 * n)) if expected else 1e-9
        )


def test_distinct_intra_triplets_are_three_images_of_a_class(page):
    labels = torch.tensor([0, 1, 1, 0, 2, 1, 0, 1, 2])  # class 2 has two images only
    seen = set()
    for seed in range(30):
        a, p, n, valid = page.intra_triplets(labels, torch.Generator().manual_seed(seed), distinct=True)
        for row in torch.stack([a, p, n], 1)[valid].tolist():
            assert len(set(row)) == 3 and len({labels[i].item() for i in row}) == 1
            seen.update(row)
        assert (labels[a[~valid]] == 2).all()
    assert seen == {0, 1, 2, 3, 5, 6, 7}


@pytest.mark.parametrize("distance, force", [(0.3, -0.5), (0.99, -0.5), (1.2, 0.0), (1.45, 0.5), (1.9, 0.5)])
def test_the_intra_loss_repels_below_one_and_attracts_above_1_4(page, distance, force):
    assert page.intra_force(distance, 0.2, 1.2) == pytest.approx(force, abs=1e-6)


# momentum network and queue


def test_momentum_is_the_exact_formula_and_nothing_learns_in_it(page):
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    follower = page.Momentum(net, 0.9)
    old = {name: value.clone() for name, value in follower.net.state_dict().items()}
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    net(torch.randn(4, 1, 3, 3))  # moves the running statistics
    follower.follow(net)
    for name, value in net.state_dict().items():
        expected = 0.9 * old[name] + 0.1 * value if value.is_floating_point() else value
        torch.testing.assert_close(follower.net.state_dict()[name], expected)
    assert not any(p.requires_grad for p in follower.parameters())
    assert not follower(torch.randn(2, 1, 3, 3)).requires_grad


def test_queue_is_first_in_first_out_whatever_the_batch(page):
    queue, plain = page.Queue(7, 2), []
    generator = torch.Generator().manual_seed(0)
    for size in (3, 4, 5, 7, 8, 30, 1, 6):
        keys = torch.randn(size, 2, generator=generator, requires_grad=True)
        queue.push(keys)
        plain = [*plain, *keys.detach()][-7:]
        if len(plain) == 7:
            torch.testing.assert_close(queue.in_order(), torch.stack(plain))
        assert queue.keys.shape == (7, 2) and not queue.keys.requires_grad


# configuration and total loss


def test_names_of_heads_and_losses(page):
    four = page.DivaConfig(("disc",) * 4)
    assert four.heads == ("disc", "disc2", "disc3", "disc4") and four.dance is None
    shared_head = page.DivaConfig(("disc+dance", "intra"))
    assert shared_head.heads == ("disc+dance", "intra")
    assert shared_head.losses == (("disc", "dance"), ("intra",)) and shared_head.dance == 0
    assert page.DivaConfig().dance == 1


@pytest.mark.parametrize(
    "options, told",
    [
        ({"tasks": ("disk",)}, "task 'disk'"),
        ({"tasks": ("dance", "dance")}, "dance at most once"),
        ({"tasks": ()}, "at least one"),
        ({"nce": "rows"}, "nce 'rows'"),
        ({"intra": "all"}, "intra 'all'"),
    ],
)
def test_a_wrong_configuration_is_told(page, options, told):
    with pytest.raises(BookError, match=told):
        page.DivaConfig(**options)


def test_total_is_the_weighted_sum_of_its_parts(page, backbone):
    config = page.DivaConfig(dim=6, alpha=0.3, rho=5.0, queue_batches=2)
    diva = build(page, backbone, config)
    e, key = units(8, 4, 6, seed=5), units(8, 6, seed=6)
    loss, parts = diva(e, LABELS, key, draws)
    regressors = {name: diva.regressors[f"{name}-disc"] for name in ("dance", "shared", "intra")}
    c = [agreement(e[:, 0], e[:, k + 1], xi) for k, xi in enumerate(regressors.values())]
    own = parts["disc"] + 0.3 * (parts["dance"] + parts["shared"] + parts["intra"]) - 5.0 * sum(c)
    torch.testing.assert_close(loss, own)
    torch.testing.assert_close(parts["agreement"], sum(c) / 3)
    assert len(diva.regressors) == 3


def test_each_part_is_its_relation(page, backbone):
    config = page.DivaConfig(dim=6, queue_batches=2, temperature=0.1)
    diva = build(page, backbone, config)
    with torch.no_grad():  # a boundary for each class, so that a wrong index is seen
        for criterion in diva.criteria.values():
            criterion.beta.copy_(torch.linspace(0.6, 1.3, 8))
    e, key = units(8, 4, 6, seed=5), units(8, 6, seed=6)
    _, parts = diva(e, LABELS, key, draws)

    def margin_loss(x, triplets):  # by a loop over triplets; β by the anchor's true label
        total, active = 0.0, 0
        for a, p, n, valid in zip(*(t.tolist() for t in triplets), strict=True):
            b = torch.linspace(0.6, 1.3, 8)[LABELS[a]]
            terms = ((x[a] - x[p]).norm() - b + 0.2, b - (x[a] - x[n]).norm() + 0.2)
            total += sum(max(0.0, float(t)) for t in terms) * valid
            active += sum(float(t) > 0 for t in terms) * valid
        return torch.tensor(total / active)

    shared = page.shared_triplets(e[:, 2], LABELS, draws("shared"))
    intra = page.intra_triplets(LABELS, draws("intra"))
    loose = {"rtol": 1e-3, "atol": 1e-4}  # the root has 1e-8 under it
    torch.testing.assert_close(parts["shared"], margin_loss(e[:, 2], shared), **loose)
    torch.testing.assert_close(parts["intra"], margin_loss(e[:, 3], intra), **loose)
    disc = diva.criteria["disc"].draw(e[:, 0], LABELS, draws("disc"))
    torch.testing.assert_close(parts["disc"], margin_loss(e[:, 0], disc), **loose)


def test_plain_nce_against_the_formula(page):
    q, k, u = units(3, 4), units(3, 4, seed=1), units(5, 4, seed=2)
    rows = []
    for i in range(3):
        own = math.exp(q[i] @ k[i] / 0.2)
        rows.append(-math.log(own / (own + sum(math.exp(q[i] @ u[j] / 0.2) for j in range(5)))))
    assert page.plain_nce(q, k, u, 0.2).item() == pytest.approx(sum(rows) / 3, rel=1e-5)


@pytest.mark.parametrize("nce", ["row", "column", "plain"])
def test_the_ways_of_weighing_negatives_differ(page, backbone, nce):
    e, key = units(8, 4, 6, seed=5), units(8, 6, seed=6)
    found = {}
    for name in {"row", nce}:
        diva = build(page, backbone, page.DivaConfig(dim=6, nce=name, queue_batches=2))
        found[name] = diva(e, LABELS, key, draws)[1]["dance"].item()
    assert (abs(found["row"] - found[nce]) > 1e-3) == (nce != "row")


def test_without_the_other_terms_it_is_the_plain_margin_loss_bit_for_bit(page, backbone, runtime):
    """α = 0 and ρ = 0 give the network the gradients of one discriminative head, given the same draws."""
    silent = page.DivaConfig(dim=6, alpha=0.0, rho=0.0, queue_batches=2)
    diva = build(page, backbone, silent)
    x = batch_of()["views"]
    e = diva.net.eval()(x[0])
    loss, _ = diva(e, LABELS, diva.key(x[1])[:, 1], draws)
    ours = torch.autograd.grad(loss, list(diva.net.trunk.parameters()))
    e = diva.net(x[0])
    plain = MarginLoss(8, 0.2, 1.2)(e[:, 0], LABELS, generator=draws("disc"))
    theirs = torch.autograd.grad(plain, list(diva.net.trunk.parameters()))
    assert torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_decorrelation_moves_adversary_and_heads_in_opposite_directions(page, backbone):
    diva = build(page, backbone, page.DivaConfig(("disc", "intra"), dim=6, rho=1.0))
    raw = units(8, 2, 6, seed=7).requires_grad_()
    xi = diva.regressors["intra-disc"]

    def c(e):
        return agreement(e[:, 0], e[:, 1], xi).item()

    _, parts = diva(raw, LABELS, None, draws)
    gradients = torch.autograd.grad(-parts["agreement"], [raw, *xi.parameters()])
    before = c(raw)
    assert c(raw - 0.5 * gradients[0]) < before  # a descent step of the heads
    with torch.no_grad():
        for p, g in zip(xi.parameters(), gradients[1:], strict=True):
            p -= 0.5 * g
    assert c(raw) > before  # a descent step of ξ on the same loss


# training


def test_a_step_updates_then_follows_then_queues(page, backbone, runtime):
    config = page.DivaConfig(dim=6, rho=1.0, queue_batches=1)
    diva = build(page, backbone, config).train()
    optimizer = torch.optim.SGD(page.parameter_groups(diva, page.Recipe(learning_rate=0.1)), lr=0.1)
    batch = batch_of()
    seen = []

    def remember(module, args, output):
        seen.append(diva.queue.keys.clone())

    diva.register_forward_hook(remember)
    before, queue = diva.key.net.heads.weight.clone(), diva.queue.keys.clone()
    diva.key.eval()
    key = diva.key(batch["views"][1])[:, 1].clone()
    page.diva_step(diva, optimizer, runtime, seed=0)(batch, 0)
    assert torch.equal(seen[0], queue)  # the loss saw the old keys alone
    torch.testing.assert_close(diva.queue.in_order(), key)
    torch.testing.assert_close(diva.key.net.heads.weight, 0.9 * before + 0.1 * diva.net.heads.weight)
    assert not torch.equal(before, diva.net.heads.weight)


def test_the_optimiser_sees_everything_that_learns_once_and_no_key(page, backbone):
    diva = build(page, backbone, page.DivaConfig(dim=6, queue_batches=1))
    grouped = [id(p) for group in page.parameter_groups(diva, page.Recipe()) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in diva.parameters() if p.requires_grad)
    assert not set(grouped) & {id(p) for p in diva.key.parameters()}


ARMS = {
    "diva": {},
    "one wide head": {"tasks": ("disc",), "dim": 24, "rho": 0.0},
    "four discriminative heads": {"tasks": ("disc",) * 4},
    "self-supervised on the discriminative head": {"tasks": ("disc+dance",)},
    "no decorrelation": {"rho": 0.0},
    "plain contrast": {"nce": "plain"},
    "other miners": {"shared": "third class", "intra": "distinct"},
}


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains(page, backbone, runtime, tmp_path, name):
    config = page.DivaConfig(**{"dim": 6, "queue_batches": 1, **ARMS[name]})
    recipe = page.Recipe(steps=2, batch_size=8, per_class=2)
    options = {"seed": 0, "runtime": runtime, "root": str(tmp_path)}
    diva, _, result = page.train_diva(config, recipe, backbone, Source(), **options)
    assert set(result.history[-1]) >= {part for head in config.losses for part in head}
    assert all(math.isfinite(result.history[-1][part]) for head in config.losses for part in head)
    assert (diva.key is None) == (config.dance is None)
    assert len(diva.regressors) == (len(config.tasks) - 1 if config.rho else 0)
    assert page.embed(diva.net, Source(), runtime).shape == (8, len(config.tasks), config.dim)


def test_training_leaves_the_backbone_alone_and_repeats_itself(page, backbone, runtime, tmp_path):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    config, recipe = page.DivaConfig(dim=6, queue_batches=1), page.Recipe(steps=2, batch_size=8)
    weights = []
    for folder in ("a", "b"):
        diva, _, _ = page.train_diva(
            config, recipe, backbone, Source(), seed=0, runtime=runtime, root=str(tmp_path / folder)
        )
        weights.append(diva.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_the_checkpoint_that_is_best_by_a_watched_value_is_returned(page, backbone, runtime, tmp_path):
    config, recipe = page.DivaConfig(dim=6, queue_batches=1), page.Recipe(steps=4, batch_size=8)
    seen = []

    def watch(net):
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return {"miss": (3.0, 1.0, 2.0, 4.0)[len(seen) - 1]}

    options = {"seed": 0, "runtime": runtime, "root": str(tmp_path), "watch": watch, "n_checks": 4}
    diva, _, _ = page.train_diva(config, recipe, backbone, Source(), best="miss", **options)
    assert len(seen) == 4
    kept = diva.net.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert not all(torch.equal(kept[name], value) for name, value in seen[3].items())


def test_a_fresh_probe_finds_what_can_be_predicted(page):
    source = units(600, 8)
    turned = source @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    unrelated = units(600, 8, seed=2)
    identical = 3 / (8 * 10)
    assert page.probed_agreement(source, turned, steps=300) > 0.85 * identical
    assert page.probed_agreement(source, unrelated, steps=50) < 1.3 / 64


def test_the_toys_direction_is_fishers(page):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(500)
    x = torch.randn(1000, 3, generator=generator) * torch.tensor([1.0, 2.0, 3.0])
    x = x + labels[:, None] * torch.tensor([1.0, 1.0, 0.0])
    found = page.fisher_direction(x, labels)
    means = [x[labels == c].mean(0) for c in (0, 1)]
    within = sum((x[labels == c] - means[c]).T @ (x[labels == c] - means[c]) for c in (0, 1))
    expected = F.normalize(torch.linalg.solve(within, means[1] - means[0]), dim=0)  # two classes: closed form
    assert abs(found @ expected) == pytest.approx(1.0, abs=1e-4)
