from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from scipy.stats import chi2

from cvlib.data.class_batches import ClassBatches
from cvlib.errors import BookError

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # class k has k + 1 items


class Numbers:
    """Items whose views are (their own number, a random one)."""

    stage, hash = 0, "numbers"

    def __init__(self, labels):
        self.labels = torch.as_tensor(labels, dtype=torch.long)

    def __len__(self):
        return len(self.labels)

    def take(self, index, generator, n=1):
        return [torch.stack([index, torch.rand(len(index), generator=generator)], 1) for _ in range(n)]

    def fixed(self, index):
        return index[:, None].float()


@pytest.fixture
def source():
    labels = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    return Numbers(labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))])


def equal(a, b):
    return torch.equal(a["index"], b["index"]) and all(map(torch.equal, a["views"], b["views"]))


# ---- what a batch holds


@pytest.mark.parametrize(("per_class", "batch_size"), [(1, 12), (2, 8), (4, 48), (15, 45)])
def test_a_batch_has_the_asked_classes_and_items(source, per_class, batch_size):
    for batch in islice(ClassBatches(source, batch_size, seed=0, per_class=per_class), 50):
        index, label = batch["index"], batch["label"]
        assert torch.equal(label, source.labels[index]) and torch.equal(batch["views"][0][:, 0].long(), index)
        groups = label.view(-1, per_class)
        assert (groups == groups[:, :1]).all()  # a class lies side by side
        assert len(groups) == batch_size // per_class == len({*groups[:, 0].tolist()})
        for items, k in zip(index.view(-1, per_class).tolist(), groups[:, 0].tolist(), strict=True):
            size, times = SIZES[k], Counter(items)
            assert len(times) == min(size, per_class)
            assert max(times.values()) - min(times.values()) <= (per_class % size > 0)


def test_a_lone_item_comes_in_different_views():
    batch = next(ClassBatches(Numbers([0, 1]), 4, seed=0, n_views=2))
    (items,) = {tuple(sorted(batch["index"].tolist()))}
    assert items == (0, 0, 1, 1) and len(batch["views"]) == 2
    assert len({*torch.cat(batch["views"])[:, 1].tolist()}) == 8


def test_views_and_labels_go_to_the_device_and_numbers_stay():
    batch = next(ClassBatches(Numbers([0, 0, 1, 1]), 4, seed=0, device="meta"))
    assert batch["label"].is_meta and batch["views"][0].is_meta and not batch["index"].is_meta


# ---- batch t is a function of (seed, t)


def test_a_batch_depends_on_seed_and_number_alone(source):
    first = list(islice(ClassBatches(source, 8, seed=5, n_views=2), 6))
    again = ClassBatches(source, 8, seed=5, n_views=2)
    assert torch.equal(again.indices(4).flatten(), first[4]["index"])  # asked out of turn
    assert all(equal(a, b) for a, b in zip(first, again, strict=False))
    assert equal(next(ClassBatches(source, 8, seed=5, n_views=2, start=3)), first[3])
    assert not equal(next(ClassBatches(source, 8, seed=6, n_views=2)), first[0])
    assert len({tuple(batch["index"].tolist()) for batch in first}) == 6


def test_batches_resume(source):
    batches = ClassBatches(source, 8, seed=0)
    list(islice(batches, 3))
    state, wanted = batches.state_dict(), [next(batches), next(batches)]
    other = ClassBatches(source, 8, seed=0)
    other.load_state_dict(state)
    assert all(equal(a, b) for a, b in zip(wanted, other, strict=False))
    with pytest.raises(BookError, match="batches saved with seed 0; wanted seed 1"):
        ClassBatches(source, 8, seed=1).load_state_dict(state)


def test_two_processes_make_the_batch_of_one(source):
    options = {"seed": 0, "per_class": 3}
    whole = ClassBatches(source, 24, **options)
    ranks = [ClassBatches(source, 24, rank=rank, world=2, **options) for rank in (0, 1)]
    for batch, *parts in islice(zip(whole, *ranks, strict=False), 5):
        classes = [part["index"].view(4, 3) for part in parts]
        assert torch.equal(torch.stack(classes, 1).view(-1), batch["index"])  # by turns, whole classes
        assert not {*parts[0]["label"].tolist()} & {*parts[1]["label"].tolist()}
        noise = [{*part["views"][0][:, 1].tolist()} for part in parts]
        assert len(noise[0]) == len(noise[1]) == 12 and not noise[0] & noise[1]


# ---- nobody is preferred


def spread(counts, drawn):
    """(statistic, degrees of freedom) of how unequal counts are; each was drawn at most once in a draw.

    The variance of such a count is p (1 - p) a draw, p = drawn / n, and the counts of one draw correlate by
    -1 / (n - 1): so (n - 1) / (n - drawn) times the usual sum of (O - E)^2 / E is nearly chi-square (n - 1).
    """
    counts = torch.tensor(counts, dtype=torch.float64)
    n, mean = len(counts), counts.mean()
    if drawn in (0, n):
        assert (counts == mean).all()  # nothing is random
        return 0.0, 0
    return float(((counts - mean) ** 2 / mean).sum()) * (n - 1) / (n - drawn), n - 1


@pytest.mark.parametrize("per_class", [2, 5])
def test_classes_and_items_come_up_equally_often(source, per_class):
    """5 of 12 classes, 2,000 batches. The bounds hold in all but 2 of 10^5 draws of sound batches.

    A class that comes up a fifth more often than its share would pass the upper one.
    """
    batches = ClassBatches(source, 5 * per_class, seed=0, per_class=per_class)
    seen = torch.stack([batches.indices(t) for t in range(2000)])  # (batches, classes, items)
    classes = source.labels[seen[:, :, 0]].flatten().bincount(minlength=12)
    value, freedom = spread(classes.tolist(), 5)
    assert chi2.ppf(1e-5, freedom) < value < chi2.ppf(1 - 1e-5, freedom)
    times = seen.flatten().bincount(minlength=len(source))
    total = total_freedom = 0
    for k, size in enumerate(SIZES):
        full, rest = divmod(per_class, size)  # each item ``full`` times, then ``rest`` different ones
        extra = times[source.labels == k] - full * classes[k]
        value, freedom = spread(extra.tolist(), rest)
        total, total_freedom = total + value, total_freedom + freedom
    assert chi2.ppf(1e-5, total_freedom) < total < chi2.ppf(1 - 1e-5, total_freedom)


def test_items_of_a_class_meet_each_other_equally_often():
    """One class of 4, two at a time: 6 pairs, 1,200 draws, so 200 each with a deviation of 12.9."""
    batches = ClassBatches(Numbers([0] * 4), 2, seed=0)
    pairs = Counter(tuple(sorted(batches.indices(t)[0].tolist())) for t in range(1200))
    assert len(pairs) == 6 and all(abs(n - 200) < 4.5 * 12.9 for n in pairs.values())


# ---- errors


@pytest.mark.parametrize(
    ("labels", "batch_size", "options", "word"),
    [
        ([0, 1, 2], 5, {}, "batches of 5, 2 of a class, 3 classes, 1 processes; wanted a multiple"),
        ([0, 1, 2], 8, {}, "of no more classes than there are"),
        ([0, 1, 2], 0, {}, "batches of 0"),
        ([0, 1, 2], -2, {}, "batches of -2"),
        ([0, 1, 2], 6, {"world": 2}, "3 classes, 2 processes; wanted a multiple of per_class x processes"),
        ([0, 1, 2], 4, {"world": 2, "rank": 2}, "rank 2 of 2 processes; wanted .* 0 <= rank < world"),
        ([0, 1, 2], 4, {"world": 0}, "rank 0 of 0 processes"),
        ([0, 1, 2], 4, {"per_class": 0}, "0 of a class"),
        ([0, 1, 2], 4, {"n_views": 0}, "0 views"),
        ([0, 2], 4, {}, "class 1 has no item; wanted classes numbered without gaps"),
        ([], 4, {}, "0 classes"),
    ],
)
def test_what_cannot_be_drawn_is_told(labels, batch_size, options, word):
    with pytest.raises(BookError, match=word):
        ClassBatches(Numbers(labels), batch_size, seed=0, **options)
