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


def cluster(embeddings: Tensor, k: int, *, seed: int = 0, iterations: int = 20) -> np.ndarray:
    """Return the cluster (N,) of each unit-length embedding (N, d): one run of k-means from k random rows.

    Fewer than k clusters are filled if fewer than k embeddings are distinct.
    Raises: BookError for NaN, rows of length 0, or k outside 1..N.
    """
    z = unit_rows(embeddings)
    if not 1 <= k <= len(z):
        raise BookError(f"k={k} clusters of {len(z)} embeddings", f"1 to {len(z)}")
    run = KMeans(k, init="random", n_init=1, max_iter=iterations, tol=0.0, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a collapsed embedding: the scores tell
        found: np.ndarray = run.fit_predict(z.float().cpu().numpy())
    return found


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
    found = cluster(embeddings, k, seed=seed, iterations=iterations)
    return Clustering(float(normalized_mutual_info_score(ids, found)), pair_f1(ids, found), k, len(ids))
