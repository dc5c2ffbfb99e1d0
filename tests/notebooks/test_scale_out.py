"""The real page on two processes: what one process trains, two train at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def first_losses(folder: Path, processes: int) -> dict[str, dict[str, list[float]]]:
    """Run the smoke scale of the page "taming" and return the first losses of both stages."""
    command = [sys.executable, "-c", "from cvlib.cli import main; main()", "run", "taming"]
    command += ["--processes", str(processes), "-p", "run_dir", str(folder), "-p", "precision", "fp32"]
    environment = os.environ | {"CVLIB_SMOKE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = {path.parent.name.split("-")[0]: path for path in folder.glob("*/result.json")}
    assert set(results) == {"vqgan", "gpt"}
    read = {stage: json.loads(path.read_text()) for stage, path in results.items()}
    assert {result["world"] for result in read.values()} == {processes}
    return {stage: result["first_losses"] for stage, result in read.items()}


@pytest.mark.slow
def test_two_processes_train_the_page_as_one_does(tmp_path):
    one, two = (first_losses(tmp_path / str(n), n) for n in (1, 2))
    for stage, losses in one.items():
        assert losses.keys() == two[stage].keys()
        for name, values in losses.items():
            # sums in another order, grown over the steps: a few parts in ten thousand
            torch.testing.assert_close(
                torch.tensor(two[stage][name]),
                torch.tensor(values),
                rtol=2e-3,
                atol=1e-4,
                msg=f"{stage} {name}",
            )
