"""The parameters of a page: literals in one tagged cell, checked when a run passes its own."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from cvlib.errors import BookError

__all__ = ["check_parameters", "literals", "notebook_parameters"]


def literals(source: str) -> dict[str, Any]:
    """Return the names that a parameters cell assigns, with their literal values, in order.

    Raises: BookError if a value is not a literal, since other scales could then not override it.

    >>> literals("steps = 400  # paper: 500_000\\nrate: float = 1e-3")
    {'steps': 400, 'rate': 0.001}
    """
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            name, value = node.target.id, node.value
        else:
            continue
        try:
            found[name] = ast.literal_eval(value)
        except ValueError as error:
            seen = f"parameter {name} = {ast.unparse(value)}"
            raise BookError(seen, "a literal", "derive values in the next cell") from error
    return found


def _fits(value: object, default: object) -> bool:
    """Tell whether ``value`` may replace ``default``: same type, an int for a float, or no default type."""
    if default is None or type(value) is type(default):
        return True
    return isinstance(default, float) and type(value) is int


def check_parameters(given: Mapping[str, Any], known: Mapping[str, Any], page: str) -> None:
    """Check that every given parameter exists on the page and has the type of its default.

    Raises: BookError naming the first misfit: the value seen, what is wanted, and what to do.

    >>> check_parameters({"stepz": 3}, {"seed": 0, "steps": 400}, "taming")
    Traceback (most recent call last):
    cvlib.errors.BookError: unknown parameter stepz = 3 on page taming; wanted one of seed, steps; \
did you mean steps?
    >>> check_parameters({"rate": 1}, {"rate": 0.5}, "taming")
    """
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise BookError(
                f"unknown parameter {name} = {value!r} on page {page}",
                "one of " + ", ".join(sorted(known)),
                f"did you mean {close[0]}?" if close else "",
            )
        if not _fits(value, known[name]):
            raise BookError(
                f"parameter {name} is {value!r} ({type(value).__name__}) on page {page}",
                f"{type(known[name]).__name__}, such as {known[name]!r}",
                f"pass for example -p {name} {known[name]!r}",
            )


def _tagged(notebook: Any, tag: str) -> str:
    """Return the source of the first cell with ``tag``, or nothing."""
    cells = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))
    return next((cell.source for cell in cells), "")


def notebook_parameters(notebook: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the defaults and the injected values of a notebook's two tagged parameter cells."""
    return literals(_tagged(notebook, "parameters")), literals(_tagged(notebook, "injected-parameters"))
