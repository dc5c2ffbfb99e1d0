"""How well nearest neighbours share a query's class: Recall@K and three mean average precisions.

Source: Roth et al. 2020 (Revisiting Training Strategies), Sec. 4; Musgrave et al. 2020, Sec. 3 (mAP@R).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.metrics.embedding import class_ids, unit_rows
from cvlib.metrics.scores import checked_features
from cvlib.nn.precision import without_autocast

__all__ = ["Retrieval", "neighbours", "retrieval_scores"]

Metric = Literal["cosine", "euclidean"]
OwnSet = Literal["keep", "distractors", "leave out"]
_CHUNK_ELEMENTS = 2**22  # similarities held at once: 16 MB, whatever the gallery
_BLOCK = 2**13  # gallery items compared at once, or more: few queries with many items are a slow product


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Means over the queries that have a positive, a gallery item of their class other than themselves."""

    recall: dict[int, float]  #: K -> share of queries with a positive among the K nearest
    map_r: float  #: mAP@R (Musgrave et al.): cut and divisor R, the number of positives
    map_c: float  #: the authors' mAP_c: cut and divisor n_c = R + 1; at most ``ceiling_c``
    map_1000: float | None  #: the authors' mAP_1000: cut 1000, divisor n_c; None if not asked for
    ceiling_c: float  #: the highest possible map_c and map_1000 (if n_c <= 1000)
    n_queries: int  #: queries with a positive, behind every mean
    n_lone: int  #: queries without one: left out
    n_gallery: int
    first_rank: Tensor = field(repr=False)  #: (Q,) int64, rank of the first positive; 0: not found, -1: lone
    ap_r: Tensor = field(repr=False)  #: (Q,) float64, each query's part of map_r; NaN: lone


@torch.no_grad()
def retrieval_scores(
    embeddings: Tensor,
    labels: Tensor,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    queries: Tensor | None = None,
    gallery: Tensor | None = None,
    sets: Tensor | None = None,
    own_set: OwnSet = "keep",
    metric: Metric = "cosine",
    map_1000: bool = True,
) -> Retrieval:
    """Return :class:`Retrieval` of embeddings (N, d) with labels (N,): who is near whom, by class.

    Every row is a query and in the gallery, or name rows (int64 indices or a mask (N,)) in ``queries`` and
    ``gallery``. A query is never its own neighbour, told by its row, so exact duplicates are neighbours.

    Cross-set retrieval: ``sets`` (N,) says where an item is from, such as who drew it. With
    ``own_set="leave out"`` a query's gallery has no item of its own set. With "distractors" those of other
    classes stay in the ranking; those of its own class are neither right nor wrong, and are left out.

    AP = (1/n) Σ_{j <= J} (hits among the first j) / j at each hit j, with (J, n) = (R, R), (n_c, n_c) and
    (1000, n_c); the last two divide by n_c although only R = n_c - 1 can be found. Equal similarities are
    ordered by a fixed shuffle of the gallery, so a collapsed embedding scores chance, whatever the order of
    the rows. Similarities are computed in float32 (float64 for float64 embeddings), 16 MB at a time;
    ``map_1000=False`` saves most of the sorting in large galleries: no query looks farther than the largest K
    or its own n_c, and ``first_rank`` is 0 beyond.

    Raises: BookError for NaN, rows of length 0 (cosine), labels or sets of another length, no query, an empty
    gallery, a K below 1 or above the gallery, or if no query has a positive.
    """
    search = _Search(embeddings, labels, queries, gallery, sets, own_set, metric)
    largest = search.candidates()
    if not ks or min(ks) < 1 or max(ks) > largest:
        raise BookError(f"K = {', '.join(map(str, ks)) or 'none'}", f"1 to {largest}, the gallery of a query")
    positives = search.positives()
    lone = positives == 0
    if lone.all():
        seen = f"{len(lone)} queries, none with another item of its class in its gallery"
        raise BookError(seen, "classes with two members")
    ids = search.ids.to(search.vectors.device)
    first_rank, ap = torch.zeros_like(positives), torch.zeros(3, len(positives), dtype=torch.float64)
    wanted = (positives + 1).clamp_min(max(*ks, 1000 if map_1000 else 0))
    for part, found in search.run(wanted):
        own = ids[search.queries[part].to(ids.device)]
        hits = (ids[found.clamp_min(0)] == own[:, None]) & (found >= 0)
        rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        first_rank[part] = torch.where(hits.any(1), hits.int().argmax(1) + 1, 0).cpu()
        precision = (hits.cumsum(1) * hits / rank.double()).cpu()
        so_far, n = precision.cumsum(1), positives[part]
        ap[0, part] = _at(so_far, n) / n
        ap[1, part] = _at(so_far, n + 1) / (n + 1)
        ap[2, part] = _at(so_far, torch.full_like(n, 1000)) / (n + 1)
    first_rank[first_rank > wanted] = 0  # seen only because it was searched with others
    kept = ~lone
    map_r, map_c, map_a = ap[:, kept].mean(1).tolist()
    return Retrieval(
        {k: float(((first_rank > 0) & (first_rank <= k))[kept].double().mean()) for k in ks},
        map_r,
        map_c,
        map_a if map_1000 else None,
        float((positives.double() / (positives + 1))[kept].mean()),
        int(kept.sum()),
        int(lone.sum()),
        len(search.gallery),
        first_rank.masked_fill(lone, -1),
        ap[0].masked_fill(lone, torch.nan),
    )


def _at(so_far: Tensor, cut: Tensor) -> Tensor:
    """Column ``cut`` (counted from 1) of each row of running sums, or the last one; (B,) float64."""
    return so_far.gather(1, cut.clamp(1, so_far.shape[1])[:, None] - 1)[:, 0]


@torch.no_grad()
def neighbours(
    embeddings: Tensor,
    k: int,
    *,
    queries: Tensor | None = None,
    gallery: Tensor | None = None,
    labels: Tensor | None = None,
    sets: Tensor | None = None,
    own_set: OwnSet | None = None,
    metric: Metric = "cosine",
) -> Tensor:
    """Return the rows (Q, k) int64 of the k nearest gallery items of each query, nearest first; -1: no more.

    Arguments and errors as in :func:`retrieval_scores`; with ``sets`` the query's own set is left out, unless
    ``own_set`` says otherwise. Only "distractors" needs ``labels``.
    """
    own_set = own_set or ("keep" if sets is None else "leave out")
    if own_set == "distractors" and labels is None:
        raise BookError("own_set='distractors' without labels", "labels (N,): who is right is left out")
    search = _Search(embeddings, labels, queries, gallery, sets, own_set, metric)
    if not 1 <= k <= search.candidates():
        raise BookError(f"k = {k}", f"1 to {search.candidates()}, the gallery of a query")
    return torch.cat([found.cpu() for _, found in search.run(torch.full_like(search.queries, k))])


class _Search:
    """A protocol: which rows ask, which answer, and which answers a query may not have."""

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        queries: Tensor | None,
        gallery: Tensor | None,
        sets: Tensor | None,
        own_set: OwnSet,
        metric: Metric,
    ) -> None:
        if own_set not in ("keep", "distractors", "leave out"):
            raise BookError(f"own_set={own_set!r}", "'keep', 'distractors' or 'leave out'")
        if (own_set != "keep") != (sets is not None):
            raise BookError(
                f"own_set={own_set!r} {'with' if sets is not None else 'without'} sets",
                "sets (N,) with 'distractors' or 'leave out', none with 'keep'",
            )
        self.vectors = _vectors(embeddings, metric)
        self.metric, self.own_set, n = metric, own_set, len(self.vectors)
        self.ids = torch.arange(n) if labels is None else class_ids(labels, n)
        self.sets = None if sets is None else class_ids(sets, n, "sets")
        self.queries = _rows("queries", queries, n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # see the note on ties
        member = torch.zeros(n, dtype=torch.bool)
        member[_rows("gallery", gallery, n)] = True
        self.gallery = order[member[order]]
        self.place = torch.full((n,), -1)  # of each row in the gallery
        self.place[self.gallery] = torch.arange(len(self.gallery))

    def candidates(self) -> int:
        """The largest number of gallery items that a query has."""
        return int((len(self.gallery) - self._taken(everyone=True)).max())

    def positives(self) -> Tensor:
        """The number of gallery items of each query's class that it may find, (Q,)."""
        counts = torch.bincount(self.ids[self.gallery], minlength=int(self.ids.max()) + 1)
        return counts[self.ids[self.queries]] - self._taken(everyone=False)

    def _taken(self, everyone: bool) -> Tensor:
        """How many gallery items, of all or of its class, the protocol takes from each query, (Q,)."""
        own = (self.place[self.queries] >= 0).long()  # itself
        if self.sets is None:
            return own
        key = self.sets
        if not everyone or self.own_set == "distractors":
            key = self.sets * (int(self.ids.max()) + 1) + self.ids
        _, key = key.unique(return_inverse=True)
        counts = torch.bincount(key[self.gallery], minlength=int(key.max()) + 1)[key[self.queries]]
        return torch.maximum(counts, own)  # oneself is one of them

    def run(self, k: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield which queries, and their nearest gallery rows (B, K), -1 for those taken away.

        K is the most that any of them wants, of the numbers ``k`` (Q,), or the whole gallery. Queries that
        want few come first, and by themselves: finding more takes longer.
        """
        device = self.vectors.device
        gallery, place, ids = (x.to(device) for x in (self.gallery, self.place, self.ids))
        sets = None if self.sets is None else self.sets.to(device)
        items = self.vectors[gallery]
        # |q - g|² ranks like -(q·g - |g|²/2): one matrix product either way
        bias = items.square().sum(1) / 2 if self.metric == "euclidean" else None
        width = min(max(_BLOCK, 64 * int(k.max())), len(gallery))  # many times what is kept of it
        step = max(1, min(_CHUNK_ELEMENTS // width, len(k)))
        held = items.new_empty(step, width)  # for every piece: to ask for memory again and again takes time
        for part in k.argsort(stable=True).split(step):
            rows, most = self.queries[part].to(device), int(k[part].max())
            values, found = items.new_empty(len(rows), 0), place.new_empty(len(rows), 0)
            for start in range(0, len(gallery), width):
                block = slice(start, start + width)
                near = held[: len(rows), : len(gallery) - start]
                with without_autocast(items):
                    torch.mm(self.vectors[rows], items[block].T, out=near)
                if bias is not None:
                    near -= bias[block]
                own = place[rows] - start
                inside = ((own >= 0) & (own < near.shape[1])).nonzero()[:, 0]
                near[inside, own[inside]] = -torch.inf
                if sets is not None:
                    taken = sets[rows, None] == sets[gallery[block]]
                    if self.own_set == "distractors":
                        taken &= ids[rows, None] == ids[gallery[block]]
                    near.masked_fill_(taken, -torch.inf)
                best, where = near.topk(min(most, near.shape[1]), dim=1)
                values, found = torch.cat([values, best], 1), torch.cat([found, where + start], 1)
                if start:
                    values, where = values.topk(min(most, values.shape[1]), dim=1)
                    found = found.gather(1, where)
            yield part, gallery[found].masked_fill(values == -torch.inf, -1)


def _vectors(embeddings: Tensor, metric: Metric) -> Tensor:
    """The embeddings as the search wants them, checked: unit rows, or rows around their mean."""
    if metric not in ("cosine", "euclidean"):
        raise BookError(f"metric={metric!r}", "'cosine' or 'euclidean'")
    if metric == "cosine":
        z = unit_rows(embeddings)
    else:
        z = checked_features("embedding", embeddings, 1)
        z = z - z.mean(0)  # differences are as they were, and less is lost to rounding
    return z if embeddings.dtype == torch.float64 else z.float()


def _rows(name: str, chosen: Tensor | None, n: int) -> Tensor:
    """Row numbers on the CPU from row numbers, a mask, or None for all."""
    if chosen is None:
        return torch.arange(n)
    chosen = chosen.detach().cpu()
    if chosen.dtype == torch.bool and chosen.shape == (n,):
        chosen = chosen.nonzero()[:, 0]
    if chosen.ndim != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise BookError(f"{name} {tuple(chosen.shape)} of {chosen.dtype}", f"row numbers or a mask ({n},)")
    if not len(chosen):
        raise BookError(f"no {name}", "at least one row")
    if int(chosen.min()) < 0 or int(chosen.max()) >= n:
        raise BookError(f"{name} from {int(chosen.min())} to {int(chosen.max())}", f"rows 0 to {n - 1}")
    return chosen.long()
