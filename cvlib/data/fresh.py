"""What frozen networks say of a data set's pictures, computed whenever it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvlib.data.base import Dataset, Draws, derived_generator
from cvlib.data.outputs import Outputs, weights_digest
from cvlib.data.store import digest
from cvlib.errors import BookError

__all__ = ["Fresh"]

_ROWS = 128  # pictures that pass the networks together


class Fresh(Outputs):
    """As :class:`Outputs` of one view, but nothing is kept: for more maps than a disk holds.

    A batch shows its pictures as its generator draws them, as in the papers. Asked for rows without draws,
    it gives those of the first view of :class:`Outputs`, in float32. ``describe``, ``columns`` and ``nets``
    are as there. Raises: BookError for no picture, or other columns.
    """

    def __init__(
        self,
        data: Dataset,
        columns: Sequence[str],
        describe: Callable[[Tensor], Mapping[str, Tensor]],
        nets: Mapping[str, nn.Module],
        device: torch.device | str = "cpu",
    ) -> None:
        if not columns or not len(data):
            raise BookError(f"{len(data)} pictures, {len(columns)} columns", "at least 1 of each")
        key: dict[str, Any] = {"data": data.hash, "columns": list(columns), "views": 0}
        key |= {"nets": {name: weights_digest(net) for name, net in nets.items()}}
        self.data, self.n_views, self.device, self._columns = data, 1, device, set(columns)
        self.name, self.split, self.image_size = data.name, data.split, data.image_size
        self.hash, self.label_names = digest(key, 16), data.label_names
        self.labels = {"item": torch.arange(len(data)), **data.labels}
        self._describe = describe
        self._fixed = data.draw(torch.arange(len(data)), derived_generator(0, "view", 0), augment=True)
        first = self._said(torch.zeros(1, dtype=torch.long), None)
        self.shapes = {name: tuple(one.shape[1:]) for name, one in first.items()}
        self._chosen = tuple(self.shapes)

    @torch.no_grad()
    def _said(self, index: Tensor, draws: Draws | None) -> dict[str, Tensor]:
        """Return all columns of the pictures ``index``, of the first view without ``draws``."""
        draws = self._draws(index) if draws is None else draws
        drawn = self.data.render(index, draws, self.device)
        found = dict(self._describe(drawn["image"]))
        if found.keys() != self._columns:
            raise BookError(f"columns {', '.join(found)}", ", ".join(sorted(self._columns)))
        found |= {"factors": drawn["factors"]} if "factors" in drawn else {}
        return {name: one.float() for name, one in found.items()}

    def _draws(self, index: Tensor) -> Draws:
        d = self._fixed
        factors = None if d.factors is None else d.factors[index]
        return Draws(d.top[index], d.left[index], d.flip[index], factors)

    def _render(self, view: int, index: Tensor) -> dict[str, Tensor]:
        return self.data.render(index, self._draws(index))

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        """Return draws of the pictures; without ``augment`` those of the first view."""
        return self.data.draw(index, generator, True) if augment else self._draws(index)

    def render(
        self, index: Tensor, draws: Draws | None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the chosen columns of the pictures ``index`` as drawn, without draws of the first view."""
        found = self._said(index, draws)
        return {name: self._shaped(name, found[name]).to(device) for name in self._chosen}

    def column(self, name: str, rows: Tensor | None = None) -> Tensor:
        """Return one column (B, ...) on the CPU, of ``rows`` (B,), of all rows if None."""
        index = torch.arange(len(self)) if rows is None else torch.as_tensor(rows)
        parts = [self._said(some, None)[name].cpu() for some in index.split(_ROWS)]
        return self._shaped(name, torch.cat(parts))

    def _shaped(self, name: str, values: Tensor) -> Tensor:
        return values.reshape(len(values), *(self.shapes[name] or (1,)))
