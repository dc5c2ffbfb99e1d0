"""Everything that changes while a run trains, kept and put back as one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cvlib.errors import BookError
from cvlib.files import atomic_path
from cvlib.train.checkpoint import (
    join_modules,
    last_good,
    latest_checkpoint,
    load_optimizer,
    prune_checkpoints,
    read_checkpoint,
    split_modules,
    write_checkpoint,
)
from cvlib.train.ema import EMA
from cvlib.train.journal import Journal
from cvlib.train.provenance import peak_mb
from cvlib.train.rng import isolated_rng, restore_rng, rng_state, seed_everything, seed_from
from cvlib.train.runtime import Runtime
from cvlib.train.weights import read_tensors, weights_metadata, write_tensors

__all__ = ["Batches", "TrainingState", "load_weights"]

Batches: TypeAlias = Iterator[Any] | Callable[[int], Any]


class TrainingState:
    """The moving parts of a run: modules, optimisers, averages, data position, random numbers, log."""

    def __init__(
        self,
        folder: Path,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        batches: Batches,
        ema: Mapping[str, EMA],
        extras: Mapping[str, Any],
        journal: Journal,
        runtime: Runtime,
    ) -> None:
        if bad := [name for name in modules if "." in name or not name]:
            raise ValueError(f"a module is called {bad[0]!r}; wanted a name without dots")
        if isinstance(batches, Iterator) and not hasattr(batches, "state_dict"):
            raise TypeError("batches is an iterator without state_dict: a resumed run could not go on in it")
        self.folder, self.modules, self.optimizers, self.batches = folder, modules, optimizers, batches
        self.ema, self.extras, self.journal, self.runtime = ema, extras, journal, runtime
        self.saved_step, self.saved_at = -1, time.monotonic()
        self._earlier_peak = 0.0

    def next_batch(self, t: int) -> Any:
        """Return batch ``t`` on the device. Raises: BookError if the data end before the run."""
        try:
            batch = next(self.batches) if isinstance(self.batches, Iterator) else self.batches(t)
        except StopIteration:
            raise BookError(f"the data ended before step {t + 1}", "batches without end") from None
        return self.runtime.to_device(batch)

    def save(self, step: int) -> None:
        """Write the checkpoint of ``step``, then drop all but the last two.

        Raises: BookError if a loss or a weight is not finite (nothing is written), or the disk is full.
        """
        if self.saved_step == step:
            return
        self.journal.settle()
        self._check_finite(step)
        for module in self.modules.values():  # statistics of BatchNorm differ between processes
            self.runtime.broadcast(module)
        generators = self.runtime.gather_objects(rng_state())
        if self.runtime.is_main:
            write_checkpoint(self.folder, step, join_modules(self.modules), self._parts(generators))
            prune_checkpoints(self.folder)
        self.runtime.wait()
        self.saved_step, self.saved_at = step, time.monotonic()

    def restore(self, checkpoint: Path, *, rng: bool = True) -> int:
        """Put back everything from ``checkpoint`` and return its step.

        Raises: BookError if the checkpoint is damaged or of another configuration.
        """
        weights, parts = read_checkpoint(checkpoint)
        for kept, own in (("optimizers", self.optimizers), ("ema", self.ema), ("extras", self.extras)):
            if parts[kept].keys() != own.keys():
                raise BookError(f"{checkpoint} has {kept} {sorted(parts[kept])}", f"{sorted(own)}")
        split_modules(weights, self.modules, str(checkpoint))
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, parts["optimizers"][name], f"{checkpoint} ({name})")
        for name, mean in self.ema.items():
            mean.load_state_dict(parts["ema"][name])
        for name, extra in self.extras.items():
            _put(extra, parts["extras"][name])
        if parts["batches"] is not None:
            self.batches.load_state_dict(parts["batches"])  # type: ignore[union-attr]  # None for functions
        step = int(parts["step"])
        self.journal.load_state_dict(parts["journal"], step)
        self._earlier_peak, self.saved_step = float(parts["peak_mb"]), step
        if rng:
            self._restore_rng(parts["rng"], step)
        return step

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, averaged weights, no gradients, own random numbers; all is put back after."""
        modes = [(part, part.training) for m in self.modules.values() for part in m.modules()]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(isolated_rng(seed_from("evaluate", self.runtime.rank)))
            for mean in self.ema.values():
                stack.enter_context(mean.applied())
            for module in self.modules.values():
                module.eval()
            try:
                yield
            finally:
                for part, mode in modes:
                    part.training = mode

    def keep_best(self, step: int, metric: str, value: float) -> None:
        """Write best.safetensors if ``value`` is finite and lower than the one in it."""
        best = read_best(self.folder)
        if self.runtime.is_main and math.isfinite(value) and (best is None or value < best["value"]):
            with atomic_path(self.folder / "best.safetensors") as aside:
                note = {"step": step, "metric": metric, "value": value}
                write_tensors(aside, join_modules(self.modules), note)

    def peak_now(self) -> float:
        """Return the largest memory in MiB over all sessions of the run; see :func:`peak_mb`."""
        return max(self._earlier_peak, peak_mb(self.runtime.device))

    def _parts(self, generators: list[dict[str, Any]]) -> dict[str, Any]:
        stateless = not isinstance(self.batches, Iterator)
        return {
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "ema": {name: mean.state_dict() for name, mean in self.ema.items()},
            "extras": {name: _taken(extra) for name, extra in self.extras.items()},
            "batches": None if stateless else self.batches.state_dict(),  # type: ignore[union-attr]  # as above
            "journal": self.journal.state_dict(),
            "rng": generators,
            "peak_mb": self.peak_now(),
        }

    def _restore_rng(self, generators: list[dict[str, Any]], step: int) -> None:
        if len(generators) == self.runtime.world:
            restore_rng(generators[self.runtime.rank])
        else:  # another number of processes: fresh noise, but the same each time
            seed_everything(seed_from("resume", step, self.runtime.rank))

    def _check_finite(self, step: int) -> None:
        named = [(f"{n}.{k}", p) for n, m in self.modules.items() for k, p in m.named_parameters()]
        if named and not torch.stack([p.detach().isfinite().all() for _, p in named]).all():
            bad = next(name for name, p in named if not p.detach().isfinite().all())
            raise BookError(f"weight {bad} is not finite after step {step}", do=last_good(self.folder))


def load_weights(folder: str | Path, modules: Mapping[str, nn.Module], which: str = "last") -> int:
    """Fill ``modules`` (some or all of a run's, by name) from a run folder and return the step.

    ``which``: "last" is the last checkpoint, "best" the one with the lowest metric (see :func:`fit`).

    Raises: BookError if there is none, or if it is damaged or has other names or shapes.
    """
    folder = Path(folder)
    if which == "best":
        best = folder / "best.safetensors"
        split_modules(read_tensors(best), modules, str(best))
        return int(weights_metadata(best)["step"])
    if which != "last":
        raise BookError(f"which is {which!r}", "last or best")
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        raise BookError(f"{folder} has no checkpoint", "a run folder", "train first")
    weights, parts = read_checkpoint(checkpoint)
    split_modules(weights, modules, str(checkpoint))
    return int(parts["step"])


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return step, metric and value of best.safetensors, or None."""
    best = folder / "best.safetensors"
    return weights_metadata(best) if best.exists() else None


def _taken(extra: Any) -> Any:
    return extra.get_state() if isinstance(extra, torch.Generator) else extra.state_dict()


def _put(extra: Any, state: Any) -> None:
    if isinstance(extra, torch.Generator):
        extra.set_state(state)
    else:
        extra.load_state_dict(state)


def rows_of(batch: Any) -> int:
    """Return the number of rows of the first tensor in ``batch``; 0 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else ()
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 0)
