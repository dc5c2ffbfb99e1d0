"""Races: our code and a peer take turns, so that a machine which is busy with something else slows both.

Who goes first changes from round to round: the second finds memory and caches as the first left them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from cvlib.claims.performance import Row
from cvlib.errors import BookError
from cvlib.train.provenance import peak_mb

__all__ = ["operations_per_second", "race", "race_apart", "report"]

T = TypeVar("T")

_CPU = torch.device("cpu")


def _clock(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, with what it left running on the device."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - start


def _in_turn(entrants: dict[str, T], i: int) -> list[tuple[str, T]]:
    """Return the entrants of round ``i`` with their names, every other time turned round."""
    return list(entrants.items())[:: -1 if i % 2 else 1]


def operations_per_second(device: torch.device = _CPU, n: int = 1024) -> float:
    """Return the multiplications and additions a second of a product of two n x n matrices, best of three.

    In float32; the most that a device gives, so that N operations cannot take less time than N / this.
    """
    a, b = torch.randn(2, n, n, device=device)
    seconds = [_clock(lambda: a @ b, device) for _ in range(4)]  # the first warms up
    return 2 * n**3 / min(seconds[1:])


def race(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    *,
    rounds: int,
    made: tuple[int, int] | None = None,
    operations: float | None = None,
    device: torch.device = _CPU,
) -> Row:
    """Return the row of two calls: milliseconds a call, or images/s where ``made`` says how many each makes.

    Both run once before the clock starts. ``operations`` are those that a call of ours cannot do without.
    """
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    calls = {"ours": ours, "peer": peer}
    for i in range(rounds + 1):
        for who, call in _in_turn(calls, i):
            took = _clock(call, device)
            if i:
                seconds[who].append(took)
    return _row(name, seconds, peer_name, made, operations, device)


def _row(
    name: str,
    seconds: dict[str, list[float]],
    peer_name: str,
    made: tuple[int, int] | None = None,
    operations: float | None = None,
    device: torch.device = _CPU,
    megabytes: tuple[float, float] | None = None,
) -> Row:
    """Return the row of the seconds of every round: what counts is the ratio within a round."""
    n_ours, n_peer = made or (1, 1)
    ratios = [(b / n_peer) / (a / n_ours) for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    ratio, mine = statistics.median(ratios), statistics.median(seconds["ours"]) / n_ours
    theirs = mine * ratio  # so that the two columns stand in the median ratio
    shown = (1 / mine, 1 / theirs) if made else (1e3 * mine, 1e3 * theirs)
    unit = "images/s" if made else "ms"
    floor = None
    if operations is not None:
        floor = operations / operations_per_second(device) / (mine * n_ours)
    memory = megabytes or (None, None)
    return Row(name, *shown, peer_name, unit, ratio, min(ratios), max(ratios), floor, *memory)


def race_apart(
    name: str,
    program: str,
    arguments: Sequence[int],
    peer_name: str,
    *,
    rounds: int,
    atol: float = 1e-6,
) -> Row:
    """Return the row of a Python program that ends in :func:`report`, with memory; each run is a process.

    Its first argument is "ours" or "peer", the others are ``arguments``.
    Raises: BookError if a run fails or the results of the two lie more than ``atol`` apart.
    """
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    megabytes, operations, found = {}, {}, {}
    for i in range(rounds):
        for who, _ in _in_turn(seconds, i):
            command = [sys.executable, "-c", program, who, *map(str, arguments)]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode:
                raise BookError(f"{name}: {who} ended with {ended.returncode}", "0", ended.stderr[-2000:])
            took, megabytes[who], operations[who], *found[who] = map(float, ended.stdout.split())
            seconds[who].append(took)
    if not np.allclose(found["ours"], found["peer"], rtol=0, atol=atol):
        raise BookError(f"{name}: {found['ours']} and {found['peer']}", f"results within {atol:g}")
    memory = (megabytes["ours"], megabytes["peer"])
    return _row(name, seconds, peer_name, operations=operations["ours"] or None, megabytes=memory)


def report(score: Callable[[int], tuple[float, ...]], n: int) -> None:
    """Print seconds, MB at the peak above what was held before, operations, and results of ``score(n)``.

    ``score(m)`` does the work on m items and returns the operations that it cannot do without (0: not known)
    and its results. It runs on a few items first, for imports and the first allocations.
    """
    score(min(n, 200))
    before, start = peak_mb(_CPU), time.perf_counter()
    operations, *results = score(n)
    seconds = time.perf_counter() - start
    print(seconds, peak_mb(_CPU) - before, operations, *results)
