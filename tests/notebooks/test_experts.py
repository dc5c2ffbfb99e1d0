"""Autoencoder and namer of the page "experts", held against autograd on one graph and brute force."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torch import nn

from cvlib.data.base import derived_generator
from cvlib.nn import PatchDiscriminator, vgg_loss
from cvlib.nn.backbones import EfficientNetLite0
from cvlib.nn.vae import VectorAutoencoder
from cvlib.pages import definitions
from cvlib.train import Runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    page = definitions(ROOT / "notebooks" / "experts.py")
    page.taming = definitions(ROOT / "notebooks" / "taming.py")  # as the page's first cell does
    return page


@pytest.fixture
def runtime():
    return Runtime(device="cpu", precision="fp32")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=4, side=16, seed=1):
    return torch.rand(n, 3, side, side, generator=gen(seed)) * 2 - 1


def autoencoder():
    torch.manual_seed(0)
    return VectorAutoencoder(16, 5, (8, 8), thumbnail=8)


def same_networks(build, n=2):
    first, *others = (build() for _ in range(n))
    for other in others:
        other.load_state_dict(first.state_dict())
    return first, *others


# the autoencoder


def test_the_window_lies_inside_and_is_half_the_side(page):
    found = [page.window(8, gen(k)) for k in range(300)]
    corners = set()
    for rows, columns in found:
        assert torch.zeros(8, 8)[rows, columns].shape == (4, 4)
        corners.add((rows.start, columns.start))
    assert corners == {(top, left) for top in range(5) for left in range(5)}  # every place it fits


def test_the_autoencoder_of_the_page_has_the_size_that_is_told(page):
    net = page.build_autoencoder(64, 320)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(4.97e6, abs=0.05e6)
    widest = []
    for layer in net.decoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: widest.append(out.shape[-1]))
    net(images(1, 64))
    assert max(widest) == 32


def test_every_parameter_learns_once_and_the_linear_paths_at_a_tenth(page):
    net = autoencoder()
    rate = {}
    for group in page.rate_groups(net, 0.5):
        for parameter in group["params"]:
            assert id(parameter) not in rate
            rate[id(parameter)] = group["lr"]
    for name, parameter in net.named_parameters():
        half = name.split(".")[0] in ("encoder", "decoder") and name.split(".")[1] == "linear"
        assert rate.pop(id(parameter)) == pytest.approx(0.05 if half else 0.5), name
    assert not rate


def critic_that_knows(x, net, margin):
    """A critic whose logits of pictures lie ``margin`` above those of reconstructions, on average."""
    torch.manual_seed(3)
    critic = PatchDiscriminator(ch=8, n_layers=2, norm="none")
    last = critic.layers[-1]
    with torch.no_grad():
        torch.manual_seed(5)
        x_rec, _ = net(x)
        last.weight.mul_(margin / (critic(x).mean() - critic(x_rec).mean()))
    return critic


def naive_gradients(net, critic, perceptual, x, t, disc_from, rows, columns, critic_rate):
    """Gradients of the whole loss on one graph, cut at norm 20, the norm before; and the critic's step."""
    torch.manual_seed(5)
    x_rec, posterior = net(x)
    r = (x - x_rec).abs().mean((1, 2, 3)) + 0.3 * perceptual(
        x[:, :, rows, columns], x_rec[:, :, rows, columns]
    )
    nll = r.mean() / net.log_variance.exp() + net.log_variance
    loss = nll + 0.7 * posterior.kl().mean() / x[0].numel()
    found = {"lambda": 1 - r.mean() / net.log_variance.exp()}  # the derivative in closed form
    if t >= disc_from:
        margin = critic(x).mean() - critic(x_rec).mean()
        seen = x_rec.detach()
        d_loss = (F.relu(1 - critic(x)).mean() + F.relu(1 + critic(seen)).mean()) / 2
        slopes = torch.autograd.grad(d_loss, list(critic.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(critic.parameters(), slopes, strict=True):
                parameter.sub_(critic_rate * slope)
        gan = -critic(x_rec).mean()
        last = net.decoder.last.weight
        norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (nll, gan)]
        weight = 0.6 * margin.clamp(0, 1) * norms[0] / (norms[1] + 1e-4)
        loss = loss + weight.detach() * gan
    names, parameters = zip(*net.named_parameters(), strict=True)
    found |= dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    norm = torch.cat([found[name].flatten() for name in names]).norm().item()
    return {name: gradient * min(1.0, 20 / norm) for name, gradient in found.items()}, norm


@pytest.mark.parametrize(
    "t, margin, lam", [(1, 0.5, -0.4), (2, 0.5, -0.4), (2, 3.0, -0.4), (2, -0.5, -0.4), (2, 0.5, -6.0)]
)
def test_one_step_equals_the_naive_objective(page, runtime, t, margin, lam):
    """Before the critic starts; with one half sure, quite sure, or in error and without a say; and cut."""
    net, naive = same_networks(autoencoder)
    with torch.no_grad():  # not at its optimum
        net.log_variance.fill_(lam)
        naive.log_variance.fill_(lam)
    x, perceptual = images(), vgg_loss(pretrained=False)
    critic, naive_critic = (critic_that_knows(x, net, margin) for _ in range(2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizers = {
        "autoencoder": torch.optim.SGD(net.parameters(), lr=0.1),
        "critic": torch.optim.SGD(critic.parameters(), lr=0.01),
    }
    step = page.autoencoder_step(
        net, critic, optimizers, perceptual, runtime, 2, perceptual_weight=0.3, disc_weight=0.6, beta=0.7
    )
    rows, columns = page.window(16, derived_generator(t, "window"))
    torch.manual_seed(5)
    parts = step({"image": x}, t)

    wanted, norm = naive_gradients(naive, naive_critic, perceptual, x, t, 2, rows, columns, 0.01)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.1 * wanted[name], rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(net.log_variance.grad, wanted["lambda"].detach())
    for ours, theirs in zip(critic.parameters(), naive_critic.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert (norm > 20) == (lam < -1)
    assert ("margin" in parts) == (t >= 2)
    if t >= 2:
        assert parts["margin"].item() == pytest.approx(margin, rel=1e-2)


def test_the_critic_sleeps_before_its_step(page, runtime):
    net, critic = autoencoder(), PatchDiscriminator(ch=8, n_layers=2, norm="none")
    calls = []
    critic.register_forward_hook(lambda *_: calls.append(1))
    optimizers = {
        "autoencoder": torch.optim.SGD(net.parameters(), lr=0.1),
        "critic": torch.optim.SGD(critic.parameters(), lr=0.1),
    }
    step = page.autoencoder_step(net, critic, optimizers, vgg_loss(pretrained=False), runtime, 7)
    step({"image": images()}, 6)
    assert not calls and all(p.grad is None for p in critic.parameters())
    step({"image": images()}, 7)
    assert calls


def test_a_frozen_encoder_stays_and_the_decoder_learns_the_same(page, runtime):
    """The KL is then a constant: the decoder's gradients are those of a step that trains both."""
    net, frozen = same_networks(autoencoder)
    frozen.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in frozen.encoder.state_dict().items()}
    for one in (net, frozen):
        critic = PatchDiscriminator(ch=8, n_layers=2, norm="none")
        learned = [p for p in one.parameters() if p.requires_grad]
        optimizers = {
            "autoencoder": torch.optim.SGD(learned, lr=0.1),
            "critic": torch.optim.SGD(critic.parameters(), lr=0.1),
        }
        step = page.autoencoder_step(one, critic, optimizers, vgg_loss(pretrained=False), runtime, 7)
        torch.manual_seed(5)
        step({"image": images()}, 1)
    for (name, ours), theirs in zip(frozen.decoder.named_parameters(), net.decoder.parameters(), strict=True):
        assert ours.grad.abs().max() > 0, name
        torch.testing.assert_close(ours.grad, theirs.grad)
    for name, value in frozen.encoder.state_dict().items():
        assert torch.equal(value, before[name])
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.encoder.parameters())


@torch.no_grad()
def test_reconstructions_come_piece_by_piece_in_order(page, runtime):
    net, x = autoencoder(), images(7)
    pictures, means = page.reconstruct(net, x, runtime, batch=3)
    for k in range(7):
        mean = net.encode(x[k : k + 1]).mean
        torch.testing.assert_close(means[k : k + 1], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pictures[k : k + 1], net.decode(mean).clamp(-1, 1), rtol=1e-4, atol=1e-5)
    scores = page.reconstruction_scores(net, x, runtime)
    error = (pictures - x).double()
    each = [10 * math.log10(4 / e.square().mean().item()) for e in error]  # the range of a pixel is 2
    assert scores["psnr"] == pytest.approx(sum(each) / 7, abs=1e-3)
    assert scores["l1"] == pytest.approx(error.abs().mean().item(), rel=1e-5)


# the namer


@pytest.fixture
def namer():
    torch.manual_seed(0)
    return EfficientNetLite0(6)


def test_a_new_namer_is_the_published_network_under_a_new_last_layer(page, namer, monkeypatch):
    torch.manual_seed(1)
    published = EfficientNetLite0(1000).eval()
    monkeypatch.setattr(page, "efficientnet_lite0", lambda pretrained: published)
    built = page.build_namer(6)
    assert built.fc.out_features == 6
    x = images(2, 32)
    assert torch.equal(built.eval()(x), published(x))


def smoothed_cross_entropy(logits, labels):
    """The formula of the page, term by term."""
    log_p, classes = logits.double().log_softmax(1), logits.shape[1]
    q = torch.full_like(log_p, 0.1 / classes)
    q[torch.arange(len(labels)), labels] += 0.9
    return -(q * log_p).sum(1).mean().item()


def test_the_namers_step_goes_down_on_a_batch(page, namer, runtime):
    batch = {"image": images(8, 32), "concept": torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])}
    with torch.no_grad():
        at_start = namer.train().logits(batch["image"])
    step = page.namer_step(namer, torch.optim.AdamW(namer.parameters(), lr=5e-4), runtime)
    losses = [step(batch, t) for t in range(6)]
    assert losses[0]["cross-entropy"].item() == pytest.approx(
        smoothed_cross_entropy(at_start, batch["concept"]), rel=1e-4
    )
    assert losses[0]["right"].item() == pytest.approx(
        accuracy_score(batch["concept"], at_start.argmax(1)), abs=1e-6
    )
    assert losses[-1]["cross-entropy"] < losses[0]["cross-entropy"] / 2


def test_the_namers_gradients_are_cut_at_norm_5(page, namer, runtime):
    with torch.no_grad():
        namer.fc.weight.mul_(300)
    before = [p.detach().clone() for p in namer.parameters()]
    step = page.namer_step(namer, torch.optim.SGD(namer.parameters(), lr=1.0), runtime)
    step({"image": images(8, 32), "concept": torch.arange(8) % 6}, 0)
    way = torch.cat([(a - b).flatten() for a, b in zip(before, namer.parameters(), strict=True)])
    assert way.norm().item() == pytest.approx(5, rel=1e-3)


@torch.no_grad()
def test_logits_come_piece_by_piece_in_order(page, namer, runtime):
    x = images(5, 32)
    found = page.name_logits(namer.eval(), x, runtime, batch=2)
    torch.testing.assert_close(found, torch.cat([namer.logits(x[k : k + 1]) for k in range(5)]))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_is_that_of_a_sorted_list(page, k):
    logits, labels = torch.randn(60, 9, generator=gen()), torch.randint(9, (60,), generator=gen(1))
    hits = [
        label in sorted(range(9), key=lambda c, row=row: -row[c])[:k]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert page.top(logits, labels, k) == pytest.approx(sum(hits) / 60)
    assert page.top(logits, labels, k) == pytest.approx(
        top_k_accuracy_score(labels, logits, k=k, labels=range(9))
    )
