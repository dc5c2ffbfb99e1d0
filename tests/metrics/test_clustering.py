from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from cvlib.errors import BookError
from cvlib.metrics import cluster_scores, pair_f1
from cvlib.metrics.clustering import cluster


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
