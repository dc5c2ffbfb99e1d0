"""Two processes train what one trains, at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import importlib.util, pathlib, sys
import torch
spec = importlib.util.spec_from_file_location("small", sys.argv[1])
small = importlib.util.module_from_spec(spec)
sys.modules["small"] = small
spec.loader.exec_module(small)
folder = pathlib.Path(sys.argv[2])

def run(stop):
    run = small.Experiment(dropout=0.0, norm=False)
    run.noise_level = 0.0
    rank = run.runtime.rank
    if rank:
        torch.nn.init.zeros_(run.model[0].weight)  # process 0 decides where training starts
    run.batches = small.Numbers(rank=rank, world=run.runtime.world)
    def before(t):
        if t == stop:
            raise InterruptedError
    run.before_step = before
    run.run(folder, evaluate=lambda s: {"rank": float(rank)})
    return run

try:
    run(stop=6)
except InterruptedError:
    assert not (folder / "result.json").exists()
run = run(stop=None)
runtime = run.runtime
assert run.seen[0] == 4, run.seen
assert runtime.world == 2 and runtime.maximum(runtime.rank) == 1
assert runtime.gather(torch.tensor([runtime.rank])).tolist() == [0, 1]
for weight in run.model.parameters():  # the processes have not drifted apart
    both = runtime.gather(weight.detach().flatten()[None])
    assert torch.equal(both[0], both[1])
"""


@pytest.mark.slow
def test_two_processes_equal_one_also_when_resumed(experiment, tmp_path):
    one = experiment(dropout=0.0, norm=False)
    one.noise_level = 0.0
    wanted = one.run(tmp_path / "one")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # On CPUs `accelerate launch` needs MPI for several processes; torchrun sets up the same environment.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(program), str(Path(__file__).with_name("conftest.py")), str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "two/result.json").read_text())
    assert result["world"] == 2 and result["final"]["eval/rank"] == 0.5
    # fp32 sums in another order: a few units in the last place per step, grown over 12 steps of Adam
    for name, values in wanted.result["first_losses"].items():
        found = torch.tensor(result["first_losses"][name])
        torch.testing.assert_close(found, torch.tensor(values), rtol=1e-4, atol=1e-5)
