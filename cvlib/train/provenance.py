"""What a number rests on: commit, command, memory."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]  # asked before use

__all__ = ["command_line", "git_commit", "peak_mb"]

_LEFT_BEHIND = (  # rules and weights, which lie in book/results too, are what runs rest on: they count
    ":(top,exclude)book/results/runs",
    ":(top,exclude,glob)book/results/*.json",
    ":(top,exclude)book/chapters",
)


def git_commit(folder: str | os.PathLike[str] | None = None) -> str:
    """Return the commit that ``folder`` (default: the library's) stands on, "+" after it if files differ.

    What runs leave behind, their results and the book's chapters, does not count: a ledger that is being
    written changes no code. Rules and weights do. Returns "unknown" outside a git checkout.
    """
    where = Path(folder) if folder else Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        changed = commit and git("status", "--porcelain", "-uno", "--", ":/", *_LEFT_BEHIND)
        return commit + ("+" if changed else "") or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def command_line() -> str:
    """Return the command that started this process, without the folders of this machine.

    A runner that starts kernels says its own command in ``CVLIB_COMMAND``.
    """
    if told := os.environ.get("CVLIB_COMMAND"):
        return told
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program.startswith("ipykernel") or "ipykernel" in sys.modules:
        return "notebook"
    return shlex.join([program, *sys.argv[1:]])


def peak_mb(device: torch.device) -> float:
    """Return the most memory in MiB that this process held so far: the card's on CUDA, else main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # getrusage also counts what the parent held when it started this one
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) / 1024
    if resource is None:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
