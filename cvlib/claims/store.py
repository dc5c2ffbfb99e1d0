"""Where the evidence lies, and the one checker for what is written there."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvlib.errors import BookError
from cvlib.files import atomic_write

__all__ = ["chapters", "check", "read_json", "repository", "results_root", "write_json"]


def results_root() -> Path:
    """Return the folder book/results: ``CVLIB_RESULTS`` if set, else that of the repository around us.

    Looks upward from the working folder, then from this file. Raises: BookError outside a checkout.
    """
    if told := os.environ.get("CVLIB_RESULTS"):
        return Path(told)
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if (folder / "book").is_dir() and (folder / "cvlib").is_dir():
                return folder / "book" / "results"
    raise BookError(f"no book/results around {Path.cwd()}", "a checkout of the book", "or set CVLIB_RESULTS")


def repository() -> Path:
    """Return the repository's folder: two above :func:`results_root`."""
    return results_root().resolve().parents[1]


def chapters() -> list[str]:
    """Return the chapters that have rules, sorted."""
    return sorted(path.stem for path in (results_root() / "rules").glob("*.yaml"))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; BookError if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BookError(
            f"{path} is missing", do="run the chapter's claims page with record_results"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BookError(f"{path}: {error}", "JSON", "restore it with git checkout") from error


def write_json(path: Path, data: Any) -> Path:
    """Write JSON with one key a line, whole or not at all; refuses NaN. Returns the path."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    if json.loads(text) != data:  # the line above only closes up lists of numbers; never change a string
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")
    return path


def check(data: Any, schema: Mapping[str, Any], where: str) -> None:
    """Check that ``data`` is a mapping with exactly the schema's keys, each of its type.

    Schema: key to type (or union of types); a key that ends in "?" may be missing. Numbers must be finite.
    Raises: BookError with ``where`` (file, place) and the key.
    """
    if not isinstance(data, Mapping):
        raise BookError(f"{where}: {type(data).__name__} {str(data)[:60]!r}", "a mapping of keys to values")
    known = {key.rstrip("?"): wanted for key, wanted in schema.items()}
    for key in data:
        if key not in known:
            raise BookError(f"{where}: unknown key {key!r}", f"one of {', '.join(known)}")
    for key in schema:
        if not key.endswith("?") and key not in data:
            raise BookError(f"{where}: key {key!r} is missing", f"all of {', '.join(known)}")
    for key, value in data.items():
        wanted = known[key]
        fits = isinstance(value, wanted) and not (isinstance(value, bool) and wanted is not bool)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            name = getattr(wanted, "__name__", str(wanted))  # a union says itself
            seen = f"{str(value)[:60]!r} ({type(value).__name__})"
            raise BookError(f"{where}: {key} is {seen}", f"{name}, finite if a number")
