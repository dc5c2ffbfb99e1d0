"""Where and how a run computes: device, precision, memory format, processes."""

from __future__ import annotations

import atexit
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather, gather_object, reduce
from torch import Tensor, nn
from torch.optim import Optimizer

from cvlib.errors import BookError

__all__ = ["Runtime", "microbatches", "pays_bf16"]

M = TypeVar("M", bound=nn.Module)


class Runtime:
    """The machine as the training code sees it; ``"auto"`` picks what pays on this one.

    Device: CUDA, else MPS, else CPU. Precision: bf16 autocast on CUDA and on CPUs with bf16 units (weights
    stay fp32), else fp32. Under ``accelerate launch`` or ``torchrun`` there is one process per device, each
    with its share of the global batch.

    Gradients are averaged over processes just before an optimiser steps (:func:`fit` hooks this in), not
    while they are computed: the adaptive weight of Esser et al. 2021, Eq. (7) differentiates parts of the
    graph by ``torch.autograd.grad``, which DistributedDataParallel's bucketing does not allow.

    Raises: BookError for an unknown or absent device or precision.
    """

    def __init__(self, device: str = "auto", precision: str = "auto", compile: bool = False) -> None:
        # without a word about the CPU accelerate finds one process where no card is, however many there are
        self._processes = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        if self._processes.num_processes > 1:
            atexit.register(_part)
        self.device = _pick_device(device, self._processes)
        self.precision = _pick_precision(precision, self.device)
        self.compile = compile
        self._averaged: set[int] = set()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return int(self._processes.process_index)

    @property
    def world(self) -> int:
        """Number of processes that train together."""
        return int(self._processes.num_processes)

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    @property
    def fused(self) -> dict[str, bool]:
        """Keyword for optimisers, ``Adam(..., **runtime.fused)``: one kernel for all weights on CUDA."""
        return {"fused": True} if self.device.type == "cuda" else {}

    def describe(self) -> str:
        """Return device, precision and versions in one line, for logs and results."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
        many = f", {self.world} processes" if self.world > 1 else ""
        return f"{self.device.type} ({name}){many}, {self.precision}, torch {torch.__version__}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which products and convolutions run in bf16, if that is the precision."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def prepare(self, module: M) -> M:
        """Move ``module`` to the device in place and return it; on CUDA convolutions become channels_last.

        On a CPU they stay as they are: the backward pass of bf16 group normalisation is about ten times
        slower in channels_last there (torch 2.13), which costs more than the convolutions gain.

        With ``compile=True`` its forward is compiled (also in place, so that weight names stay). All
        processes receive the weights of process 0.
        """
        module.to(self.device)
        if self.device.type == "cuda" and any(p.ndim == 4 for p in module.parameters()):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it
        if self.compile and getattr(module, "_compiled_call_impl", None) is None:
            module.compile()
        self.broadcast(module)
        return module

    def to_device(self, batch: Any) -> Any:
        """Return ``batch`` (a tensor, or a dictionary or list with tensors) on the device."""
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, dict):
            return {key: self.to_device(value) for key, value in batch.items()}
        if isinstance(batch, list | tuple):
            return type(batch)(self.to_device(value) for value in batch)
        return batch

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """Back-propagate from a loss, or from any tensor with the ``gradient`` that arrives at it."""
        tensor.backward(gradient)

    def clip(self, optimizer: Optimizer, max_norm: float) -> float:
        """Scale the optimiser's gradients to a joint L2 norm of at most ``max_norm``; return the norm before.

        With several processes the gradients are averaged first: it is the global batch's norm that counts.
        """
        self.average_gradients(optimizer)
        self._averaged.add(id(optimizer))
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))

    def average_gradients(self, optimizer: Optimizer) -> None:
        """Replace the gradients of the optimiser's parameters by their mean over all processes."""
        if self.world == 1 or id(optimizer) in self._averaged:
            self._averaged.discard(id(optimizer))
            return
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return
        mean = reduce(torch.cat([g.reshape(-1).float() for g in gradients]), reduction="mean")
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def average(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, without gradient."""
        return tensor.detach() if self.world == 1 else reduce(tensor.detach().clone(), reduction="mean")

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of each value over all processes."""
        if self.world == 1 or not values:
            return values
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        vector = torch.tensor(list(values.values()), device=self.device, dtype=dtype)
        return dict(zip(values, reduce(vector, reduction="mean").tolist(), strict=True))

    def maximum(self, value: int) -> int:
        """Return the largest ``value`` that any process holds: one vote is enough."""
        return int(self.gather(torch.tensor([value], device=self.device)).max())

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the rows of all processes' tensors (B, ...), (world B, ...), without gradient.

        They come in the order of the global batch, of which process r holds the rows r, r + world, ...
        """
        if self.world == 1:
            return tensor.detach()
        rows = gather(tensor.detach().contiguous())
        return rows.unflatten(0, (self.world, -1)).transpose(0, 1).flatten(0, 1)

    def gather_objects(self, value: Any) -> list[Any]:
        """Return every process's small python value, in order of rank."""
        return [value] if self.world == 1 else list(gather_object([value]))

    def broadcast(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers that process 0 holds."""
        if self.world == 1:
            return
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.copy_(broadcast(tensor.detach().clone(memory_format=torch.contiguous_format)))

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        self._processes.wait_for_everyone()


def microbatches(batch: dict[str, Any], pieces: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield ``batch`` in ``pieces`` with each one's share of the rows, to accumulate gradients.

    The sum of ``share * mean_loss(piece)`` is the mean loss of the whole batch, also when rows do not
    divide evenly.

    >>> [(list(p["x"]), s) for p, s in microbatches({"x": torch.arange(3)}, 2)]
    [([tensor(0), tensor(1)], 0.6666666666666666), ([tensor(2)], 0.3333333333333333)]
    """
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor))
    size = -(-rows // pieces)
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        cut = {k: v[start:stop] if isinstance(v, Tensor) else v for k, v in batch.items()}
        yield cut, (stop - start) / rows


def pays_bf16(device: torch.device) -> bool:
    """Return whether bf16 autocast is faster than fp32 here: CUDA since Ampere, CPUs with bf16 units.

    A CPU without AVX512-BF16 or AMX emulates bf16 and is slower with it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        able = torch.cpu.get_capabilities()
    except AttributeError:  # torch before 2.12
        return bool(torch.cpu._is_avx512_bf16_supported())  # type: ignore[attr-defined,unused-ignore]  # private there
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _part() -> None:
    """Leave the other processes: threads of a standing group may abort the interpreter at its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _indexed(device: torch.device) -> torch.device:
    """Return the device with its number: set_device does not take "cuda" for the card that is current."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _pick_device(device: str, processes: PartialState) -> torch.device:
    if device == "auto":
        if processes.num_processes > 1 or torch.cuda.is_available():
            return _indexed(torch.device(processes.device))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = device.split(":")[0]
    if kind not in kinds:
        raise BookError(f"device is {device!r}", "auto, cpu, cuda or mps", "pass for example -p device cpu")
    if not kinds[kind]:
        raise BookError(f"device is {device!r}, which this torch does not find", "auto or cpu")
    if processes.num_processes > 1 and kind == processes.device.type:
        return torch.device(processes.device)  # each process its own card
    return _indexed(torch.device(device))


def _pick_precision(precision: str, device: torch.device) -> str:
    if precision not in ("auto", "fp32", "bf16"):
        raise BookError(f"precision is {precision!r}", "auto, fp32 or bf16")
    if precision == "auto":
        return "bf16" if pays_bf16(device) else "fp32"
    return precision


def _cpu_name() -> str:
    try:
        return str(torch.cpu.get_capabilities()["cpu_name"])
    except (AttributeError, KeyError):
        return platform.processor() or platform.machine()
