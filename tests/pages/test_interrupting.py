"""A page that is interrupted from outside and called again: what a reader does with Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvlib.pages import sync

PAGE = """# %%
import time
import torch
from cvlib.pages import begin
from cvlib.train import Runtime, fit, run_folder
# %% tags=["parameters"]
steps = 40
pause = 0.0
run_dir = "runs/slow"
# %%
page = begin("slow", globals())
torch.manual_seed(0)
net = torch.nn.Linear(3, 1)
optimizer = torch.optim.Adam(net.parameters())
def step(batch, t):
    time.sleep(pause)
    loss = net(batch["x"]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach()}
config = {"seed": 0}
for stage in ("first", "second"):
    fit(run_folder(run_dir, stage, config), config=config,
        modules={"net": net}, optimizers={"net": optimizer},
        batches=lambda t: {"x": torch.full((4, 3), float(t % 7))}, step=step, steps=steps,
        runtime=Runtime("cpu", "fp32"), log_every=4)
print("weights", net.weight.flatten().tolist())
"""


@pytest.fixture
def call(tmp_path):
    """A function that starts ``cvlib run`` on the page in a fresh folder."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "slow.py").write_text(PAGE)
    sync(tmp_path / "notebooks")
    code = "from cvlib.cli import main; main()"
    known = {
        **os.environ,
        "CVLIB_STATIC": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    }

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, "run", "slow", "-o", "out.ipynb", *words]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=known,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heeds_ctrl_c,
        )

    return start


def heeds_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C and hands that on; a terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def weights(said: str) -> str:
    (line,) = [line for line in said.splitlines() if line.startswith("weights")]
    return line


@pytest.mark.slow
def test_ctrl_c_on_a_page_is_told_in_a_line_and_the_same_call_goes_on(call, tmp_path):
    whole, _ = call("-p", "run_dir", "runs/whole").communicate(timeout=120)
    page = call("-p", "pause", "0.1")
    logs, late = tmp_path / "runs" / "slow", time.monotonic() + 90
    while not list(logs.glob("first-*/log.jsonl")) and time.monotonic() < late:
        time.sleep(0.05)
    page.send_signal(signal.SIGINT)
    said, _ = page.communicate(timeout=60)
    assert page.returncode == 1 and "Traceback" not in said, said
    assert (
        "of 40; all is saved: the same call goes on from there" in said
    )  # what the page prints is on the screen
    assert said.strip().splitlines()[-1] == "cvlib: stopped; run the same command again to go on"
    assert not list(logs.glob("second-*"))  # nothing that follows was begun
    again, _ = call("-p", "pause", "0.0").communicate(timeout=120)
    assert "goes on from step" in again and weights(again) == weights(whole)
