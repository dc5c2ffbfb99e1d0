"""Judge and drawings of the page "experts", held against the same batches, autograd and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score

from cvlib.data import emoji
from cvlib.data.base import derived_generator
from cvlib.data.factors import factor_targets
from cvlib.nn.experts import Judge, Judgement
from cvlib.nn.framed import FrameReader
from cvlib.nn.vae import VectorAutoencoder
from cvlib.pages import definitions
from cvlib.train import Runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "experts.py")


@pytest.fixture
def runtime():
    return Runtime(device="cpu", precision="fp32")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n):
    return torch.rand(n, 3, 16, 16, generator=gen(1)) * 2 - 1


def autoencoder():
    torch.manual_seed(0)
    return VectorAutoencoder(16, 5, (8, 8), thumbnail=8)


class Drawings(emoji.EmojiDataset):
    """Eight squares of one colour each, with the labels that a judge learns from."""

    def __init__(self):
        self.labels = {"concept": torch.arange(8) % 5, "hand": torch.arange(8) % 3}
        self.image_size = 16

    def __len__(self):
        return 8

    def draw(self, index, generator, augment):
        return torch.rand(len(index), generator=generator)

    def render(self, index, draws, device="cpu"):
        shade = (index / 8 + draws / 100)[:, None, None, None]
        return {"image": shade.expand(-1, 3, 16, 16).clone(), "factors": index[:, None].expand(-1, 8) / 8}


@torch.no_grad()
def test_half_of_a_bench_are_copies_half_of_these_from_a_part_of_the_code(page, runtime):
    net, data = autoencoder(), Drawings()
    benches = iter(page.Benches(data, 8, net, seed=4, runtime=runtime, kept=2))
    plain = data.batches(8, seed=4)
    whole, brief = (data.draw(torch.arange(8), derived_generator(4, "copies", k), True) for k in (0, 1))
    for _ in range(3):
        ours, drawn = next(benches), next(plain)
        first, second = drawn["index"][:2], drawn["index"][2:4]
        shown = [data.render(at, d[at])["image"] for at, d in ((first, whole), (second, brief))]
        codes = [net.encode(x).mean for x in shown]
        short = torch.cat([codes[1][:, :2], torch.zeros(2, 3)], 1)
        for rows, code in ((slice(0, 2), codes[0]), (slice(2, 4), short)):
            rebuilt = net.decode(code).clamp(-1, 1)
            torch.testing.assert_close(ours["image"][rows], rebuilt, rtol=0, atol=0.6 / 127.5)
            assert (rebuilt - drawn["image"][rows]).abs().max() > 0.1
        assert (net.decode(codes[1]) - net.decode(short)).abs().max() > 0.02
        assert torch.equal(ours["factors"][:4], torch.cat([first, second])[:, None].expand(-1, 8) / 8)
        assert torch.equal(ours["image"][4:], drawn["image"][4:])
        assert all(torch.equal(ours[name], drawn[name]) for name in ("concept", "hand", "index"))


def test_a_copy_is_made_once(page, runtime, monkeypatch):
    benches = page.Benches(Drawings(), 8, autoencoder(), seed=4, runtime=runtime, kept=2)
    first, _ = benches.copied(1, torch.tensor([3, 5]))
    monkeypatch.setattr(page, "reconstruct", None)
    again, _ = benches.copied(1, torch.tensor([5, 3, 5]))
    assert torch.equal(again, first[[1, 0, 1]])


def test_benches_go_on_from_where_they_were_saved(page, runtime):
    one = page.Benches(Drawings(), 6, autoencoder(), seed=4, runtime=runtime, kept=2)
    first = next(one)
    state = one.state_dict()
    second = next(one)
    again = page.Benches(Drawings(), 6, autoencoder(), seed=4, runtime=runtime, kept=2)
    again.load_state_dict(state)
    resumed = next(again)
    assert torch.equal(resumed["image"], second["image"]) and torch.equal(resumed["hand"], second["hand"])
    assert not torch.equal(first["index"], second["index"])


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge(5, 3, places=1)


def jury(n=8):
    factors = emoji.sample_factors(n, gen(2)).tensor()
    labels = {"concept": torch.arange(n) % 5, "hand": torch.arange(n) % 3}
    return {"image": images(n), "factors": factors, **labels}


def test_the_judges_step_is_a_step_down_the_sum_of_three(page, judge, runtime):
    batch, twin = jury(), Judge(5, 3, places=1)
    twin.load_state_dict(judge.state_dict())
    parts = page.judge_step(judge, torch.optim.SGD(judge.parameters(), lr=0.01), runtime)(batch, 0)

    said = twin(batch["image"])
    rows = torch.arange(8)
    concept = -said.concept.log_softmax(1)[rows, batch["concept"]].mean()
    hand = -said.hand.log_softmax(1)[rows, batch["hand"]].mean()
    factors = (said.factors - factor_targets(batch["factors"])).square().mean()
    slopes = torch.autograd.grad(concept + hand + 3 * factors, list(twin.parameters()))
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    for ours, before, slope in zip(judge.parameters(), twin.parameters(), slopes, strict=True):
        after = before - 0.01 * slope * min(1.0, 10 / norm.item())
        torch.testing.assert_close(ours, after, rtol=1e-3, atol=1e-6)
    assert parts["concept"].item() == pytest.approx(concept.item(), rel=1e-5)
    assert parts["hand"].item() == pytest.approx(hand.item(), rel=1e-5)
    assert parts["factors"].item() == pytest.approx(factors.item(), rel=1e-5)


def test_the_readers_step_is_a_step_down_the_squared_error_of_the_factors(page, runtime):
    torch.manual_seed(0)
    reader, twin = FrameReader(1), FrameReader(1)
    twin.load_state_dict(reader.state_dict())
    batch = jury()
    parts = page.reader_step(reader, torch.optim.SGD(reader.parameters(), lr=0.01), runtime)(batch, 0)
    loss = (twin(batch["image"]) - factor_targets(batch["factors"])).square().mean()
    slopes = torch.autograd.grad(loss, list(twin.parameters()))
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    for ours, before, slope in zip(reader.parameters(), twin.parameters(), slopes, strict=True):
        after = before - 0.01 * slope * min(1.0, 10 / norm.item())
        torch.testing.assert_close(ours, after, rtol=1e-3, atol=1e-6)
    assert parts["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


def test_judgements_come_piece_by_piece_in_order(page, judge, runtime):
    x = images(7)
    found = page.judgements(judge.eval(), x, runtime, batch=3)
    for ours, theirs in zip(found, judge(x), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_scores_are_those_of_scikit_learn(page):
    n = 200
    factors = emoji.sample_factors(n, gen()).tensor()
    truth = factor_targets(factors)
    noise = torch.linspace(0.1, 1.2, 9) * torch.randn(n, 9, generator=gen(1))
    concept, hand = torch.randint(4, (n,), generator=gen(2)), torch.randint(3, (n,), generator=gen(3))
    said = Judgement(torch.randn(n, 4, generator=gen(4)), torch.randn(n, 3, generator=gen(5)), truth + noise)
    found = page.judge_scores(said, concept, hand, factors)
    by_column = r2_score(truth, said.factors, multioutput="raw_values")
    wanted = {
        "concept": accuracy_score(concept, said.concept.argmax(1)),
        "hand": accuracy_score(hand, said.hand.argmax(1)),
        "background": by_column[:3].mean(),
        "hue": by_column[3:5].mean(),
        "size": by_column[5],
        "shift": by_column[6:8].mean(),
        "rotation": by_column[8],
    }
    assert found == pytest.approx(wanted, abs=1e-5) and len({round(v, 2) for v in found.values()}) > 4


# drawings


def test_drawings_are_drawn_once_and_for_all_and_spread_evenly(page):
    data = Drawings()
    found = page.drawn_once(data, "test", 4)
    assert torch.equal(found, page.drawn_once(data, "test", 4))
    assert not torch.equal(found, page.drawn_once(data, "other", 4))
    shades = found[:, 0, 0, 0] * 8
    assert [round(s) for s in (shades - 0.04).tolist()] == [0, 2, 5, 7]  # of 8, both ends included
    assert len(page.drawn_once(data, "test")) == 8
