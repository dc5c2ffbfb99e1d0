"""How well the clusters of an embedding agree with the classes: NMI and pairwise F1.

Source: definitions as in Oh Song et al. 2016, Sec. 5, and in the evaluation of Roth et al. 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csc_array
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from cvlib.errors import BookError
from cvlib.metrics.embedding import class_ids, unit_rows

__all__ = ["Clustering", "cluster", "cluster_scores", "pair_f1"]

_CHUNK_ELEMENTS = 2**18  # scores held at once, 1 MB: they stay in the cache until they are compared


class Clustering(NamedTuple):
    """Agreement of k-means clusters with the classes, each in [0, 1], 1 for equal partitions."""

    nmi: float  #: mutual information over the arithmetic mean of both entropies
    f1: float  #: harmonic mean of precision and recall over pairs in one cluster and in one class
    n_clusters: int  #: as many as there are classes among the labels
    n_samples: int
    n_rounds: int  #: rounds of k-means until no embedding changed its cluster, or the limit


def cluster(embeddings: Tensor, k: int, *, seed: int = 0, iterations: int = 20) -> np.ndarray:
    """Return the cluster (N,) of each unit-length embedding (N, d): one run of k-means from k random rows.

    After the first of Lloyd's rounds only those similarities are computed that may change an assignment: to
    the centres that moved, and to all others for embeddings that their own centre moved away from. A cluster
    that loses all its members starts anew at the embedding that lies farthest from its own centre, so fewer
    than k are filled only if fewer than k embeddings are distinct. Similarities are computed in float32, 1 MB
    or 256 rows x k at a time, whatever N is.

    Raises: BookError for NaN, rows of length 0, or k outside 1..N.
    """
    return _k_means(embeddings, k, seed, iterations)[0]


def _k_means(embeddings: Tensor, k: int, seed: int, iterations: int) -> tuple[np.ndarray, int]:
    """The cluster (N,) of each embedding, and the number of rounds."""
    z = unit_rows(embeddings).float().cpu().numpy()  # the rows in double are given back before the search
    if not 1 <= k <= len(z):
        raise BookError(f"k={k} clusters of {len(z)} embeddings", f"1 to {len(z)}")
    z -= z.mean(0, dtype=np.float64).astype(z.dtype)  # distances stay; less is lost to rounding
    even = np.full(len(z), 1 / len(z), np.float32)
    start = np.random.RandomState(seed).choice(len(z), k, replace=False, p=even)  # as scikit-learn draws
    search = _Lloyd(z, z[start])
    for rounds in range(1, iterations + 1):
        if not search.update():
            return search.label, rounds
    return search.label, iterations


class _Lloyd:
    """Rows x (N, d), centres c (k, d), and the nearest centre of each row, with the score x·c - |c|²/2."""

    def __init__(self, z: np.ndarray, centres: np.ndarray) -> None:
        self.z, self.centres = z, centres
        self.half = np.square(centres).sum(1) / 2
        self.label = np.zeros(len(z), np.int64)
        self.score = np.full(len(z), -np.inf, z.dtype)
        self._compare(np.arange(len(z)), np.arange(len(centres)))

    def update(self) -> bool:
        """Move centres to the means of their rows, then rows to their nearest centres; False: none moved."""
        n, k = len(self.z), len(self.centres)
        counts = np.bincount(self.label, minlength=k)
        if not counts.all():
            self._restart(np.flatnonzero(counts == 0))
            counts = np.bincount(self.label, minlength=k)
        # members are summed in the order of the rows: the same members give the same mean, bit by bit
        members = csc_array((np.ones(n, self.z.dtype), self.label, np.arange(n + 1)), shape=(k, n))
        means = members @ self.z / np.maximum(counts, 1).astype(self.z.dtype)[:, None]
        moved = (means != self.centres).any(
            1
        )  # one that stays empty goes to 0: all rows lie on their centres
        self.centres, self.half = means, np.square(means).sum(1) / 2
        before = self.score.copy()  # no centre that stayed where it was has a higher one
        self.score[moved[self.label]] = -np.inf
        self._compare(np.arange(n), np.flatnonzero(moved))
        self._compare(np.flatnonzero(self.score < before), np.flatnonzero(~moved))
        return bool(moved.any())

    def _restart(self, empty: np.ndarray) -> None:
        """Give each empty cluster the row that then lies farthest from its centre, one after the other."""
        square = np.square(self.z).sum(1)
        apart = square - 2 * self.score  # squared distance
        for number in empty:
            row = apart.argmax()
            if apart[row] <= 1e-6 * square[row]:
                break  # the rest equal their centres up to rounding
            self.label[row] = number
            apart = np.minimum(apart, square - 2 * self.z @ self.z[row] + square[row])

    def _compare(self, rows: np.ndarray, which: np.ndarray) -> None:
        """Assign the rows to the best of these centres where it is better than what they have."""
        if not len(which):
            return
        centres, half = self.centres[which].T, self.half[which]
        step = min(max(256, _CHUNK_ELEMENTS // len(which)), 4096)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            scores = self.z[part] @ centres
            scores -= half
            best = scores.argmax(1)
            top = scores[np.arange(len(part)), best]
            nearer = top > self.score[part]
            self.score[part[nearer]], self.label[part[nearer]] = top[nearer], which[best[nearer]]


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
    found, rounds = _k_means(embeddings, k, seed, iterations)
    nmi = float(normalized_mutual_info_score(ids, found))
    return Clustering(nmi, pair_f1(ids, found), k, len(ids), rounds)
