"""How well the clusters of an embedding agree with the classes: NMI and pairwise F1.

Source: definitions as in Oh Song et al. 2016, Sec. 5, and in the evaluation of Roth et al. 2020.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from cvlib.errors import BookError
from cvlib.metrics.embedding import class_ids, unit_rows

__all__ = ["Clustering", "cluster", "cluster_scores", "pair_f1"]


class Clustering(NamedTuple):
    """Agreement of k-means clusters with the classes, each in [0, 1], 1 for equal partitions."""

    nmi: float  #: mutual information over the arithmetic mean of both entropies
    f1: float  #: harmonic mean of precision and recall over pairs in one cluster and in one class
    n_clusters: int  #: as many as there are classes among the labels
    n_samples: int
    n_rounds: int  #: rounds of k-means until no embedding changed its cluster, or the limit


def cluster(embeddings: Tensor, k: int, *, seed: int = 0, iterations: int = 20) -> np.ndarray:
    """Return the cluster (N,) of each unit-length embedding (N, d): one run of k-means from k random rows.

    A cluster that loses all its members starts anew at the embedding that lies farthest from its own centre
    (scikit-learn's rule), so fewer than k are filled only if fewer than k embeddings are distinct.
    Similarities are computed in float32, 256 rows x k at a time in each thread, whatever N is.
    Raises: BookError for NaN, rows of length 0, or k outside 1..N.
    """
    found: np.ndarray = _k_means(embeddings, k, seed, iterations).labels_
    return found


def _k_means(embeddings: Tensor, k: int, seed: int, iterations: int) -> KMeans:
    z = unit_rows(embeddings).float().cpu().numpy()  # the rows in double are given back before the search
    if not 1 <= k <= len(z):
        raise BookError(f"k={k} clusters of {len(z)} embeddings", f"1 to {len(z)}")
    settings = {"max_iter": iterations, "tol": 0.0, "random_state": seed}
    run = KMeans(k, init="random", n_init=1, copy_x=False, **settings)  # z is ours, and may be written to
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a collapsed embedding: the scores tell
        return run.fit(z)


def pair_f1(labels: Tensor | np.ndarray, clusters: Tensor | np.ndarray) -> float:
    """Return F1 over pairs: precision of "same cluster" and recall of "same class"; 0 if no pair agrees.

    >>> round(pair_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])), 6)  # 1 of 3 pairs, 1 of 2 pairs
    0.4
    """
    table = contingency_matrix(np.asarray(labels), np.asarray(clusters), sparse=True).astype(np.int64)

    def pairs(counts: np.ndarray) -> int:
        return int((counts * (counts - 1) // 2).sum())

    true = pairs(table.data)
    in_class, in_cluster = (pairs(np.asarray(table.sum(axis)).ravel()) for axis in (1, 0))
    return 2 * true / (in_class + in_cluster) if true else 0.0  # 2 P R / (P + R), shortened


def cluster_scores(embeddings: Tensor, labels: Tensor, *, seed: int = 0, iterations: int = 20) -> Clustering:
    """Return NMI and F1 of k-means clusters of the unit-length embeddings (N, d) with labels (N,).

    k is the number of distinct ``labels``: the classes that are there, never those of another split. One run
    from random rows, as the papers do: repeat over seeds for its spread. A collapsed embedding has one
    cluster and NMI 0.

    Raises: BookError for NaN, rows of length 0, labels of another length, or fewer than two classes.
    """
    ids = class_ids(labels, len(embeddings)).numpy()
    k = int(ids.max()) + 1 if len(ids) else 0
    if k < 2:
        raise BookError(f"{k} classes", "at least two", "NMI has no value for one")
    run = _k_means(embeddings, k, seed, iterations)
    nmi = float(normalized_mutual_info_score(ids, run.labels_))
    return Clustering(nmi, pair_f1(ids, run.labels_), k, len(ids), run.n_iter_)
