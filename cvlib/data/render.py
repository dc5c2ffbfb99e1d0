"""Draw SVG files into rows of a pixel file; two processes share the work.

The second half of this file is what a worker runs: started by path, it imports nothing of the package (and so
no torch), and it can be started from a notebook or a script alike, which ``multiprocessing`` cannot.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

__all__ = ["draw_svg", "premultiply", "render_all"]

WORKERS = min(2, os.cpu_count() or 1)


def premultiply(rgba: np.ndarray) -> np.ndarray:
    """Return RGBA bytes (..., 4) with the colours multiplied by alpha / 255, rounded to the nearest."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return np.concatenate([(colour * alpha + 127) // 255, alpha], axis=-1).astype(np.uint8)


def draw_svg(text: str, side: int, margin: int) -> np.ndarray:
    """Return a square SVG drawn ``side`` pixels wide with ``margin`` clear pixels around it.

    The result is premultiplied RGBA, uint8, planar (4, side + 2 margin, side + 2 margin). System fonts are
    not looked at: the same file gives the same pixels on every machine. Raises: ValueError for a broken SVG.
    """
    png = resvg_py.svg_to_bytes(svg_string=text, width=side, height=side, skip_system_fonts=True)
    drawn = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    if drawn.shape != (side, side, 4):
        raise ValueError(f"drawn as {drawn.shape[1]} x {drawn.shape[0]} pixels, wanted {side} x {side}")
    edge = (margin, margin)
    return np.pad(premultiply(drawn).transpose(2, 0, 1), ((0, 0), edge, edge))


def render_all(
    names: list[str], texts: Iterable[str], target: Path, side: int, margin: int, workers: int = WORKERS
) -> None:
    """Write the drawings to ``target``, one after the other as bytes, with a line of progress every 5 s.

    Raises: RuntimeError naming the drawing that cannot be drawn, or the worker that died.
    """
    n, edge = len(names), side + 2 * margin
    with target.open("wb") as file:  # zeros now: a full disk is an error here, not a dead worker later
        for _ in range(n):
            file.write(bytes(4 * edge * edge))
    jobs = list(zip(range(n), names, texts, strict=True))
    start = time.monotonic()
    running: list[subprocess.Popen[str]] = []
    jobs_written: list[Path] = []
    try:
        for k in range(min(workers, n)):
            job = target.with_name(f"job-{k}.json")
            order = {"pixels": str(target), "n": n, "side": side, "margin": margin, "rows": jobs[k::workers]}
            job.write_text(json.dumps(order), encoding="utf-8")
            jobs_written.append(job)
            command = [sys.executable, "-P", str(Path(__file__).resolve()), str(job)]
            running.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        _watch(running, target, n, f"emoji at {side} px", start)
    finally:
        for process in running:
            process.kill()
            process.wait()
            if process.stderr:
                process.stderr.close()
        for job in jobs_written:
            for rest in (job, job.with_suffix(".done")):
                rest.unlink(missing_ok=True)


def _watch(running: list[subprocess.Popen[str]], target: Path, n: int, what: str, start: float) -> None:
    """Wait for the workers, telling now and then how far they are."""
    told = start
    while any(process.poll() is None for process in running):
        time.sleep(0.05)
        if any(process.poll() for process in running):
            break
        now = time.monotonic()
        if now - told < 5:
            continue
        told = now
        done = max(1, sum(_done(target.with_name(f"job-{k}.done")) for k in range(len(running))))
        left = (now - start) / done * (n - done)
        print(f"{what}: {done:,} of {n:,} drawn, {left:.0f} s left", file=sys.stderr, flush=True)
    for process in running:
        if process.poll():
            said = process.stderr.read().splitlines() if process.stderr else []
            error = said[-1] if said else f"the worker ended with {process.returncode}"
            raise RuntimeError(f"drawing SVG failed: {error}")
    print(f"{what}: {n:,} drawn in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def _done(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


def _work(job: Path) -> None:
    """Draw the rows of one job file into the pixel file they share."""
    order = json.loads(job.read_text(encoding="utf-8"))
    side, margin = order["side"], order["margin"]
    edge = side + 2 * margin
    pixels = np.memmap(order["pixels"], dtype=np.uint8, mode="r+", shape=(order["n"], 4, edge, edge))
    for count, (row, name, text) in enumerate(order["rows"]):
        try:
            pixels[row] = draw_svg(text, side, margin)
        except ValueError as error:
            raise SystemExit(f"{name}: {error}") from error
        if count % 50 == 0:
            job.with_suffix(".done").write_text(str(count))
    pixels.flush()


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
