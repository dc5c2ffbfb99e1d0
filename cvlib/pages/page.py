"""What a page asks for in its second code cell: its checked parameters and the way it is run."""

from __future__ import annotations

import ast
import contextlib
import os
import platform
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jupytext

from cvlib.errors import BookError
from cvlib.files import atomic_write
from cvlib.pages.pairing import definitions
from cvlib.pages.parameters import check_parameters, literals, notebook_parameters

if TYPE_CHECKING:  # torch takes seconds to import; `cvlib sync` and a parameter check do without it
    from torch import nn

    from cvlib.train import Runtime

__all__ = ["Page", "begin"]

INJECTED = "# Parameters\n"  # papermill opens the cell that it injects with this line


@dataclass(frozen=True)
class Page:
    """The way this page runs. ``parameters`` holds the values in force, defaults and overrides together."""

    chapter: str
    parameters: dict[str, Any] = field(default_factory=dict)
    smoke: bool = False  # CVLIB_SMOKE=1: the least work that still runs every cell
    static: bool = False  # CVLIB_STATIC=1: rendered for the book, so no live widget
    record: bool = False  # the page's own parameter ``record``; never in a smoke run
    started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def live(self) -> bool:
        """Whether widgets that need a kernel make sense: a reader runs the page, not the book or a test."""
        return not (self.static or self.smoke)

    def definitions(self, name: str) -> ModuleType:
        """Return what another page of the book defines; see :func:`cvlib.pages.definitions`."""
        from cvlib.claims.store import repository

        return definitions(repository() / "notebooks" / f"{name}.py")

    def weights(self, name: str) -> Path:
        """Return where the book keeps the weights ``name``; the file need not exist."""
        from cvlib.claims.store import results_root

        return results_root() / "weights" / f"{name}.safetensors"

    def keep_weights(
        self, name: str, module: nn.Module, metadata: dict[str, Any], scores: dict[str, float], limits: str
    ) -> None:
        """Write a module's weights as bf16 to where :meth:`weights` finds them, and its model card beside it.

        ``metadata`` goes into the file; its ``command``, ``data``, ``commit`` and ``licence`` onto the card.
        """
        import torch

        from cvlib.train import save_weights

        path = self.weights(name)
        save_weights(path, module, dtype=torch.bfloat16, metadata={**metadata, "scores": scores})
        count = sum(parameter.numel() for parameter in module.parameters())
        lines = [f"# {name}", "", f"{type(module).__name__}, {count:,} parameters, bf16.", ""]
        lines += [f"- {key}: {metadata[key]}" for key in ("command", "data", "commit", "licence")]
        lines += [f"- {key}: {value:.4g}" for key, value in scores.items()]
        atomic_write(path.with_suffix(".md"), "\n".join([*lines, f"- limits: {limits}", ""]))

    def finish(self, runtime: Runtime) -> None:
        """Show the box "what ran here": device, time, peak memory, versions, commit, parameters in force."""
        from cvlib.show import table
        from cvlib.train import git_commit, peak_mb

        scale = "smoke" if self.smoke else "the parameters below"
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        rows = [
            ["device", runtime.describe()],
            ["time of this page", f"{minutes} min {seconds} s"],
            ["peak memory", f"{peak_mb(runtime.device):,.0f} MB"],
            ["Python", platform.python_version()],
            ["commit", git_commit()[:12]],
            ["scale", scale],
            *([name, repr(value)] for name, value in self.parameters.items()),
        ]
        table(rows, ["what ran here", ""])


def _only_literals(source: str) -> dict[str, Any]:
    """Return the values of a cell that assigns literals and does nothing else, or nothing."""
    with contextlib.suppress(BookError, SyntaxError):
        found = literals(source)
        return found if len(found) == len(ast.parse(source).body) else {}
    return {}


def _cells(namespace: MutableMapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return defaults and overrides as the running page shows them: kernel history, or the script's cells."""
    history = [cell for cell in namespace.get("In", ()) if cell.strip()]
    for place in range(len(history) - 1, 0, -1):
        if history[place].startswith(INJECTED):  # papermill puts it right below the tagged cell
            return literals(history[place - 1]), literals(history[place])
    if not history and namespace.get("__file__"):
        return notebook_parameters(jupytext.read(namespace["__file__"], fmt="py:percent"))
    return next(filter(None, map(_only_literals, reversed(history))), {}), {}


def _on(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def begin(chapter: str, namespace: MutableMapping[str, Any], **only: Any) -> Page:
    """Return how this page runs, after checking the parameters that were passed to it.

    Call it in the cell after ``parameters`` as ``page = begin("taming", globals())``. An unknown name or a
    wrong type stops the run (papermill alone would only log it). An int is welcome where a float is wanted.
    ``only`` names parameters that every story has and this page cannot change, with their one value: who
    asks for another is told, and not given what was not asked for.
    Under a launcher only the first process prints.

    Raises: BookError naming the value seen and the values or type wanted.
    """
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes the first speaks for all; errors pass
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # open for the rest of the process
    known, given = _cells(namespace)
    check_parameters(given, known, chapter)
    values = {name: namespace.get(name, default) for name, default in known.items()}
    for name, value in only.items():
        if values.get(name, value) != value:
            raise BookError(f"{name} is {values[name]!r} on {chapter}", f"{value!r}, the only one it knows")
    smoke = _on("CVLIB_SMOKE")
    record = bool(namespace.get("record", False)) and not smoke
    return Page(chapter, values, smoke, _on("CVLIB_STATIC"), record)
