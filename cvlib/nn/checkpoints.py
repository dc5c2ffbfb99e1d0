"""Checkpoints that others released: the tensors in them, by name, and nothing that a file could run."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvlib.errors import BookError
from cvlib.train.weights import read_tensors

__all__ = ["read_state"]

# where a whole training's checkpoint keeps the weights: most trainers, and that of the CompVis papers of 2020
_INSIDE = ("state_dict", "model")
# what stands before every name: a network trained on several cards, or kept as a field of another one
_BEFORE = ("module.", "model.")
# what torch raises on bytes that are no checkpoint, half of one, or one with objects in it
_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    struct.error,
)


def read_state(path: str | os.PathLike[str], wanted: str = "a file of weights") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, on the CPU and in the file's types.

    The file is a bare state dict, a training's checkpoint that has one under "state_dict" or "model" beside
    its loss and optimiser, or .safetensors. A "module." or "model." before every name is taken off. It is
    read with ``weights_only=True``: what is neither tensor nor plain data is refused, and does not run.
    ``wanted`` tells in errors what the file should be.

    Raises: BookError if the file is absent or damaged, or if its weights are anything but tensors by name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise BookError(f"{file} does not exist", wanted)
    found = read_tensors(file) if file.suffix == ".safetensors" else _inside(_load(file))
    if not isinstance(found, Mapping) or not found:
        raise BookError(f"{file} holds a {type(found).__name__}, not tensors by name", "a state dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            seen = f"{file} holds a {type(value).__name__} under {name!r}, not tensors by name"
            raise BookError(seen, "a state dict of tensors alone")
    return _bare(found)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BookError(
            f"{path} cannot be read as weights ({why[:120]})",
            "a state dict of tensors alone",
            "fetch it again, or save model.state_dict() of a model you trust",
        ) from error


def _inside(found: Any) -> Any:
    """Return the state dict within a training's checkpoint, or ``found`` itself."""
    if isinstance(found, Mapping):
        for name in _INSIDE:
            if isinstance(found.get(name), Mapping):
                return found[name]
    return found


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` without what stands before every one of its names."""
    for before in _BEFORE:
        if all(name.startswith(before) for name in state):
            return _bare({name.removeprefix(before): value for name, value in state.items()})
    return dict(state)
