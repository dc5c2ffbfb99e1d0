from __future__ import annotations

import copy
import subprocess
from pathlib import Path

import pytest
import yaml

RULES = {
    "chapter": "demo",
    "paper": "Author et al. 2020",
    "data": "none at all",
    "seeds": [0, 1, 2, 3, 4],
    "assets": ["emoji"],
    "code": ["cvlib"],
    "arms": {
        "full": {"description": "all terms", "tuning": "three learning rates", "trials": 3, "minutes": 6},
        "plain": {"description": "one term", "tuning": "three learning rates", "trials": 3},
    },
    "claims": [
        {
            "id": "C1",
            "statement": "Full is better.",
            "paper": {"value": 7.9, "source": "Table 4"},
            "measurement": "error on the test split",
            "rule": "Both comparisons hold.",
            "must_show": True,
            "comparisons": [
                {"measure": "error", "unit": "L1", "comparison": "lower", "arm": "full", "against": "plain"},
                {"measure": "psnr", "unit": "dB", "comparison": "higher", "arm": "full", "against": 20,
                 "margin": 1},
            ],
        },
        {
            "id": "C2",
            "statement": "It scales.",
            "paper": {"value": "yes", "source": "Fig. 2"},
            "measurement": "error at 256 px",
            "rule": "None here.",
            "comparisons": [],
            "needs": "a GPU day",
        },
    ],
}  # fmt: skip


@pytest.fixture
def rules() -> dict:
    """A good rule file as a mapping, to be changed and handed to ``write``."""
    return copy.deepcopy(RULES)


@pytest.fixture
def repo(tmp_path: Path, monkeypatch) -> Path:
    """A repository with one chapter of rules, committed; ``CVLIB_RESULTS`` points into it."""
    (tmp_path / "cvlib").mkdir()
    (tmp_path / "cvlib" / "a.py").write_text("def f(x):\n    return x + 1\n")
    monkeypatch.setenv("CVLIB_RESULTS", str(tmp_path / "book" / "results"))
    monkeypatch.setenv("CVLIB_COMMAND", "make report CHAPTER=demo")
    for key in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{key}_NAME", "t")
        monkeypatch.setenv(f"GIT_{key}_EMAIL", "t@example.org")
    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path], check=True)
    return tmp_path


@pytest.fixture
def write(repo: Path):
    """A function that writes a rule file and returns its path."""

    def run(data: dict, chapter: str = "demo") -> Path:
        path = repo / "book" / "results" / "rules" / f"{chapter}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return path

    return run


@pytest.fixture
def commit(repo: Path):
    """A function that commits everything."""

    def run() -> str:
        subprocess.run(["git", "-C", repo, "add", "-A"], check=True)
        subprocess.run(["git", "-C", repo, "commit", "-q", "-m", "x"], check=True)
        done = subprocess.run(
            ["git", "-C", repo, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return run


def run_arguments(**changes) -> dict:
    """The arguments of a good call of ``record``, with changes."""
    good = {
        "config": {"steps": 10},
        "data_hash": "abc",
        "losses": [1.0 / (i + 1) for i in range(30)],
        "curve": [[0, 1.0], [10, 0.5]],
        "seconds": 90.0,
        "peak_mb": 512.0,
        "device": "cpu (2 cores)",
    }
    return {**good, **changes}


@pytest.fixture
def fill(write, rules):
    """A function that records all seeds of both arms: error falls by ``gap``, psnr is around ``psnr``."""
    from cvlib.claims import record

    def run(gap: float = 0.3, psnr: float = 25.0, seeds=range(5)) -> None:
        write(rules)
        for seed in seeds:
            wobble = 0.01 * (seed - 2)
            values = {"error": 1.0 - gap + wobble * seed, "psnr": psnr + wobble}
            record("demo", "full", seed, values, **run_arguments())
            record("demo", "plain", seed, {"error": 1.0 + wobble}, **run_arguments(seconds=30.0))

    return run


@pytest.fixture
def arguments():
    return run_arguments
