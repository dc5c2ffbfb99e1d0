"""Pairs of the page "invariances_factors" and the flow that learns from them: who is alike, counted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cvlib.data import emoji
from cvlib.data.base import Draws
from cvlib.data.factors import factor_targets
from cvlib.train import Runtime
from tests import tiny_study
from tests.tiny_study import gen


@pytest.fixture(scope="module")
def page():
    return tiny_study.factors_page()


class Ledger:
    """Drawings whose picture is an entry: item, concept, hand and the eight factors.

    Each of 12 concepts was drawn by four of 5 hands, once or twice.
    """

    def __init__(self):
        entries = [(c, h) for c in range(12) for h in range(5) if h != c % 5]
        entries += [(c, h) for c, h in entries if (c + h) % 3 == 0]
        self.concept, self.hand = torch.tensor(entries).T
        self.labels = {"concept": self.concept, "hand": self.hand}

    def __len__(self):
        return len(self.concept)

    def draw(self, index, generator, augment):
        assert augment
        none = torch.zeros(len(index))
        return Draws(none, none, none, emoji.sample_factors(len(index), generator).tensor())

    def render(self, index, draws):
        entry = [index, self.concept[index], self.hand[index]]
        return {"image": torch.cat([torch.stack(entry, 1).float(), draws.factors], 1)}


@pytest.fixture(scope="module")
def ledger():
    known = {split: SimpleNamespace(data=Ledger(), hash="ledger") for split in ("train", "test")}
    reader = SimpleNamespace(encode=lambda x: SimpleNamespace(mean=x))
    runtime, latents = Runtime(device="cpu", precision="fp32"), torch.zeros(1, 3 + 8)
    return SimpleNamespace(known=known, autoencoder=reader, runtime=runtime, latents=latents)


COLUMNS = {"background": {0, 1, 2}, "size": {4}, "shift": {5, 6}, "rotation": {7}}  # of Factors.NAMES


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("factor", ["concept", "hand", *COLUMNS])
def test_pairs_share_the_named_factor_and_nothing_else(page, ledger, factor, split):
    n = 3000
    a, b = page.pairs_of(ledger, factor, n, split, 0)
    for column in range(8):
        same = a[:, 3 + column] == b[:, 3 + column]
        assert same.all() if column in COLUMNS.get(factor, ()) else same.float().mean() < 0.01, column
    data = ledger.known[split].data
    for place, field in ((1, "concept"), (2, "hand")):
        same = (a[:, place] == b[:, place]).float().mean().item()
        if factor in COLUMNS:  # as often as two drawings that know nothing of each other
            chance = (data.labels[field].bincount() / len(data)).square().sum().item()
            assert same == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / n))
        else:
            assert same == (field == factor)
    for end in (a, b):  # either end has the factors that the data draw
        torch.testing.assert_close(factor_targets(end[:, 3:]).var(0), torch.ones(9), atol=0.12, rtol=0)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("factor, rest", [("concept", "hand"), ("hand", "concept")])
def test_all_that_may_be_partners_are_equally_likely(page, ledger, factor, rest, split):
    a, b = page.pairs_of(ledger, factor, 6000, split, 0)
    first, second = a[:, 0].long(), b[:, 0].long()
    data = ledger.known[split].data
    uses = second.bincount(minlength=len(data)).double()
    expected = torch.zeros(len(data), dtype=torch.float64)
    for row, count in enumerate(first.bincount(minlength=len(data)).tolist()):
        may = [
            other
            for other in range(len(data))
            if data.labels[factor][row] == data.labels[factor][other]
            and data.labels[rest][row] != data.labels[rest][other]
        ]
        expected[may] += count / len(may)
    assert ((uses - expected).abs() <= 5 * expected.sqrt()).all()
    assert (first.bincount(minlength=len(data)) - 6000 / len(data)).abs().max() < 5 * math.sqrt(
        6000 / len(data)
    )


def test_a_hand_that_drew_one_concept_only_is_paired_within_it(page, ledger):
    """As happens in a small study: then the pair shares more than it should, and nothing fails."""
    data = Ledger()
    data.hand[data.concept == 3] = 7
    few = SimpleNamespace(**vars(ledger) | {"known": {"train": SimpleNamespace(data=data)}})
    a, b = page.pairs_of(few, "hand", 500, "train", 0)
    assert torch.equal(a[:, 2], b[:, 2]) and (a[:, 2] == 7).any()
    assert torch.equal(a[:, 1] == b[:, 1], a[:, 2] == 7)


def test_pairs_depend_on_seed_split_and_factor_alone(page, ledger):
    a, b = page.pairs_of(ledger, "size", 8, "train", 0)
    torch.manual_seed(99)
    again = page.pairs_of(ledger, "size", 8, "train", 0)
    assert torch.equal(a, again[0]) and torch.equal(b, again[1])
    for factor, split, seed in (("shift", "train", 0), ("size", "test", 0), ("size", "train", 1)):
        assert not torch.equal(a, page.pairs_of(ledger, factor, 8, split, seed)[0])


def some_pairs():
    return {
        name: (torch.randn(7 + k, 3, generator=gen(k)), torch.randn(7 + k, 3, generator=gen(9 + k)))
        for k, name in enumerate("xyz")
    }


def test_batches_of_pairs_depend_on_seed_and_t_alone(page):
    pairs = some_pairs()
    batches = page.PairBatches(pairs, 50, seed=3)
    first = batches(4)
    torch.manual_seed(99)
    batches(5)
    for again in (batches(4), page.PairBatches(pairs, 50, seed=3)(4)):
        assert all(torch.equal(first[name], again[name]) for name in ("a", "b", "factor"))
    for other in (batches(5), page.PairBatches(pairs, 50, seed=4)(4)):
        assert not torch.equal(first["a"], other["a"])


def test_a_batch_holds_both_ends_of_pairs_and_the_number_of_what_they_share(page):
    pairs, seen = some_pairs(), set()
    for t in range(10):
        batch = page.PairBatches(pairs, 50, seed=3)(t)
        for a, b, factor in zip(batch["a"], batch["b"], batch["factor"].tolist(), strict=True):
            one, other = list(pairs.values())[factor - 1]  # number 0 is what is left
            (row,) = (one == a).all(1).nonzero()[:, 0].tolist()
            assert torch.equal(other[row], b)
            seen.add((factor, row))
    assert len(seen) == 7 + 8 + 9


def test_a_semantic_flow_learns_from_pairs_what_they_share(page, ledger, tmp_path):
    """Pairs share the first or the second two of six features: the flow's blocks tell the two apart."""
    chance, pairs = gen(), {}
    for k, name in enumerate(("first", "second")):
        a, b = torch.randn(2, 400, 6, generator=chance)
        b[:, 2 * k : 2 * k + 2] = a[:, 2 * k : 2 * k + 2]
        pairs[name] = (a, b)
    start = page.linear_factors(pairs)
    assert start.sizes == [2, 2, 2]
    recipe = page.story.Recipe(steps=150, batch_size=64, n_blocks=4, width=16, depth=1, learning_rate=1e-2)
    flow, run = page.train_semantic(ledger, pairs, start, recipe, 0, str(tmp_path))
    with torch.no_grad():
        for number, (a, b) in enumerate(pairs.values(), start=1):
            (e_a, _), (e_b, _) = flow(a), flow(b)
            for k in range(3):
                found = np.corrcoef(e_a[k].flatten(), e_b[k].flatten())[0, 1]
                assert found > 0.8 if k == number else abs(found) < 0.3
    again, second = page.train_semantic(ledger, pairs, start, recipe, 0, str(tmp_path))
    assert second.folder == run.folder
    x = pairs["first"][0]
    torch.testing.assert_close(again(x)[1], flow(x)[1])
