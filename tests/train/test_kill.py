"""kill -9 at any moment, in real processes: at most the last interval is lost, and the end is the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cvlib.train import load_weights

OPTIONS = {"steps": 36, "log_every": 2, "save_every": 3}


def in_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    """Start ``work`` in a process of its own. Forked: importing torch anew takes longer than the run."""
    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def newest(folder: Path) -> int:
    return max((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*")), default=0)


def logged(folder: Path) -> int:
    """The last step in the log, 0 before the first."""
    file = folder / "log.jsonl"
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_killed_again_and_again_ends_the_same(experiment, tmp_path):
    whole = experiment()
    wanted = whole.run(tmp_path / "whole", **OPTIONS)
    folder, chance, kills = tmp_path / "killed", random.Random(0), 0
    while not (folder / "result.json").exists():
        begun = newest(folder)
        process = in_child(lambda: experiment().run(folder, **OPTIONS))
        while process.is_alive() and newest(folder) == begun:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.04)  # anywhere: in a step, a log line, a checkpoint, its deletion
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        assert newest(folder) >= max(begun, logged(folder) - OPTIONS["save_every"])
    assert kills >= 3
    again = experiment()
    result = again.run(folder, **OPTIONS)
    again.assert_same(whole)
    assert again.rows(result) == whole.rows(wanted)
    assert not [p for p in folder.iterdir() if p.name.startswith(".") and p.name != ".lock"]


def die_at(moment: int, count: Path) -> None:
    """Make this process kill itself just before its ``moment``-th change of the disk (0: never)."""
    seen = 0

    def armed(act):
        def wrapper(*args, **kwargs):
            nonlocal seen
            seen += 1
            count.write_text(str(seen))
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **kwargs)

        return wrapper

    os.fsync = armed(os.fsync)
    shutil.rmtree = armed(shutil.rmtree)
    Path.rename, Path.replace = armed(Path.rename), armed(Path.replace)


@pytest.mark.slow
def test_killed_before_every_single_change_of_the_disk(experiment, tmp_path):
    """Not by chance but one after the other: each flush, rename and deletion of a run with 3 checkpoints."""
    options = {"steps": 3, "log_every": 2, "save_every": 1}
    whole = experiment()
    wanted = whole.run(tmp_path / "whole", **options)

    def run_until(moment: int) -> int:
        folder, count = tmp_path / f"run{moment}", tmp_path / f"count{moment}"

        def work():
            die_at(moment, count)
            experiment().run(folder, **options)

        process = in_child(work)
        process.join()
        assert process.exitcode == (-signal.SIGKILL if moment else 0)
        return int(count.read_text())

    moments = run_until(0)
    assert moments > 30
    for moment in range(1, moments + 1):
        run_until(moment)
        again = experiment()
        result = again.run(tmp_path / f"run{moment}", **options)
        again.assert_same(whole)
        assert again.rows(result) == whole.rows(wanted), moment


PROGRAM = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("small", sys.argv[1])
small = importlib.util.module_from_spec(spec)
sys.modules["small"] = small
spec.loader.exec_module(small)
run = small.Experiment()
run.before_step = lambda t: time.sleep(0.01)
run.run(pathlib.Path(sys.argv[2]), steps=2000, quiet=False)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_saves_and_ends_the_process(tmp_path, experiment, number):
    conftest = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", PROGRAM, str(conftest), str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    while logged(tmp_path / "run") < 8 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    # python's own code for Ctrl-C is lost once torch.optim is imported: any but 0 will do
    assert process.returncode in ((-number,) if number == signal.SIGTERM else (-number, 128 + number, 1))
    step = int(output.split("stopped at step ")[1].split()[0])
    assert "the same call goes on from there" in output
    assert load_weights(tmp_path / "run", experiment().modules) == step
