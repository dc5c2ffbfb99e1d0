"""The training loop: plain, resumable, the same for every chapter."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cvlib.errors import BookError
from cvlib.files import atomic_write
from cvlib.train.checkpoint import latest_checkpoint
from cvlib.train.configs import config_digest
from cvlib.train.ema import EMA
from cvlib.train.folder import StopSignals, claim, locked, read_json, tidy
from cvlib.train.journal import Journal, Parts, duration
from cvlib.train.provenance import command_line, git_commit
from cvlib.train.rng import isolated_rng, seed_from
from cvlib.train.runtime import Runtime
from cvlib.train.schedules import Schedule, apply_schedules
from cvlib.train.state import Batches, TrainingState, read_best, rows_of

__all__ = ["RunResult", "ended_after", "fit"]

_SAVE, _STOP = 1, 2
_VOTE_EVERY = 10  # steps between two questions "does any process want to stop?" on several cards
_LIMIT: ContextVar[int | None] = ContextVar("_LIMIT", default=None)


@dataclass(frozen=True)
class RunResult:
    """What :func:`fit` returns: the run folder, the rows of its log, and the content of result.json."""

    folder: Path
    history: list[dict[str, Any]]
    result: dict[str, Any]
    resumed_from: int | None
    seconds: float

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values of one column of the history, where it has a value."""
        rows = [row for row in self.history if row.get(name) is not None]
        return [row["step"] for row in rows], [row[name] for row in rows]


@contextmanager
def ended_after(steps: int | None) -> Iterator[None]:
    """Let every :func:`fit` inside end after ``steps`` steps (None: let it go on), as if stopped there.

    Schedules stay those of the whole run, so that its first steps can be replayed whatever trains it.
    """
    token = _LIMIT.set(steps)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def fit(
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    batches: Batches,
    step: Callable[[Any, int], Parts],
    steps: int,
    runtime: Runtime | None = None,
    schedules: Mapping[str, Schedule] | None = None,
    log_every: int | None = None,
    save_every: int | None = None,
    save_minutes: float = 10.0,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    eval_every: int | None = None,
    best: str | None = None,
    ema: EMA | Mapping[str, EMA] | None = None,
    extras: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> RunResult:
    """Train for ``steps`` steps in ``folder``, from where an earlier call was stopped, and return the result.

    ``step(batch, t)`` (t = 0, 1, ...) does one update, its own ``zero_grad``, ``backward`` and
    ``optimizer.step`` included, and returns loss parts as single numbers. ``batches`` is an iterator with
    ``state_dict`` and ``load_state_dict``, or a function of t. ``schedules`` maps names of optimisers to
    factors of their learning rates. ``extras`` are further things to keep: a ``torch.Generator`` or anything
    with ``state_dict``. ``modules`` train in train mode and are left in eval mode.

    Random numbers: seeded from ``config["seed"]`` inside, untouched outside, so that what follows on a page
    does not depend on whether the run was trained now or before.

    Every ``log_every`` steps (default a tenth) a row goes to screen and ``log.jsonl``. Every ``save_every``
    steps (default ``log_every``) and every ``save_minutes`` a checkpoint is written. ``evaluate(steps_done)``
    runs every ``eval_every`` steps (default ``log_every``) and at the end, with averaged weights if there is
    an ``ema``; ``best`` names the one of its values whose lowest weights stay in ``best.safetensors``.

    Raises: BookError for another configuration in ``folder``, a loss that is not finite, a damaged
    checkpoint, a full disk; KeyboardInterrupt after Ctrl-C, when all is saved.
    """
    folder, runtime = Path(folder), runtime or Runtime()
    steps = min(steps, _LIMIT.get() or steps)
    log_every = log_every or max(1, steps // 10)
    save_every, eval_every = save_every or log_every, eval_every or log_every
    means = {"ema": ema} if isinstance(ema, EMA) else dict(ema or {})
    journal = Journal(folder, steps, runtime, quiet=quiet)
    state = TrainingState(folder, modules, optimizers, batches, means, extras or {}, journal, runtime)
    with _opened(state, config, steps), StopSignals() as stop:
        start, finished = _begin(state, steps)
        if finished is not None:
            _obey(state, stop)
            return RunResult(folder, journal.rows, finished, start, finished["seconds"])
        for t in range(start or 0, steps):
            apply_schedules(optimizers, schedules or {}, t)
            batch = state.next_batch(t)
            parts = step(batch, t)
            for mean in means.values():
                mean.update()
            done, is_last = t + 1, t + 1 == steps
            journal.record(done, parts, rows_of(batch) * runtime.world)
            evaluated: Mapping[str, float] = {}
            if evaluate and (is_last or done % eval_every == 0):
                evaluated = _evaluate(state, evaluate, done, best)
            if is_last or evaluated or done % log_every == 0:
                journal.write(done, evaluated)
            wish = _wish(state, stop, done, save_minutes)
            if is_last or wish or done % save_every == 0:
                with journal.paused():
                    state.save(done)
            if wish == _STOP and not is_last:
                _stop(state, stop, done)
        result = _finish(state, config, steps)
        _obey(state, stop)
    return RunResult(folder, journal.rows, result, start, result["seconds"])


@contextmanager
def _opened(state: TrainingState, config: Mapping[str, Any], steps: int) -> Iterator[None]:
    """Check and lock the run folder, ready the modules, and leave generators and hooks as they were."""
    if steps < 1:
        raise BookError(f"steps is {steps}", "at least 1")
    folder, runtime = state.folder, state.runtime
    with ExitStack() as stack:
        if runtime.is_main:
            stack.enter_context(locked(folder))
            claim(folder, config, steps)
            tidy(folder)
        runtime.wait()
        if not runtime.is_main:
            claim(folder, config, steps, write=False)
        stack.enter_context(isolated_rng(seed_from("fit", config.get("seed", 0), runtime.rank)))
        if runtime.world > 1:
            for optimizer in state.optimizers.values():
                hook = optimizer.register_step_pre_hook(lambda o, *_: runtime.average_gradients(o))
                stack.callback(hook.remove)
        for module in state.modules.values():
            runtime.prepare(module).train()
            stack.callback(module.eval)
        yield


def _begin(state: TrainingState, steps: int) -> tuple[int | None, dict[str, Any] | None]:
    """Return the step to go on from (None: from nothing) and, if the run is finished, its result."""
    journal, checkpoint = state.journal, latest_checkpoint(state.folder)
    result = state.folder / "result.json"
    if result.exists():
        if checkpoint is None:
            raise BookError(f"{result} says finished, but no checkpoint is left", do=f"delete {state.folder}")
        finished = read_json(result)
        state.restore(checkpoint, rng=False)
        journal.say(f"finished before: {steps} steps in {duration(finished['seconds'])}; weights loaded")
        return steps, finished
    if checkpoint is not None:
        start = state.restore(checkpoint)
        journal.say(f"goes on from step {start} of {steps}")
        return start, None
    journal.cut(0)
    journal.say(f"{steps} steps on {state.runtime.describe()}")
    return None, None


def _evaluate(
    state: TrainingState, evaluate: Callable[[int], Mapping[str, float]], done: int, best: str | None
) -> dict[str, float]:
    """Return an evaluation's values (means over processes); keep the weights if they are the best."""
    with state.journal.paused(), state.evaluating():
        values = state.runtime.mean({name: float(value) for name, value in evaluate(done).items()})
        if best is not None:
            if best not in values:
                raise BookError(f"best is {best!r}", f"one of {sorted(values)}, as evaluate returns")
            state.keep_best(done, best, values[best])
    return values


def _wish(state: TrainingState, stop: StopSignals, done: int, save_minutes: float) -> int:
    """Return what is due by the clock or by a signal; all processes get the same answer."""
    overdue = time.monotonic() - state.saved_at > 60 * save_minutes
    mine = _STOP if stop.seen is not None else _SAVE if overdue else 0
    several = state.runtime.world > 1
    if several and state.runtime.device.type != "cpu" and done % _VOTE_EVERY:
        return 0
    return state.runtime.maximum(mine) if several else mine


def _stop(state: TrainingState, stop: StopSignals, done: int) -> None:
    line = f"stopped at step {done} of {state.journal.steps}; all is saved: the same call goes on from there"
    state.journal.say(line, loud=True)
    stop.obey(f"{state.folder.name}: {line}")


def _obey(state: TrainingState, stop: StopSignals) -> None:
    """Obey a signal that came when there was nothing left to train: who asked for an end gets one."""
    if stop.seen is not None:
        line = f"stopped after step {state.journal.steps}, the last; all is saved: the same call goes on"
        state.journal.say(line, loud=True)
        stop.obey(f"{state.folder.name}: {line}")


def _finish(state: TrainingState, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Write result.json, which marks the run as finished, and return its content."""
    journal, runtime = state.journal, state.runtime
    seconds = journal.seconds
    result = {
        "steps": steps,
        "digest": config_digest(config),
        "final": journal.rows[-1] if journal.rows else {},
        "best": read_best(state.folder),
        "first_losses": journal.first,
        "seconds": seconds,
        "images_per_second": journal.images / max(seconds, 1e-9),
        "peak_mb": state.peak_now(),
        "device": runtime.describe(),
        "precision": runtime.precision,
        "world": runtime.world,
        "commit": git_commit(),
        "command": command_line(),
    }
    if runtime.is_main:
        atomic_write(state.folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    runtime.wait()
    journal.say(f"done: {steps} steps in {duration(seconds)}, {result['images_per_second']:.3g} images/s")
    return result
