"""Weights as safetensors: tensors and a JSON note, no code that a file could run."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cvlib.errors import BookError
from cvlib.files import atomic_path

__all__ = [
    "load_into",
    "load_weights_file",
    "read_tensors",
    "save_weights",
    "weights_metadata",
    "write_tensors",
]


def save_weights(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights and buffers of ``module`` to ``path`` (.safetensors), atomically.

    ``dtype`` (say ``torch.bfloat16``, half the size) casts floating tensors only. ``metadata`` is anything
    JSON can hold: model configuration, training command, commit; :func:`weights_metadata` returns it.

    Raises: BookError if the disk is full.
    """
    tensors = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    with atomic_path(path) as aside:
        write_tensors(aside, tensors, metadata)


def load_weights_file(path: str | os.PathLike[str], module: nn.Module) -> dict[str, Any]:
    """Fill ``module`` from ``path`` (cast to the module's types) and return the file's metadata.

    Raises: BookError if the file is absent or damaged, or if a name or shape differs; ``module`` is then
    unchanged.
    """
    load_into(module, read_tensors(path), str(path))
    return weights_metadata(path)


def weights_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata given to :func:`save_weights`, without reading the tensors."""
    _check_size(Path(path))
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads((file.metadata() or {}).get("cvlib", "{}"))
    return found


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill ``module`` from ``tensors``, all of them or none; ``source`` is named in errors.

    Raises: BookError if a name is missing or unknown or a shape differs.
    """
    own = module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        named = [("lacks", missing), ("has unknown", unknown)]
        seen = " and ".join(f"{verb} {len(names)} weights ({names[0]})" for verb, names in named if names)
        raise BookError(f"{source} {seen}", f"the weights of {type(module).__name__}", _OTHER)
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            shape = tuple(tensors[name].shape)
            raise BookError(f"{source} has {name} of shape {shape}", f"{tuple(tensor.shape)}", _OTHER)
    module.load_state_dict(dict(tensors))


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file (on the CPU, in the file's types).

    Raises: BookError if the file is absent, cut off or damaged.
    """
    _check_size(Path(path))
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no plain iteration


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write ``tensors`` to ``path`` as they are (not atomic: for use inside ``atomic_path``).

    Tensors that share memory (tied weights) are written once each.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        place = flat.untyped_storage().data_ptr()
        plain[name] = flat.clone() if place in seen else flat
        seen.add(place)
    note = {"cvlib": json.dumps(metadata, sort_keys=True)} if metadata else None
    path.touch()
    mode = path.stat().st_mode  # an ordinary file's; the writer makes private ones
    try:
        save_file(plain, path, metadata=note)
        path.chmod(mode)
    except SafetensorError as error:  # its writer hides the system's error number
        if "No space left" in str(error) or f"code: {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


_OTHER = "it belongs to another configuration: use the one it was trained with, or another file"


def _check_size(path: Path) -> None:
    """Raise BookError unless the file is as long as its own header says."""
    if not path.is_file():
        raise BookError(f"{path} does not exist", "a .safetensors file")
    size = path.stat().st_size
    again = "it is damaged: delete it and make or fetch it again"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise BookError(f"{path} has {size} bytes and no safetensors header", "a whole file", again)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BookError(f"{path} has an unreadable header", "a whole safetensors file", again) from error
    if size != (wanted := 8 + length + max(ends, default=0)):
        raise BookError(f"{path} has {size} bytes", f"{wanted}, as its header says", again)
