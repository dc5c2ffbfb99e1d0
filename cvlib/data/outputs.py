"""What frozen networks say of a data set's pictures, several augmented views of each, computed once."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from cvlib.assets import cache_root
from cvlib.data.base import Dataset, Draws, derived_generator
from cvlib.data.store import digest, open_store
from cvlib.errors import BookError

__all__ = ["Outputs", "weights_digest"]

_ROWS = 128  # pictures that pass the networks together
_FORMAT = 1  # raise when what is cached changes


def weights_digest(*nets: nn.Module) -> str:
    """Return 12 digits that tell the weights and buffers of networks, in their order."""
    total = hashlib.sha256()
    for net in nets:
        for tensor in net.state_dict().values():
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]


class Outputs(Dataset):
    """``n_views`` views of each of N pictures, as the columns that ``describe`` makes of them.

    ``describe(images)`` turns (B, 3, S, S) into a dict of tensors (B, ...), with the keys ``columns``;
    ``nets`` are the networks that it uses: names and weights tell one cache from another, its code does
    not. Row ``view * N + item`` holds the view drawn from
    ``derived_generator(0, "view", first_view + view)``; its labels are the picture's, with "item" and, where
    the data set knows them, the column "factors". Values are kept as float16 in the cache, memory-mapped, and
    come as float32; a batch holds the columns that :meth:`only` chose, all of them at first.

    Raises: BookError for fewer than one view, a negative one, no picture, other columns, or values beyond
    float16.
    """

    def __init__(
        self,
        data: Dataset,
        columns: Sequence[str],
        describe: Callable[[Tensor], Mapping[str, Tensor]],
        nets: Mapping[str, nn.Module],
        n_views: int = 1,
        device: torch.device | str = "cpu",
        first_view: int = 0,
    ) -> None:
        if n_views < 1 or not columns or not len(data):
            seen = f"{n_views} views of {len(data)} pictures, {len(columns)} columns"
            raise BookError(seen, "at least 1 of each")
        if first_view < 0:
            raise BookError(f"first view {first_view}", "0 or more")
        key = {"data": data.hash, "columns": list(columns), "views": n_views, "format": _FORMAT}
        key |= {"nets": {name: weights_digest(net) for name, net in nets.items()}}
        key |= {"first": first_view} if first_view else {}
        self.data, self.n_views, self.first_view = data, n_views, first_view
        self.device, self._columns = device, set(columns)
        self.name, self.split, self.image_size = data.name, data.split, data.image_size
        self.hash, self.label_names = digest(key, 16), data.label_names
        folder = cache_root() / "outputs" / f"{data.name}-{data.split}-{data.image_size}-{digest(key, 12)}"
        stored, meta = open_store(folder, lambda aside: {**key, "shapes": self._write(aside, describe)})
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in meta["shapes"]}
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes.values())]).tolist()
        self._where = {name: slice(*ends[k : k + 2]) for k, name in enumerate(self.shapes)}
        self._table = stored.view(np.float16).reshape(n_views * len(data), ends[-1])
        self._chosen = tuple(self.shapes)
        items = torch.arange(len(data)).repeat(n_views)
        self.labels = {"item": items} | {name: values[items] for name, values in data.labels.items()}

    def __len__(self) -> int:
        return self.n_views * len(self.data)

    def only(self, *names: str) -> Self:
        """Return the same rows; batches hold only the columns ``names``. Raises: BookError for others."""
        if unknown := sorted(set(names) - set(self.shapes)):
            raise BookError(f"column {', '.join(unknown)}", f"some of {', '.join(self.shapes)}")
        part = copy.copy(self)
        part._chosen = names
        return part

    def column(self, name: str, rows: Tensor | None = None) -> Tensor:
        """Return one column (B, ...), float32, of ``rows`` (B,), of all rows if None."""
        index = slice(None) if rows is None else torch.as_tensor(rows).numpy()
        found = np.asarray(self._table[index, self._where[name]])
        return torch.from_numpy(found.astype(np.float32)).unflatten(1, self.shapes[name] or (1,))

    def pictures(self, rows: Tensor) -> Tensor:
        """Return the pictures (B, 3, S, S) that ``rows`` (B,) speak of, drawn again with their factors."""
        rows = torch.as_tensor(rows)
        view, item = rows // len(self.data), rows % len(self.data)
        out = torch.empty(len(rows), 3, self.image_size, self.image_size)
        for v in view.unique().tolist():
            places = (view == v).nonzero()[:, 0]
            out[places] = self._render(v, item[places])["image"]
        return out

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        """Return empty draws: nothing about a row is random any more."""
        none = torch.zeros(len(index))
        return Draws(none, none, none)

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the chosen columns of the rows ``index``."""
        return {name: self.column(name, index).to(device) for name in self._chosen}

    def _render(self, view: int, index: Tensor) -> dict[str, Tensor]:
        everything = self.data.draw(
            torch.arange(len(self.data)), derived_generator(0, "view", self.first_view + view), augment=True
        )
        factors = None if everything.factors is None else everything.factors[index]
        d = Draws(everything.top[index], everything.left[index], everything.flip[index], factors)
        return self.data.render(index, d)

    @torch.no_grad()
    def _write(self, aside: Path, describe: Callable[[Tensor], Mapping[str, Tensor]]) -> list[Any]:
        """Write all rows to ``aside/pixels.u8``; return names and shapes of the columns."""
        shapes: list[Any] = []
        said = time.monotonic()
        with (aside / "pixels.u8").open("wb") as file:
            for view in range(self.n_views):
                for index in torch.arange(len(self.data)).split(_ROWS):
                    drawn = self._render(view, index)
                    found = dict(describe(drawn["image"].to(self.device)))
                    if found.keys() != self._columns:
                        raise BookError(f"columns {', '.join(found)}", ", ".join(sorted(self._columns)))
                    found |= {"factors": drawn["factors"]} if "factors" in drawn else {}
                    values = [one.reshape(len(index), -1).float().cpu() for one in found.values()]
                    rows = torch.cat(values, 1)
                    if not (rows.abs() <= torch.finfo(torch.float16).max).all():
                        limit = f"at most {torch.finfo(torch.float16).max:g}, the most float16 holds"
                        raise BookError(f"values up to {rows.abs().max():g}", f"finite ones of {limit}")
                    file.write(rows.to(torch.float16).numpy().tobytes())
                    shapes = [[name, list(one.shape[1:])] for name, one in found.items()]
                    if time.monotonic() - said > 15:
                        done = view * len(self.data) + int(index[-1]) + 1
                        print(f"outputs on {self.name}/{self.split}: {done:,} of {len(self):,}", flush=True)
                        said = time.monotonic()
        return shapes
