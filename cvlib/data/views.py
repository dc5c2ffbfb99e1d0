"""Inputs for fine-tuning: augmented pictures, or what the frozen first stages of a network make of them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cvlib.assets import cache_root
from cvlib.data.base import Dataset, Draws, derived_generator
from cvlib.data.store import digest, open_store
from cvlib.errors import BookError
from cvlib.nn.backbones import Backbone

__all__ = ["ClassSubset", "PictureViews", "StageViews", "Views"]

_ROWS = 256  # pictures that pass the frozen stages together
_FORMAT = 1  # raise when what is cached changes


class Views(Protocol):
    """Items with labels, of which augmented views can be taken; ``stage`` says where the network goes on."""

    labels: Tensor  #: int64 (N,), classes from 0 on
    stage: int  #: the inputs are what goes into this stage of the network
    hash: str  #: of content and options, for run configurations

    def __len__(self) -> int: ...

    def take(self, index: Tensor, generator: torch.Generator, n: int = 1) -> list[Tensor]:
        """Return ``n`` independently drawn views of the items ``index`` (B,), float32 tensors (B, ...)."""

    def fixed(self, index: Tensor) -> Tensor:
        """Return the view (B, ...) of each item that evaluation looks at, always the same."""


class PictureViews:
    """The pictures themselves, (B, 3, H, W) in [-1, 1], augmented anew each time as their data set does.

    :meth:`fixed` gives the plain picture, or with ``is_random_at_test`` one augmented view, drawn once: the
    very picture that view 0 of :class:`StageViews` shows. Raises: BookError for a data set without the label.
    """

    stage = 0

    def __init__(self, data: Dataset, label: str = "class", *, is_random_at_test: bool = False) -> None:
        self.data, self.labels = data, _classes(data, label)
        self.hash, self._draws = data.hash, None
        if is_random_at_test:
            self.hash, self._draws = digest([data.hash, "random at test"], 16), _draws(data, 0, True)

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Tensor, generator: torch.Generator, n: int = 1) -> list[Tensor]:
        return [self.data.images(index, generator=generator, augment=True) for _ in range(n)]

    def fixed(self, index: Tensor) -> Tensor:
        if self._draws is None:
            return self.data.images(index)
        d = self._draws
        factors = None if d.factors is None else d.factors[index]
        draws = Draws(d.top[index], d.left[index], d.flip[index], factors)
        return self.data.render(index, draws)["image"]


class StageViews:
    """``n_views`` augmented views of every picture after the first ``stage`` stages of a frozen network.

    Fine-tuning only the last stages then costs no more than these: the views are computed once, kept as
    float16 in the cache (n_views x N x h x w x C) and memory-mapped; they come as float32 (B, C, h, w).
    View v is drawn for all pictures in order from ``derived_generator(0, "view", v)``. View 0 is the one
    that evaluation looks at, and training too: augmented like the others with ``is_random_at_test``, else
    the plain picture. The network is left in evaluation mode on ``device``, channels last in memory,
    whether the views were computed or found.

    Raises: BookError for fewer than one view, a stage that the network lacks (0, the pictures themselves, is
    :class:`PictureViews`), a data set without pictures or without the label, or values beyond float16.
    """

    def __init__(
        self,
        data: Dataset,
        net: Backbone,
        stage: int,
        n_views: int,
        label: str = "class",
        *,
        is_random_at_test: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if n_views < 1:
            raise BookError(f"{n_views} views", "at least 1")
        if not 1 <= stage <= len(net.stages):
            raise BookError(f"stage {stage} of {net.name}", f"1 to {len(net.stages)}")
        net.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # the stubs lack it
        self.labels, self.stage, self.n_views = _classes(data, label), stage, n_views
        key = {"data": data.hash, "net": net.name, "stage": stage, "views": n_views, "format": _FORMAT}
        key |= {"weights": _weights_hash(net, stage), "random": is_random_at_test}
        self.hash = digest(key, 16)
        folder = cache_root() / "views" / f"{data.name}-{data.split}-{data.image_size}-{digest(key, 12)}"

        def build(aside: Path) -> dict[str, Any]:
            shape = _write(aside / "pixels.u8", data, net, stage, n_views, is_random_at_test, device)
            return {**key, "shape": shape}

        stored, meta = open_store(folder, build)
        n, h, w, c = meta["shape"]
        self._views = stored.view(np.float16).reshape(n_views, n, h, w, c)

    def __len__(self) -> int:
        return len(self.labels)

    def _at(self, view: Tensor, index: Tensor) -> Tensor:
        found = torch.from_numpy(self._views[view.numpy(), index.numpy()])
        return found.float().permute(0, 3, 1, 2)  # (B, C, h, w), channels last in memory

    def take(self, index: Tensor, generator: torch.Generator, n: int = 1) -> list[Tensor]:
        views = [torch.randint(self.n_views, (len(index),), generator=generator) for _ in range(n)]
        return [self._at(view, index) for view in views]

    def fixed(self, index: Tensor) -> Tensor:
        return self._at(torch.zeros(len(index), dtype=torch.long), index)


class ClassSubset:
    """The items of ``n_classes`` classes of other views, drawn by ``seed``; the classes are numbered anew.

    Training on few classes is its own question: the fewer there are, the less a network that only tells them
    apart has to know. ``rows`` (M,) int64 says which items were kept. Raises: BookError for fewer than 2
    classes, or more than there are.
    """

    def __init__(self, views: Views, n_classes: int, seed: int = 0) -> None:
        classes = views.labels.unique()
        if not 2 <= n_classes <= len(classes):
            raise BookError(f"{n_classes} classes", f"2 to {len(classes)}, those of the data")
        order = torch.randperm(len(classes), generator=derived_generator(seed, "classes"))
        chosen = classes[order[:n_classes]].sort().values
        self.views, self.stage = views, views.stage
        self.rows = torch.isin(views.labels, chosen).nonzero()[:, 0]
        self.labels = torch.searchsorted(chosen, views.labels[self.rows])
        self.hash = digest([views.hash, chosen.tolist()], 16)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor, generator: torch.Generator, n: int = 1) -> list[Tensor]:
        return self.views.take(self.rows[index], generator, n)

    def fixed(self, index: Tensor) -> Tensor:
        return self.views.fixed(self.rows[index])


def _classes(data: Dataset, label: str) -> Tensor:
    if label not in data.labels:
        wanted = f"one of {', '.join(data.labels)}" if data.labels else "a data set with labels"
        raise BookError(f"no label {label!r} in {data.name}", wanted)
    if not len(data):
        raise BookError(f"{data.name}/{data.split} without a picture", "at least one")
    return data.labels[label]


def _draws(data: Dataset, view: int, is_random: bool) -> Draws:
    """Return the random choices of one view for all pictures."""
    return data.draw(torch.arange(len(data)), derived_generator(0, "view", view), is_random)


def _weights_hash(net: Backbone, stage: int) -> str:
    """Return 12 digits that tell the weights and statistics of the first ``stage`` stages."""
    total = hashlib.sha256()
    for part in net.stages[:stage]:
        for tensor in part.state_dict().values():
            flat = tensor.detach().cpu().contiguous().flatten()
            total.update(flat.view(torch.uint8).numpy().tobytes())  # as bytes: NumPy has no bfloat16
    return total.hexdigest()[:12]


@torch.no_grad()
def _write(
    path: Path,
    data: Dataset,
    net: Backbone,
    stage: int,
    n_views: int,
    is_random: bool,
    device: torch.device | str,
) -> list[int]:
    """Write all views of all pictures to ``path``; return the shape of one view, [N, h, w, C]."""
    everything, said = torch.arange(len(data)), time.monotonic()
    with path.open("wb") as file:
        for view in range(n_views):
            draws = _draws(data, view, view > 0 or is_random)
            for first in range(0, len(data), _ROWS):
                rows = slice(first, first + _ROWS)
                images = data.render(everything[rows], draws[rows])["image"].to(device)
                with torch.autocast(images.device.type, torch.bfloat16):
                    found = net.run(images.contiguous(memory_format=torch.channels_last), stop=stage)
                cached = found.to(torch.float16).permute(0, 2, 3, 1).contiguous().cpu()
                if not cached.isfinite().all():
                    seen = f"{found.abs().max():g} after stage {stage} of {net.name}"
                    raise BookError(
                        seen, f"at most {torch.finfo(torch.float16).max:g}, the most float16 holds"
                    )
                file.write(cached.numpy().tobytes())
                if time.monotonic() - said > 15:
                    done = view * len(data) + min(first + _ROWS, len(data))
                    print(
                        f"views of {data.name}/{data.split}: {done:,} of {n_views * len(data):,}", flush=True
                    )
                    said = time.monotonic()
    return [len(data), *cached.shape[1:]]
