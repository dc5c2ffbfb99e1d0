"""What a run was asked to do: a canonical text, its digest, and the folder that carries its name."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvlib.errors import BookError

__all__ = ["canonical", "canonical_json", "config_differences", "config_digest", "run_folder"]

_EXACT = 2**53  # integers up to here are exact as floats


def canonical(value: Any, name: str = "config") -> Any:
    """Return ``value`` with only JSON types: tuples as lists, paths as text, 2.0 as 2 (RFC 8785).

    Raises: BookError for anything that has no such form (an object, NaN, a key that is not text).
    """
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise BookError(f"{name} has the key {bad[0]!r}", "text keys")
        return {key: canonical(value[key], f"{name}.{key}") for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BookError(f"{name} is {value}", "a finite number")
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise BookError(f"{name} is {value!r} ({type(value).__name__})", "numbers, text, lists and dictionaries")


def canonical_json(config: Mapping[str, Any]) -> str:
    """Return the one JSON text of ``config``: keys sorted, no blanks, floats with all their digits."""
    return json.dumps(canonical(config), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of :func:`canonical_json`.

    >>> config_digest({"lr": 1.0, "ch": (1, 2)}) == config_digest({"ch": [1, 2], "lr": 1})
    True
    >>> config_digest({"lr": 0.1}) == config_digest({"lr": 0.1000001})
    False
    """
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()


def run_folder(root: str | os.PathLike[str], stage: str, config: Mapping[str, Any]) -> Path:
    """Return ``root/<stage>-<first 8 digits of the digest>``: another configuration, another folder.

    >>> run_folder("runs", "vqgan", {"seed": 0}).as_posix()
    'runs/vqgan-bd048884'
    """
    return Path(root) / f"{stage}-{config_digest(config)[:8]}"


def config_differences(run: Any, asked: Any, name: str = "") -> list[str]:
    """Return one text per entry in which two canonical configurations differ.

    >>> config_differences({"lr": 0.1, "net": {"ch": 32}}, {"lr": 0.2, "net": {"ch": 32}, "seed": 1})
    ['lr: run has 0.1, you asked 0.2', 'seed: run has nothing, you asked 1']
    """
    if isinstance(run, dict) and isinstance(asked, dict):
        found: list[str] = []
        for key in sorted(run.keys() | asked.keys()):
            inner = f"{name}.{key}" if name else key
            if key not in run:
                found.append(f"{inner}: run has nothing, you asked {json.dumps(asked[key])}")
            elif key not in asked:
                found.append(f"{inner}: run has {json.dumps(run[key])}, you asked nothing")
            else:
                found += config_differences(run[key], asked[key], inner)
        return found
    if run == asked:
        return []
    return [f"{name}: run has {json.dumps(run)}, you asked {json.dumps(asked)}"]
