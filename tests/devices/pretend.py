"""A second device that needs no hardware: its tensors compute on the CPU, but refuse to meet the CPU's.

Most of what breaks on a graphics card and nowhere else is a tensor left behind: images that were never moved,
an index of the wrong side, a generator of the CPU, ``numpy()`` of what lies on the card. A :class:`Held`
tensor wraps an ordinary one and says that it lies on "meta", the one device beside the CPU that every build
of PyTorch can differentiate on; each operation looks at what it is given, and raises where CUDA or MPS would.
Values are the CPU's to the last bit. What it cannot show: how a card is chosen (``tests/train`` asks that),
kernels that a card lacks, bf16 and TF32, speed, and what runs of more steps than smoke scale reach.

``python tests/devices/pretend.py notebooks/*.py`` runs pages on it, at smoke scale.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
DEVICE = torch.device("meta")
PUTS = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
IN_PLACE = {aten.copy_.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._to_copy.default}
FILLS = {aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.rsub.Tensor}


class Held(Tensor):
    """A tensor on the device that is none; ``held`` is the one that computes."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Held:
        new = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        new.held = held
        return new

    @property
    def is_meta(self) -> bool:
        """False: there are numbers, and modules may load theirs."""
        return False

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"{_shapes([self])} lies on the device: call cpu() before numpy()")

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Held({self.held!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = Held(self.held.detach().clone())
        if isinstance(self, nn.Parameter):
            copy = nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


#: How often each operation has run on the device.
ran: Counter[str] = Counter()


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(t.shape)) for t in tensors)


def _check(func: Any, args: Any, kwargs: Any, ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Raise where CUDA raises; point by point it takes a single number from the CPU, and places anywhere."""
    if func in FILLS or func in PUTS or torch.Tag.pointwise in func.tags:
        theirs = [t for t in theirs if t.dim()]
    said = f"{func} met {_shapes(ours)} of the device and {_shapes(theirs)} of the CPU"
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU draws for the device")
    if not ours or not theirs or func in COPIES:
        return
    if func is aten.index.Tensor or func in PUTS:
        if not isinstance(args[0], Held):
            raise RuntimeError(f"{said}: a tensor of the CPU is indexed")
        if func in PUTS and args[2].dim() and not isinstance(args[2], Held):
            raise RuntimeError(f"{said}: values of the CPU are put into it")
        return
    raise RuntimeError(f"{said}: expected all on one device")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    ran[str(func)] += 1
    flat, spec = tree_flatten((args, kwargs))
    ours = [t for t in flat if isinstance(t, Held)]
    theirs = [t for t in flat if isinstance(t, Tensor) and not isinstance(t, Held)]
    _check(func, args, kwargs, ours, theirs)
    wanted = kwargs.get("device")
    if wanted is not None:
        is_there = torch.device(wanted) == DEVICE
    else:
        is_there = isinstance(args[0], Held) if func in IN_PLACE else bool(ours)
    known = {id(t.held): t for t in ours}
    inner, named = tree_unflatten([t.held if isinstance(t, Held) else t for t in flat], spec)
    if wanted is not None:
        named = {**named, "device": torch.device("cpu")}
    out = func(*inner, **named)
    if is_there and any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_flatten(out)[0]):
        raise TypeError(
            f"{func} makes float64, which MPS does not have: compute it on the CPU, or in float32"
        )
    if not is_there:
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) and id(x) in known else x, out)
    return tree_map(
        lambda x: known[id(x)] if id(x) in known else Held(x) if isinstance(x, Tensor) else x, out
    )


class _Operations(TorchDispatchMode):
    """Sees what makes tensors on the device from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        is_there = device is not None and torch.device(device) == DEVICE
        if is_there or any(isinstance(t, Held) for t in tree_flatten((args, kwargs))[0]):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Literals(TorchFunctionMode):
    """``torch.tensor([1, 2], device=...)`` and ``x.new_tensor(1)`` never reach an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == DEVICE:
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(DEVICE)
        if func is Tensor.new_tensor and isinstance(args[0], Held):
            return func(args[0].held, *args[1:], **kwargs).to(DEVICE)
        return func(*args, **kwargs)


def _as_on_a_card(prepare: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return ``Runtime.prepare`` with CUDA's memory format, in which ``view`` fails where it does there."""

    def prepared(runtime: Any, module: nn.Module) -> nn.Module:
        module = prepare(runtime, module)
        if any(p.ndim == 4 for p in module.parameters()):
            module.to(memory_format=torch.channels_last)
        return module

    return prepared


@contextmanager
def pretend() -> Iterator[torch.device]:
    """Give the device; meanwhile every :class:`~cvlib.train.Runtime` picks it, whatever it is asked for."""
    from cvlib.train import runtime

    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

    def cast(device: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device == DEVICE.type else autocast(device, *args, **kwargs)

    def is_cast(device: str = "cpu") -> bool:
        return device != DEVICE.type and is_enabled(device)

    ran.clear()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # else Module.to() keeps what is held
    with (
        mock.patch.object(runtime, "_pick_device", lambda *_: DEVICE),
        mock.patch.object(runtime.Runtime, "prepare", _as_on_a_card(runtime.Runtime.prepare)),
        mock.patch.object(torch, "autocast", cast),
        mock.patch.object(torch, "is_autocast_enabled", is_cast),
        _Literals(),
        _Operations(),
    ):
        try:
            yield DEVICE
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)


def run(page: str) -> None:
    """Run a page on the device and say how many operations ran there."""
    with pretend():
        runpy.run_path(page, run_name="__main__")
    print(f"{Path(page).stem}: {ran.total():,} operations on the device")


def _apart(page: Path) -> bool:
    """Run a page in a process and folder of its own; print its last line, or more if it failed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as room:
        there = shutil.copy(page, room)
        asked = {**os.environ, "CVLIB_SMOKE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, there]
        done = subprocess.run(
            command, cwd=room, env=asked, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    lines = done.stdout.splitlines()
    shown = "\n".join(lines[-40:]) + f"\n{page.stem} FAILED" if done.returncode else lines[-1]
    print(f"{shown}, {time.monotonic() - begun:.0f} s", flush=True)
    return not done.returncode


def main(pages: list[str]) -> int:
    """Run one page here, or several apart, as many at once as there are cores."""
    if len(pages) == 1:
        os.environ["CVLIB_SMOKE"] = "1"
        run(pages[0])
        return 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as crew:
        return 0 if all(list(crew.map(_apart, map(Path, pages)))) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
