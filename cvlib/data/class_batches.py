"""Batches for metric learning: a few images from each of many classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cvlib.data.base import derived_generator
from cvlib.data.views import Views
from cvlib.errors import BookError

__all__ = ["ClassBatches"]


class ClassBatches(Iterator[dict[str, Any]]):
    """Endless batches of ``per_class`` items from each of ``batch_size / per_class`` different classes.

    Batch t is a function of (seed, t) alone, or (seed, t, rank) of several processes: a rank takes whole
    classes, ``rank::world`` of those that one process would, in views of its own. A batch holds "views", a
    list of ``n_views`` tensors (B, ...), and "label" (B,), both on ``device``, and "index" (B,) on the CPU;
    a class lies side by side. One with fewer items than ``per_class`` repeats them evenly, in other views.
    (The authors' sampler draws classes and items with replacement: there two of a batch's classes may be one,
    and two of its images the same.)

    Raises: BookError if ``per_class`` does not divide the batch, the processes do not divide its classes,
    there are too few classes, one without an item, or a count or rank outside its range.
    """

    def __init__(
        self,
        source: Views,
        batch_size: int,
        *,
        seed: int,
        per_class: int = 2,
        n_views: int = 1,
        device: torch.device | str = "cpu",
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if per_class < 1 or n_views < 1 or not 0 <= rank < world:
            seen = f"{per_class} of a class, {n_views} views, rank {rank} of {world} processes"
            raise BookError(seen, "at least 1 of a class and 1 view, and 0 <= rank < world")
        n_classes = int(source.labels.max()) + 1 if len(source) else 0
        groups, rest = divmod(batch_size, per_class)
        if rest or not 1 <= groups <= n_classes or groups % world:
            seen = f"batches of {batch_size}, {per_class} of a class, {n_classes} classes, {world} processes"
            raise BookError(seen, "a multiple of per_class x processes, of no more classes than there are")
        self.source, self.groups, self.per_class, self.n_views = source, groups, per_class, n_views
        self.seed, self.position, self.device = seed, start, device
        self._ranks = slice(rank, None, world)
        counts = torch.bincount(source.labels, minlength=n_classes)
        if int(counts.min()) == 0:
            raise BookError(f"class {int(counts.argmin())} has no item", "classes numbered without gaps")
        order = source.labels.argsort(stable=True)
        first = counts.cumsum(0) - counts
        column = torch.arange(int(counts.max()))
        # (classes, size of the largest); a smaller class repeats its items, which fills the row
        self._members = order[first[:, None] + column % counts[:, None]]
        self._counts = counts

    def indices(self, t: int) -> Tensor:
        """Return the items of the whole batch t, (classes, per_class) int64."""
        generator = derived_generator(self.seed, "classes", t)
        classes = torch.randperm(len(self._counts), generator=generator)[: self.groups]
        noise = torch.rand(self.groups, max(self._members.shape[1], self.per_class), generator=generator)
        counts = self._counts[classes, None]
        beyond = torch.arange(noise.shape[1]) >= counts  # columns that are no item of the class
        shuffled = (noise + beyond).argsort(1)  # a class's own columns come first
        place = torch.arange(self.per_class) % counts  # round and round where a class is small
        return self._members[classes[:, None], shuffled.gather(1, place)]

    def __next__(self) -> dict[str, Any]:
        t, self.position = self.position, self.position + 1
        index = self.indices(t)[self._ranks].flatten()
        generator = derived_generator(self.seed, "views", t, self._ranks.start)
        views = self.source.take(index, generator, self.n_views)
        label = self.source.labels[index]
        return {
            "views": [view.to(self.device) for view in views],
            "label": label.to(self.device),
            "index": index,
        }

    def state_dict(self) -> dict[str, int]:
        """Return {"position": number of the next batch, "seed": seed}."""
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the position of a :meth:`state_dict`. Raises: BookError if its seed is another one."""
        if state["seed"] != self.seed:
            raise BookError(f"batches saved with seed {state['seed']}", f"seed {self.seed}", "pass that seed")
        self.position = state["position"]
