from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from cvlib.errors import BookError
from cvlib.metrics import cluster_scores, pair_f1
from cvlib.metrics.clustering import cluster

MODULE = sys.modules["cvlib.metrics.clustering"]


def pairs_by_loops(labels, clusters):
    both = same_cluster = same_class = 0
    for i, j in itertools.combinations(range(len(labels)), 2):
        same_cluster += clusters[i] == clusters[j]
        same_class += labels[i] == labels[j]
        both += clusters[i] == clusters[j] and labels[i] == labels[j]
    precision, recall = both / same_cluster, both / same_class
    return 2 * precision * recall / (precision + recall)


def nmi_by_loops(labels, clusters):
    n, information, entropy = len(labels), 0.0, []
    for a in set(labels):
        for b in set(clusters):
            joint = sum((x == a) and (y == b) for x, y in zip(labels, clusters, strict=True)) / n
            if joint:
                information += joint * math.log(joint / (labels.count(a) / n * clusters.count(b) / n))
    for values in (labels, clusters):
        entropy.append(-sum(values.count(v) / n * math.log(values.count(v) / n) for v in set(values)))
    return 2 * information / sum(entropy)


def blobs(n_classes: int, each: int, spread: float, d: int = 8):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n_classes).repeat_interleave(each)
    centres = torch.nn.functional.normalize(torch.randn(n_classes, d, generator=g), dim=1)
    return centres[labels] + spread * torch.randn(len(labels), d, generator=g), labels


def test_f1_is_the_loop_over_pairs():
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(4, size=40), rng.integers(6, size=40)
    assert pair_f1(labels, clusters) == pytest.approx(pairs_by_loops(labels, clusters), rel=1e-12)
    assert pair_f1(torch.tensor(labels), torch.tensor(clusters)) == pair_f1(labels, clusters)
    assert pair_f1(labels, labels * 7 - 3) == 1  # names of clusters do not matter


def test_f1_by_hand_and_without_pairs():
    # classes aaabb, clusters 11222: shared pairs aa in 1, bb in 2; 4 pairs in clusters, 4 in classes
    assert pair_f1(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 2, 2, 2])) == pytest.approx(2 * 2 / 8)
    assert pair_f1(np.array([0, 1, 2]), np.array([0, 0, 0])) == 0
    assert pair_f1(np.array([0, 1, 2]), np.array([0, 1, 2])) == 0


def test_f1_of_many_samples_does_not_overflow():
    labels = np.repeat([0, 1], 100_000)
    assert pair_f1(labels, np.zeros_like(labels)) == pytest.approx(2 / 3, rel=1e-4)


def test_scores_are_those_of_the_clusters():
    z, labels = blobs(5, 12, 0.35)
    labels = labels * 3 + 40  # any whole numbers
    scores = cluster_scores(z, labels, seed=3)
    found = cluster(z, 5, seed=3)
    assert scores.nmi == pytest.approx(nmi_by_loops(labels.tolist(), found.tolist()), rel=1e-9)
    assert scores.f1 == pytest.approx(pairs_by_loops(labels.tolist(), found.tolist()), rel=1e-12)
    assert (scores.n_clusters, scores.n_samples) == (5, 60)
    assert 0.3 < scores.nmi < 0.99 and 0.2 < scores.f1 < 0.99  # else equal numbers would say little


def test_a_run_repeats_with_its_seed():
    z, labels = blobs(8, 10, 0.3)
    assert cluster_scores(z, labels, seed=1) == cluster_scores(z, labels, seed=1)
    assert len({cluster_scores(z, labels, seed=s).nmi for s in range(5)}) > 1


def test_clusters_are_local_optima_of_the_squared_distance():
    """Each unit row is nearest to the mean of its own cluster: what Lloyd's iterations end in."""
    z, _ = blobs(4, 25, 0.2)
    found = torch.from_numpy(cluster(z * 100, 4, iterations=100)).long()  # lengths do not matter
    z = torch.nn.functional.normalize(z, dim=1)
    means = torch.stack([z[found == k].mean(0) for k in range(4)])
    assert (torch.cdist(z, means).argmin(1) == found).all()
    assert (found.numpy() == cluster(z, 4, iterations=100)).all()


def first_rows(n: int, k: int, seed: int) -> np.ndarray:
    """The k random rows that scikit-learn starts from."""
    even = np.full(n, 1 / n, np.float32)
    return np.random.RandomState(seed).choice(n, k, replace=False, p=even)


def lloyd(z: torch.Tensor, centres: torch.Tensor, rounds: int) -> torch.Tensor:
    """Lloyd's iterations in double, with all distances at once."""
    for _ in range(rounds):
        found = torch.cdist(z, centres).argmin(1)
        centres = torch.stack([z[found == j].mean(0) for j in range(len(centres))])
    return torch.cdist(z, centres).argmin(1)


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_assignments_are_those_of_brute_force_from_the_same_rows(iterations):
    z, _ = blobs(12, 15, 0.25)
    z = torch.nn.functional.normalize(z.double(), dim=1)
    found = set()
    for seed in range(4):
        want = lloyd(z, z[first_rows(len(z), 12, seed)], iterations)
        assert (cluster(z, 12, seed=seed, iterations=iterations) == want.numpy()).all()
        found.add(tuple(want.tolist()))
    assert len(found) == 4  # starts matter


def peer(z: torch.Tensor, k: int, seed: int, iterations: int) -> KMeans:
    """k-means of unit rows by scikit-learn."""
    run = KMeans(k, init="random", n_init=1, max_iter=iterations, tol=0, random_state=seed)
    return run.fit(torch.nn.functional.normalize(z.double(), dim=1).numpy())


def inertia(z: torch.Tensor, found: np.ndarray) -> float:
    """The sum of squared distances of unit rows to the mean of their cluster."""
    z = torch.nn.functional.normalize(z.double(), dim=1)
    groups = [z[found == j] for j in set(found.tolist())]
    return sum(float((rows - rows.mean(0)).square().sum()) for rows in groups)


@pytest.mark.parametrize("chunk", [2**18, 40])
@pytest.mark.parametrize("spread", [0.1, 0.25, 2.0])
def test_clusters_and_rounds_are_those_of_scikit_learn(monkeypatch, spread, chunk):
    monkeypatch.setattr(MODULE, "_CHUNK_ELEMENTS", chunk)
    z, labels = blobs(40, 25, spread, d=24)
    rounds = set()
    for seed, iterations in ((0, 20), (1, 20), (2, 5), (3, 100)):
        want = peer(z, 40, seed, iterations)
        assert (cluster(z, 40, seed=seed, iterations=iterations) == want.labels_).all()
        rounds.add(cluster_scores(z, labels, seed=seed, iterations=iterations).n_rounds)
        assert want.n_iter_ in rounds
    assert len(rounds) > 1


def test_clusters_of_embeddings_that_nearly_collapsed():
    """Rows that differ by 1/10,000: without their common part, or scores in float32 would be equal."""
    z, _ = blobs(12, 15, 0.25)
    near = torch.nn.functional.normalize(torch.ones(8) + 1e-4 * z).double()
    found = cluster(near, 12, iterations=100)
    assert (found == peer(near, 12, 0, 100).labels_).all() and len(set(found)) == 12


def test_many_copies_and_empty_clusters():
    """Starts that hold one embedding several times end where every row is nearest to its own mean."""
    z, _ = blobs(30, 1, 0.3)
    z = torch.cat([z[:6].repeat(30, 1), z])
    ours, theirs = [], []
    for seed in range(12):
        assert len(z[first_rows(len(z), 25, seed)].unique(dim=0)) < 20
        found = torch.from_numpy(cluster(z, 25, seed=seed, iterations=100))
        assert len(found.unique()) == 25
        unit = torch.nn.functional.normalize(z.double(), dim=1)
        means = torch.stack([unit[found == j].mean(0) for j in range(25)])
        own = (unit - means[found]).norm(dim=1)
        torch.testing.assert_close(torch.cdist(unit, means).amin(1), own, rtol=0, atol=1e-6)
        ours.append(inertia(z, found.numpy()))
        theirs.append(inertia(z, peer(z, 25, seed, 100).labels_))
    assert np.mean(ours) < 1.05 * np.mean(theirs)


def test_copies_are_never_parted_by_rounding():
    """Nine clusters are wanted of 600 rows with five directions: there are five, and no row is alone."""
    z = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(5).repeat(120)
    for seed in range(20):
        found = cluster(z[labels], 9, seed=seed)
        assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == 5 == len(set(found))


def test_a_cluster_without_members_starts_anew_far_from_its_centre():
    """All k are filled as long as k embeddings are distinct, though most starts hold one several times."""
    z = torch.eye(4)[torch.tensor([0] * 40 + [1, 2, 3])]
    for seed in range(8):
        assert len(set(first_rows(43, 4, seed)) & {40, 41, 42}) < 3  # some centre is there twice
        found = cluster(z, 4, seed=seed)
        assert len(set(found)) == 4 and len(set(found[:40])) == 1
        assert len(set(cluster(z, 6, seed=seed))) == 4  # no more than there are distinct ones
    assert cluster_scores(z, z.argmax(1))[:2] == (pytest.approx(1), 1)


def test_rounds_end_when_nothing_moves():
    z, labels = blobs(12, 15, 0.25)
    long = cluster_scores(z, labels, iterations=100)
    assert 2 < long.n_rounds < 20
    assert cluster_scores(z, labels) == long  # so the rest would change nothing
    assert cluster_scores(z, labels, iterations=2).n_rounds == 2


def test_embeddings_are_not_written_to():
    for dtype in (torch.float32, torch.float64):
        z = torch.nn.functional.normalize(torch.randn(50, 8, dtype=dtype), dim=1)
        before = z.clone()
        cluster(z, 5)
        assert torch.equal(z, before)


BOUNDED = """
import sys, torch
from cvlib.claims.racing import report
from cvlib.metrics import cluster_scores
z = torch.randn(6000, 16, generator=torch.Generator().manual_seed(0))
report(lambda m: (0, cluster_scores(z[:m], torch.arange(m) // 2, iterations=2).nmi), 6000)
"""


def test_memory_does_not_grow_with_rows_times_clusters():
    """All distances of 6,000 rows to 3,000 centres are 72 MB; 256 rows of them are held, 3 MB."""
    ended = subprocess.run([sys.executable, "-c", BOUNDED], capture_output=True, text=True, check=True)
    _, megabytes, _, nmi = map(float, ended.stdout.split())
    assert megabytes < 72 / 3 and 0 < nmi < 1


def test_separate_classes_and_none():
    z, labels = blobs(2, 30, 0.01)
    assert cluster_scores(z, labels)[:2] == (pytest.approx(1), 1)
    collapsed = cluster_scores(torch.ones(60, 8), labels)
    assert collapsed.nmi == pytest.approx(0, abs=1e-12)
    assert collapsed.f1 == pytest.approx(pairs_by_loops(labels.tolist(), [0] * 60))
    random = cluster_scores(torch.randn(400, 8), torch.arange(2).repeat(200))
    assert random.nmi < 0.05  # many samples a cluster: agreement by chance is small


def test_agrees_with_pytorch_metric_learning():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    z, labels = blobs(6, 15, 0.3)
    peer = AccuracyCalculator(
        include=("NMI",),
        device=torch.device("cpu"),
        knn_func=lambda *_: None,
        kmeans_func=lambda x, k: torch.tensor(cluster(x, k)),
    )
    theirs = peer.get_accuracy(z, labels)["NMI"]
    assert cluster_scores(z, labels).nmi == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("z", "labels", "said"),
    [
        (torch.randn(6, 2), torch.zeros(6, dtype=torch.long), "1 classes; wanted at least two"),
        (torch.randn(6, 2), torch.arange(5), r"labels \(5,\)"),
        (torch.randn(6, 2), torch.arange(6.0), "whole numbers"),
        (torch.zeros(6, 2), torch.arange(6), "6 of 6 embeddings of length 0"),
        (torch.full((6, 2), torch.nan), torch.arange(6), "NaN"),
        (torch.randn(0, 2), torch.zeros(0, dtype=torch.long), "0 classes"),
    ],
)
def test_bad_input_is_one_clear_line(z, labels, said):
    with pytest.raises(BookError, match=said):
        cluster_scores(z, labels)


def test_number_of_clusters_is_checked():
    with pytest.raises(BookError, match="k=7 clusters of 6"):
        cluster(torch.randn(6, 2), 7)
