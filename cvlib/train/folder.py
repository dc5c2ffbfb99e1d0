"""A run's folder: whose it is, who may write in it, and what a crash left behind."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from cvlib.errors import BookError
from cvlib.files import atomic_write
from cvlib.train.configs import canonical, config_differences

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None  # type: ignore[assignment]  # asked before use

__all__ = ["Interrupted", "StopSignals", "claim", "locked", "read_json", "tidy"]


def claim(folder: Path, config: Mapping[str, Any], steps: int, *, write: bool = True) -> None:
    """Make ``folder`` the home of this configuration, or check that it already is.

    Raises: BookError with the differences if another configuration lives there.
    """
    asked = {"config": canonical(config), "steps": steps}
    file = folder / "config.json"
    if not file.exists():
        if any(folder.glob("checkpoint-*")):
            raise BookError(f"{folder} has checkpoints but no config.json", "a run's folder", _OTHER)
        if write:
            atomic_write(file, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
        return
    run = read_json(file)
    found = config_differences(run.get("config"), asked["config"])
    if run.get("steps") != steps:
        found.append(f"steps of this stage: run has {run.get('steps')}, you asked {steps}")
    if found:
        more = f" (and {len(found) - 6} more)" if len(found) > 6 else ""
        raise BookError(f"{file} is of another configuration: {', '.join(found[:6])}{more}", do=_OTHER)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the system lets go of it however the process ends.

    Raises: BookError if another process trains in it.
    """
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BookError(f"another process trains in {folder}", do="wait for it or stop it") from None
        yield


def tidy(folder: Path) -> None:
    """Remove what a crash left half-written: everything with a hidden name but the lock."""
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != ".lock":
            path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Return the dictionary in ``path``. Raises: BookError if it is absent or unreadable."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BookError(
            f"{path} is missing or unreadable", "JSON", f"delete {path.parent} to start again"
        ) from error
    if not isinstance(found, dict):
        raise BookError(f"{path} holds {type(found).__name__}", "a dictionary")
    return found


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the run was saved; a notebook shows its one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class StopSignals:
    """While entered, Ctrl-C and SIGTERM are noted instead of obeyed; ask :attr:`seen`, then :meth:`obey`.

    So a step is never left half done. A second signal is obeyed at once. Outside the main thread, where
    python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._old.clear()

    def obey(self, line: str) -> None:
        """Do what the signal asked for: raise :class:`Interrupted` or end the process."""
        self.__exit__()
        if self.seen == signal.SIGTERM:
            signal.raise_signal(signal.SIGTERM)
            raise SystemExit(128 + signal.SIGTERM)
        raise Interrupted(line)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen is not None:
            self.__exit__()
            signal.raise_signal(number)
        self.seen = number


_OTHER = "choose another run_dir, or delete this folder to start again"
