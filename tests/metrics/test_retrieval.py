from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from cvlib.errors import BookError
from cvlib.metrics import neighbours, retrieval_scores

MODULE = sys.modules["cvlib.metrics.retrieval"]


def drawn(n: int, d: int, classes: int, seed: int = 0, pull: float = 1.0):
    """Embeddings scattered around class centres, labels, and which of three sets each is from."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    z = torch.randn(n, d, generator=g, dtype=torch.float64)
    return (
        z + pull * torch.randn(classes, d, generator=g)[labels],
        labels,
        torch.randint(3, (n,), generator=g),
    )


def by_loops(z, labels, queries, gallery, sets, own_set, metric, ks):
    """The definitions, one query and one neighbour at a time."""
    unit = z / z.norm(dim=1, keepdim=True)
    recall, ap = {k: [] for k in ks}, {"r": [], "c": [], "1000": []}
    ceiling, lone = [], 0
    for q in queries:
        ranking = []
        for g in gallery:
            own = sets is not None and sets[q] == sets[g]
            junk = {"keep": False, "leave out": own, "distractors": own and labels[q] == labels[g]}[own_set]
            if g != q and not junk:
                near = unit[q] @ unit[g] if metric == "cosine" else -(z[q] - z[g]).norm()
                ranking.append((-float(near), bool(labels[q] == labels[g])))
        hits = [hit for _, hit in sorted(ranking)]
        r = sum(hits)
        if not r:
            lone += 1
            continue
        for k in ks:
            recall[k].append(any(hits[:k]))
        precision = [sum(hits[: j + 1]) / (j + 1) for j in range(len(hits))]
        for name, cut, divisor in (("r", r, r), ("c", r + 1, r + 1), ("1000", 1000, r + 1)):
            ap[name].append(sum(p for p, hit in zip(precision[:cut], hits, strict=False) if hit) / divisor)
        ceiling.append(r / (r + 1))

    def mean(values):
        return sum(values) / len(values)

    return {k: mean(v) for k, v in recall.items()}, {k: mean(v) for k, v in ap.items()}, mean(ceiling), lone


def check(z, labels, ks, queries=None, gallery=None, sets=None, own_set="keep", metric="cosine"):
    scores = retrieval_scores(
        z, labels, ks, queries=queries, gallery=gallery, sets=sets, own_set=own_set, metric=metric
    )
    everyone = list(range(len(z)))
    rows = [everyone if rows is None else rows.tolist() for rows in (queries, gallery)]
    recall, ap, ceiling, lone = by_loops(z, labels, *rows, sets, own_set, metric, ks)
    assert scores.recall == pytest.approx(recall, abs=1e-12)
    assert scores.map_r == pytest.approx(ap["r"], abs=1e-12)
    assert scores.map_c == pytest.approx(ap["c"], abs=1e-12)
    assert scores.map_1000 == pytest.approx(ap["1000"], abs=1e-12)
    assert scores.ceiling_c == pytest.approx(ceiling, abs=1e-12)
    assert (scores.n_lone, scores.n_queries) == (lone, len(rows[0]) - lone)
    assert 0.02 < scores.map_r < scores.map_1000 < 0.98  # else equal numbers would say little
    return scores


@pytest.fixture(params=[2**24, 500])
def chunk(request, monkeypatch):
    """Both in one piece and in pieces that do not divide the number of queries."""
    monkeypatch.setattr(MODULE, "_CHUNK_ELEMENTS", request.param)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("own_set", ["keep", "distractors", "leave out"])
def test_every_number_is_the_loops(chunk, own_set, metric):
    z, labels, sets = drawn(70, 5, 15)
    check(z, labels, (1, 2, 4), sets=None if own_set == "keep" else sets, own_set=own_set, metric=metric)


@pytest.mark.parametrize("own_set", ["keep", "distractors", "leave out"])
def test_queries_and_gallery_of_their_own(chunk, own_set):
    z, labels, sets = drawn(70, 5, 15, seed=1)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    sets = None if own_set == "keep" else sets
    overlapping = check(z, labels, (1, 3), order[:40], order[25:], sets, own_set)
    assert overlapping.n_gallery == 45
    check(z, labels, (1, 3), order[:30], order[30:], sets, own_set)
    mask = torch.zeros(70, dtype=torch.bool)
    mask[order[25:]] = True
    same = retrieval_scores(z, labels, (1, 3), queries=order[:40], gallery=mask, sets=sets, own_set=own_set)
    assert (same.recall, same.map_r) == (overlapping.recall, overlapping.map_r)


def test_beyond_a_thousand_neighbours(chunk):
    z, labels, _ = drawn(1100, 3, 4, pull=0.2)  # 275 a class, many of them further than 1000
    few = torch.arange(0, 1100, 100)
    scores = check(z, labels, (1, 4), queries=few)
    shallow = retrieval_scores(z, labels, (1, 4), queries=few, map_1000=False)
    assert shallow.map_1000 is None
    assert (shallow.map_r, shallow.map_c, shallow.recall) == (scores.map_r, scores.map_c, scores.recall)


def test_no_query_is_searched_farther_than_it_wants(monkeypatch):
    """Each query finds what it finds alone, and a few large classes do not make the small ones slow."""
    sizes, taken = torch.tensor([2] * 60 + [80]), []
    labels = torch.arange(61).repeat_interleave(sizes)[torch.randperm(200, generator=torch.Generator())]
    z = drawn(200, 4, 61)[0] + drawn(61, 4, 1, seed=1)[0][labels]
    alone = [retrieval_scores(z, labels, (3,), queries=torch.tensor([q]), map_1000=False) for q in range(200)]
    topk = torch.Tensor.topk

    def counted(x, k, dim):
        if x.shape[1] == 200:  # a row of similarities, not what is kept of it
            taken.append(len(x) * k)
        return topk(x, k, dim=dim)

    monkeypatch.setattr(torch.Tensor, "topk", counted)
    for elements in (200 * 7, 200 * 200):
        monkeypatch.setattr(MODULE, "_CHUNK_ELEMENTS", elements)
        scores = retrieval_scores(z, labels, (3,), map_1000=False)
        assert scores.first_rank.tolist() == [int(x.first_rank) for x in alone]
        assert scores.ap_r.tolist() == [float(x.ap_r) for x in alone]
    assert sum(taken[:-1]) <= 120 * 3 + 80 * 80 + 6 * 77  # one piece of seven queries has both kinds
    assert taken[-1] == 200 * 80 and 0 in scores.first_rank


@pytest.mark.parametrize("own_set", ["keep", "distractors", "leave out"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_gallery_in_blocks_is_ranked_as_a_whole(monkeypatch, own_set, metric):
    z, labels, sets = drawn(1200, 6, 200)
    z = torch.nn.functional.normalize(z, dim=1) if metric == "cosine" else z
    far = torch.cdist(z[:150], z[50:])
    own = sets[:150, None] == sets[50:]
    gone = {"keep": own & False, "distractors": own & (labels[:150, None] == labels[50:]), "leave out": own}
    far[gone[own_set] | (torch.arange(150)[:, None] == torch.arange(50, 1200))] = torch.inf
    widths = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda x, k, dim: widths.append(x.shape[1]) or topk(x, k, dim=dim)
    )
    monkeypatch.setattr(MODULE, "_BLOCK", 100)
    found = neighbours(
        z,
        5,
        queries=torch.arange(150),
        gallery=torch.arange(50, 1200),
        labels=labels,
        sets=None if own_set == "keep" else sets,
        own_set=own_set,
        metric=metric,
    )
    assert (found == far.argsort(1)[:, :5] + 50).all()
    assert max(widths) == 5 * 64 and 1150 % (5 * 64) in widths


def on_a_line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def test_five_points_by_hand():
    """a at 0, b at 1, a at 3, b at 7, a at 16."""
    z, labels = on_a_line(0, 1, 3, 7, 16), torch.tensor([0, 1, 0, 1, 0])
    scores = retrieval_scores(z, labels, (1, 2, 3), metric="euclidean")
    # hits in order of distance: a0 0101, b1 0010, a3 0101, b7 0100, a16 0101; R = 2 for a, 1 for b
    assert scores.recall == {1: 0.0, 2: 4 / 5, 3: 1.0}
    assert scores.map_r == pytest.approx((0.25 + 0 + 0.25 + 0 + 0.25) / 5)
    assert scores.map_c == pytest.approx((1 / 6 + 0 + 1 / 6 + 1 / 4 + 1 / 6) / 5)
    assert scores.map_1000 == pytest.approx((1 / 3 + 1 / 6 + 1 / 3 + 1 / 4 + 1 / 3) / 5)
    assert scores.first_rank.tolist() == [2, 3, 2, 2, 2]
    assert scores.ap_r.tolist() == [0.25, 0.0, 0.25, 0.0, 0.25]
    near = neighbours(z, 4, metric="euclidean")
    assert near.tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [1, 0, 3, 4], [2, 1, 0, 4], [3, 2, 1, 0]]


def test_own_set_by_hand():
    """The nearest is of the own set; then a stranger of the own set, then the true counterpart."""
    z, labels, sets = on_a_line(0, 1, 2, 3), torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 0, 1])
    query = torch.tensor([0])

    def rank(own_set, sets):
        found = retrieval_scores(
            z, labels, (1,), queries=query, sets=sets, own_set=own_set, metric="euclidean"
        )
        return int(found.first_rank), round(found.map_r, 6)

    assert rank("keep", None) == (1, round((1 + 0) / 2, 6))
    assert rank("distractors", sets) == (2, 0.0)  # row 2 stays in the way, row 1 is not counted
    assert rank("leave out", sets) == (1, 1.0)
    assert neighbours(z, 1, queries=query, sets=sets, metric="euclidean").tolist() == [[3]]
    # row 3 has three candidates, row 0 one: the others are marked as none
    assert neighbours(z, 3, sets=sets, metric="euclidean")[:3].tolist() == [[3, -1, -1]] * 3


def test_ceiling_of_the_authors_precision():
    """Perfect embeddings: mAP@R is 1 and mAP_c is (N - C) / N, 0.813 for Stanford Online Products."""
    labels = torch.arange(20).repeat_interleave(torch.arange(2, 22))
    z = torch.eye(20, dtype=torch.float64)[labels] + 1e-6 * torch.rand(len(labels), 20)
    scores = retrieval_scores(z, labels)
    n = len(labels)
    assert scores.map_r == 1 and scores.recall[1] == 1
    assert scores.map_c == pytest.approx((n - 20) / n) == scores.ceiling_c == scores.map_1000
    assert round((60_502 - 11_316) / 60_502, 3) == 0.813


def test_exact_duplicates_are_neighbours_and_oneself_is_not():
    """Removing whoever comes first, as the authors' code does, removes a duplicate half of the time."""
    z = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    labels = torch.arange(40).repeat_interleave(2)
    assert retrieval_scores(z, labels).recall[1] == 1
    assert (neighbours(z, 1)[:, 0] == torch.arange(80) + 1 - 2 * (torch.arange(80) % 2)).all()


def test_collapsed_embedding_scores_chance_whatever_the_order():
    """500 equal rows, sorted by class: the k nearest are k others at random, fixed by the shuffle."""
    labels = torch.arange(50).repeat_interleave(10)
    scores = retrieval_scores(torch.ones(500, 4), labels, (1, 10, 100))
    for k, seen in scores.recall.items():
        chance = 1 - torch.arange(490, 490 - k, -1).double().div(torch.arange(499, 499 - k, -1)).prod()
        assert seen == pytest.approx(float(chance), abs=0.07)
    assert scores.map_r < 0.02


def test_same_order_for_unit_vectors_by_cosine_and_distance():
    z, labels, _ = drawn(200, 6, 20)
    z = torch.nn.functional.normalize(z, dim=1)
    cosine, distance = (retrieval_scores(z, labels, metric=metric) for metric in ("cosine", "euclidean"))
    assert (cosine.recall, cosine.map_1000) == (distance.recall, distance.map_1000)
    far = retrieval_scores((z + 1e4).float(), labels, metric="euclidean")  # float32 keeps 1e-3 of it
    assert far.map_r == pytest.approx(distance.map_r, abs=0.02)


def test_classes_of_one_are_left_out_and_counted():
    z, labels, _ = drawn(60, 5, 10)
    lone = retrieval_scores(torch.cat([z, z[:2] + 0.1]), torch.cat([labels, torch.tensor([77, 78])]))
    assert lone.n_lone == 2 and lone.n_queries == 60
    assert lone.first_rank[60:].tolist() == [-1, -1] and lone.ap_r[60:].isnan().all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_agrees_with_pytorch_metric_learning(metric):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    z, labels, _ = drawn(400, 6, 60, pull=1.5)
    labels[:3] = torch.tensor([100, 101, 102])  # alone in their classes
    distance = CosineSimilarity() if metric == "cosine" else LpDistance(normalize_embeddings=False)
    peer = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(distance),
        device=torch.device("cpu"),
    )
    ours = retrieval_scores(z, labels, (1,), metric=metric)
    theirs = peer.get_accuracy(z, labels)
    assert ours.n_lone >= 3
    assert ours.recall[1] == pytest.approx(theirs["precision_at_1"], abs=1e-9)
    assert ours.map_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-9)
    query, rows = torch.arange(150), torch.arange(150, 400)
    split = retrieval_scores(z, labels, (1,), queries=query, gallery=rows, metric=metric)
    theirs = peer.get_accuracy(z[:150], labels[:150], z[150:], labels[150:], ref_includes_query=False)
    assert split.map_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-9)


def test_low_precision_and_gradients_do_no_harm():
    z, labels, _ = drawn(100, 8, 10)
    exact = retrieval_scores(z, labels)
    half = retrieval_scores(z.bfloat16().requires_grad_(), labels)
    assert half.map_r == pytest.approx(exact.map_r, abs=0.02) and half.map_r != 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_scores(z.float(), labels).map_1000 == pytest.approx(exact.map_1000, abs=1e-4)


def test_memory_is_bounded(monkeypatch):
    """No tensor comes near Q x G: the largest one that is sorted has the chunk's size."""
    seen = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, *a, **k: seen.append(x.numel()) or topk(x, *a, **k))
    monkeypatch.setattr(MODULE, "_CHUNK_ELEMENTS", 10_000)
    z, labels, _ = drawn(1500, 4, 300)
    retrieval_scores(z, labels, map_1000=False)
    assert max(seen) <= 10_000 and 1500 * 1500 <= sum(seen) < 1.1 * 1500 * 1500


PEAK = """
import torch
from cvlib.claims.racing import report
from cvlib.metrics import retrieval_scores
z, labels = torch.randn(8000, 4), torch.arange(8000) // 2
report(lambda m: (0, retrieval_scores(z[:m], labels[:m], (1,), map_1000=False).map_r), 8000)
"""


def test_similarities_are_held_once():
    """One piece of 16 MB at a time, not the next one beside it."""
    ended = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 16 < float(ended.stdout.split()[1]) < 2 * 16


Z, LABELS, SETS = drawn(20, 4, 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gallery": torch.zeros(20, dtype=torch.bool)}, "no gallery; wanted at least one row"),
        ({"queries": torch.tensor([], dtype=torch.long)}, "no queries"),
        ({"queries": torch.tensor([3, 20])}, r"queries from 3 to 20; wanted rows 0 to 19"),
        ({"queries": torch.tensor([True, False])}, r"row numbers or a mask \(20,\)"),
        ({"ks": (1, 20)}, "K = 1, 20; wanted 1 to 19"),
        ({"ks": (0, 1)}, "K = 0, 1"),
        ({"ks": ()}, "K = none"),
        ({"ks": (5,), "gallery": torch.arange(5), "queries": torch.arange(5)}, "wanted 1 to 4"),
        ({"labels": torch.arange(20)}, "20 queries, none with another item"),
        ({"labels": LABELS[:19]}, r"labels \(19,\).*wanted 20 whole numbers"),
        ({"labels": LABELS.float()}, "labels .*float32"),
        ({"sets": SETS}, "own_set='keep' with sets"),
        ({"own_set": "leave out"}, "own_set='leave out' without sets"),
        ({"own_set": "none"}, "wanted 'keep', 'distractors' or 'leave out'"),
        ({"sets": SETS[:5], "own_set": "distractors"}, r"sets \(5,\)"),
        ({"metric": "dot"}, "metric='dot'"),
        ({"embeddings": Z.where(Z < 1, torch.nan)}, "NaN"),
        ({"embeddings": Z * (torch.arange(20) != 7)[:, None]}, r"1 of 20 embeddings of length 0 .*row 7"),
        ({"embeddings": Z[:, :0]}, "length 0"),
        ({"embeddings": Z[0]}, r"shape \(4,\)"),
    ],
)
def test_bad_input_is_one_clear_line(change, said):
    with pytest.raises(BookError, match=said):
        retrieval_scores(**{"embeddings": Z, "labels": LABELS, "ks": (1,)} | change)


def test_a_zero_embedding_has_a_distance():
    z = Z * (torch.arange(20) != 7)[:, None]
    assert retrieval_scores(z, LABELS, (1,), metric="euclidean").n_gallery == 20


def test_neighbours_among_distractors_by_hand():
    """The own set stays, but not its right answers; without labels nobody knows which these are."""
    z = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.9, 0.4], [0.7, 0.7], [0.0, 1.0]])
    labels, sets = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    found = neighbours(z, 3, queries=torch.tensor([0]), labels=labels, sets=sets, own_set="distractors")
    assert found.tolist() == [[2, 3, 4]]  # row 1 is right, but by the query's own hand
    assert neighbours(z, 2, queries=torch.tensor([0]), sets=sets).tolist() == [[3, 4]]
    with pytest.raises(BookError, match="without labels"):
        neighbours(z, 2, sets=sets, own_set="distractors")
