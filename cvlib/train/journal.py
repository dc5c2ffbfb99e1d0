"""What a run tells: loss parts collected step by step, one line per interval on screen and in log.jsonl."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.files import atomic_write, told_if_full
from cvlib.train.checkpoint import last_good
from cvlib.train.runtime import Runtime

__all__ = ["Journal", "Parts", "duration"]

Parts: TypeAlias = Mapping[str, Tensor | float]
_OWN = ("step", "rate", "seconds")
_SILENCE = 300.0  # seconds without a line, after which one tells how far the run is
_FIRST = 20  # so many first losses are kept: they show whether a run can be repeated


class Journal:
    """Collects loss parts, checks that they are finite, and writes a row per interval.

    A row has ``step`` (steps done), the mean of every loss part since the row before, ``eval/<name>`` where
    an evaluation took place, ``rate`` (images/s of training alone) and ``seconds`` (since the run began,
    over all its sessions). After five minutes without a line one says how far the run is. Values of CUDA
    tensors are fetched once per interval, so that the device is not held up.
    """

    def __init__(self, folder: Path, steps: int, runtime: Runtime, *, quiet: bool = False) -> None:
        self.path, self.steps, self.runtime, self.quiet = folder / "log.jsonl", steps, runtime, quiet
        self.rows: list[dict[str, Any]] = []
        self.first: dict[str, list[float]] = {}
        self.images = 0
        self._since: list[dict[str, float]] = []  # steps since the last row
        self._waiting: list[tuple[int, Parts]] = []  # not yet fetched from the device
        self._earlier = 0.0  # seconds of earlier sessions
        self._begun = self._mark = self._said = time.perf_counter()
        self._mark_images = 0

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without the time between sessions."""
        return self._earlier + time.perf_counter() - self._begun

    def record(self, step: int, parts: Parts, images: int) -> None:
        """Take in the loss parts of one step, whose batch (of all processes) had ``images`` images."""
        if clash := [name for name in parts if name in _OWN or name.startswith("eval/")]:
            raise ValueError(
                f"a loss part is called {clash[0]!r}; wanted another name than {_OWN} and eval/*"
            )
        self._waiting.append(
            (step, {k: v.detach() if isinstance(v, Tensor) else v for k, v in parts.items()})
        )
        self.images += images
        if self.runtime.device.type == "cpu":
            self.settle()
        if self.runtime.world == 1 and time.perf_counter() - self._said > _SILENCE:
            self._sign_of_life(step)

    def settle(self) -> None:
        """Fetch the waiting values. Raises: BookError for the first one that is not finite."""
        for (step, parts), row in zip(self._waiting, _fetch(self._waiting), strict=True):
            for name in parts:
                if not math.isfinite(row[name]):
                    seen = f"loss part {name!r} is {row[name]} at step {step} of {self.path.parent.name}"
                    raise BookError(seen, "a finite number", last_good(self.path.parent))
            self._since.append(row)
            if step <= _FIRST:
                for name, value in self.runtime.mean(row).items():
                    self.first.setdefault(name, []).append(value)
        self._waiting.clear()

    def write(self, step: int, evaluated: Mapping[str, float]) -> None:
        """Close the interval: a row in the history, a line in log.jsonl, a line on the screen."""
        row, left = self._row(step, evaluated)
        self.rows.append(row)
        if self.runtime.is_main:
            _append(self.path, json.dumps(row, allow_nan=False) + "\n")
            self.say(_line(row, self.steps, left))
        self._since, self._mark, self._mark_images = [], time.perf_counter(), self.images

    def _row(self, step: int, evaluated: Mapping[str, float]) -> tuple[dict[str, Any], float]:
        """Return the row of the interval so far, and the seconds that are left."""
        self.settle()
        names = list(dict.fromkeys(name for row in self._since for name in row))
        columns = {name: [row[name] for row in self._since if name in row] for name in names}
        means = self.runtime.mean({name: math.fsum(col) / len(col) for name, col in columns.items()})
        elapsed = max(time.perf_counter() - self._mark, 1e-9)
        row: dict[str, Any] = {"step": step, **means}
        row |= {f"eval/{name}": value if math.isfinite(value) else None for name, value in evaluated.items()}
        row |= {"rate": (self.images - self._mark_images) / elapsed, "seconds": self.seconds}
        return row, (self.steps - step) * elapsed / max(1, len(self._since))

    def _sign_of_life(self, step: int) -> None:
        """A line on the screen within a long interval, and a look at its losses; no row in the history."""
        row, left = self._row(step, {})
        self.say(_line(row, self.steps, left))

    def say(self, text: str, *, loud: bool = False) -> None:
        """Print one line that begins with the run's name (process 0 only; not when quiet, unless loud)."""
        self._said = time.perf_counter()
        if self.runtime.is_main and (loud or not self.quiet):
            print(f"{self.path.parent.name}  {text}", flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the block's time into the rate."""
        before = time.perf_counter()
        yield
        self._mark += time.perf_counter() - before

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on; the rows themselves lie in log.jsonl."""
        self.settle()
        return {
            "since": self._since,
            "first": self.first,
            "images": self.images,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on after ``step``: later lines of log.jsonl (written, then lost by a crash) are cut off."""
        self._since, self.first, self.images = (
            list(state["since"]),
            dict(state["first"]),
            int(state["images"]),
        )
        self._earlier = float(state["seconds"])
        self.cut(step)
        self._begun = self._mark = time.perf_counter()
        self._mark_images = self.images

    def cut(self, step: int) -> None:
        """Keep the rows of log.jsonl up to ``step`` as history, and drop the rest, also from the file."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = [row for row in map(_parsed, lines) if row is not None and row["step"] <= step]
        if self.runtime.is_main and len(self.rows) != len(lines):
            atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))


def duration(seconds: float) -> str:
    """Return a length of time for people.

    >>> [duration(s) for s in (42.4, 200, 7500)]
    ['42 s', '3 min 20 s', '2 h 05 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _line(row: Mapping[str, Any], steps: int, left: float) -> str:
    width = len(str(steps))
    values = [f"{k} {v:.4g}" for k, v in row.items() if k not in _OWN and v is not None]
    rate = [f"{row['rate']:.3g} images/s"] if row["rate"] else []
    return "  ".join([f"{row['step']:>{width}}/{steps}", *values, *rate, f"{duration(left)} left"])


def _fetch(waiting: list[tuple[int, Parts]]) -> list[dict[str, float]]:
    """Return the waiting values as floats, with one transfer from the device."""
    tensors = [v for _, parts in waiting for v in parts.values() if isinstance(v, Tensor)]
    if bad := [t for t in tensors if t.numel() != 1]:
        raise ValueError(f"a loss part has shape {tuple(bad[0].shape)}; wanted a single number")
    # a step may count something on the CPU beside losses of the device
    away = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
    floats = iter(torch.stack([t.reshape(()).float().to(away) for t in tensors]).tolist() if tensors else [])
    return [
        {k: next(floats) if isinstance(v, Tensor) else float(v) for k, v in parts.items()}
        for _, parts in waiting
    ]


def _parsed(line: str) -> dict[str, Any] | None:
    """Return a line of the log, or None for one that a crash cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _append(path: Path, line: str) -> None:
    """Add a line to ``path`` and force it to the disk; when that fails the file is as it was."""
    data = line.encode()
    with told_if_full(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)
            raise
