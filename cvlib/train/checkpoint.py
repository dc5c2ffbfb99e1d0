"""Checkpoints: everything a run needs to go on as if it had never stopped, without pickle.

A checkpoint is a folder ``checkpoint-00000400`` that appears at once and whole::

    weights.safetensors     all modules, names "module.weight"
    optimizers.safetensors  moments and counters; also rng, ema, extras when there are any
    state.json              the plain numbers beside the tensors: step, data position, learning rates
    manifest.json           bytes and SHA-256 of each file
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cvlib.errors import BookError
from cvlib.files import atomic_folder, sha256
from cvlib.train.weights import load_into, read_tensors, write_tensors

__all__ = [
    "join_modules",
    "last_good",
    "latest_checkpoint",
    "load_optimizer",
    "pack",
    "prune_checkpoints",
    "read_checkpoint",
    "split_modules",
    "unpack",
    "write_checkpoint",
]

_NAME = re.compile(r"checkpoint-(\d{8,})")


def write_checkpoint(
    folder: Path, step: int, weights: Mapping[str, Tensor], parts: Mapping[str, Any]
) -> Path:
    """Write ``folder/checkpoint-<step>`` and return it; each of ``parts`` is any :func:`pack`-able tree.

    Raises: BookError if the disk is full; no trace of the attempt is left then.
    """
    target = folder / f"checkpoint-{step:08d}"
    with atomic_folder(target) as aside:
        write_tensors(aside / "weights.safetensors", weights)
        trees = {}
        for name, part in parts.items():
            tensors: dict[str, Tensor] = {}
            trees[name] = pack(part, tensors)
            if tensors:
                write_tensors(aside / f"{name}.safetensors", tensors)
        (aside / "state.json").write_text(json.dumps({"step": step, **trees}))
        files = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in sorted(aside.iterdir())}
        manifest = {"format": 1, "step": step, "files": files}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return target


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the parts of a checkpoint, after comparing every file with the manifest.

    Raises: BookError that names the file, its size and the size wanted, if anything is missing or changed.
    """
    manifest = _verified(checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    parts = {}
    for name, tree in state.items():
        file = f"{name}.safetensors"
        parts[name] = unpack(tree, read_tensors(checkpoint / file) if file in manifest["files"] else {})
    return read_tensors(checkpoint / "weights.safetensors"), parts


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the highest step in ``folder``, or None."""
    return max(_checkpoints(folder), default=None, key=lambda path: int(path.name.split("-")[1]))


def last_good(folder: Path) -> str:
    """Return what to do after numbers went wrong: where the last good weights lie and what helps."""
    checkpoint = latest_checkpoint(folder)
    where = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written yet"
    return f"{where}; lower the learning rate or clip the gradients, which makes it another run"


def prune_checkpoints(folder: Path, keep: int = 2) -> None:
    """Delete all but the last ``keep`` checkpoints; each goes out of sight first, so none is seen in half."""
    for old in sorted(_checkpoints(folder), key=lambda path: int(path.name.split("-")[1]))[:-keep]:
        gone = old.rename(old.with_name(f".old-{old.name}"))
        shutil.rmtree(gone, ignore_errors=True)


def join_modules(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of several modules in one dictionary, names ``module.weight``."""
    return {f"{name}.{key}": t for name, m in modules.items() for key, t in m.state_dict().items()}


def split_modules(weights: Mapping[str, Tensor], modules: Mapping[str, nn.Module], source: str) -> None:
    """Fill ``modules`` from what :func:`join_modules` returned; ``source`` is named in errors.

    Weights of modules that are not asked for are left out. Raises: BookError if names or shapes differ.
    """
    for name, module in modules.items():
        start = f"{name}."
        own = {k.removeprefix(start): t for k, t in weights.items() if k.startswith(start)}
        if not own and module.state_dict():
            have = ", ".join(sorted({key.split(".")[0] for key in weights}))
            raise BookError(f"{source} holds no module {name!r}", f"one of: {have}")
        load_into(module, own, f"{source} ({name})")


def load_optimizer(optimizer: Optimizer, state: dict[str, Any], source: str) -> None:
    """Put a kept ``state_dict`` into ``optimizer``, moments in the memory format of their parameters.

    The format matters: vectorised kernels may round differently over another order of memory.

    Raises: BookError if the optimiser has other groups.
    """
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if (kept := [len(group["params"]) for group in state["param_groups"]]) != sizes:
        raise BookError(f"{source} has an optimiser with groups of {kept} weights", f"{sizes}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state["state"].items():
        for key, value in moments.items():
            if isinstance(value, Tensor):  # copies: what was read may still lie in the file
                same = value.shape == parameters[index].shape
                like = parameters[index] if same else value
                moments[key] = torch.empty_like(like, dtype=value.dtype).copy_(value).detach()
    optimizer.load_state_dict(state)


def pack(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Return ``tree`` in JSON types; its tensors go to ``tensors`` under the path that leads to them.

    Raises: TypeError for anything but dictionaries, lists, tuples, tensors, numbers, text and None.

    >>> found = {}; tree = {"a": (1, torch.ones(2)), 3: None}
    >>> unpack(pack(tree, found), found)
    {'a': (1, tensor([1., 1.])), 3: None}
    >>> list(found)
    ['a/1']
    """
    if isinstance(tree, Tensor):
        while name in tensors:  # {"a/b": x} beside {"a": {"b": y}}
            name += "+"
        tensors[name] = tree
        return {"tensor": name}
    inner = f"{name}/" if name else ""
    if isinstance(tree, Mapping):
        return {"dict": [[key, pack(value, tensors, f"{inner}{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [pack(value, tensors, f"{inner}{i}") for i, value in enumerate(tree)]
        return {"tuple": items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"cannot keep {name or 'this'}: {type(tree).__name__}")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`pack` was given."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(unpack(item, tensors) for item in tree["tuple"])
    return {key: unpack(value, tensors) for key, value in tree["dict"]}


def _checkpoints(folder: Path) -> Iterable[Path]:
    return [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]


def _verified(checkpoint: Path) -> dict[str, Any]:
    """Return the manifest if every file is as long and as it was when written; else raise BookError."""
    others = [path for path in _checkpoints(checkpoint.parent) if path != checkpoint]
    goes_on = f"go on from {max(others).name}" if others else "start again from step 0"
    do = f"delete the folder {checkpoint} to {goes_on}"
    try:
        manifest: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text())
        wanted = {name: (int(f["bytes"]), str(f["sha256"])) for name, f in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BookError(
            f"{checkpoint / 'manifest.json'} is missing or unreadable", "a list of files", do
        ) from error
    for name, (size, digest) in wanted.items():
        file = checkpoint / name
        if not file.is_file():
            raise BookError(f"{file} is missing", f"{size} bytes", do)
        if (seen := file.stat().st_size) != size:
            raise BookError(f"{file} has {seen} bytes", f"{size}", do)
        if sha256(file) != digest:
            raise BookError(
                f"{file} is damaged: its {size} bytes have another SHA-256", f"{digest[:12]}...", do
            )
    return manifest
