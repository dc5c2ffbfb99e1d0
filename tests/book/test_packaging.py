"""What others install: a wheel that stands alone, one list of dependencies, thin doors to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

import cvlib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return a folder into which a wheel, built from a copy of the sources, was installed."""
    room = tmp_path_factory.mktemp("wheel")
    copy = room / "source"
    shutil.copytree(ROOT / "cvlib", copy / "cvlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", room, copy], check=True)
    (wheel,) = room.glob("compvis_book-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", room / "site", wheel], check=True)
    return room / "site"


def test_the_wheel_holds_every_file_of_the_library(installed):
    def files(root: Path) -> set[str]:
        found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return {name for name in found if "__pycache__" not in name}

    assert files(installed / "cvlib") == files(ROOT / "cvlib")


def test_the_wheel_imports_outside_the_repository(installed, tmp_path):
    """Every public module imports from the installed copy, in a process that cannot see the sources."""
    modules = sorted(
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in (installed / "cvlib").rglob("*.py")
    )
    program = (
        "import importlib, json, sys\n"
        f"sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        f"print(json.dumps([importlib.import_module(name).__file__ for name in {modules!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(file.startswith(str(installed)) for file in json.loads(done.stdout))


def test_the_imported_library_is_ours():
    """The package index has another project named cvlib: it must not shadow this one."""
    assert Path(cvlib.__file__) == ROOT / "cvlib" / "__init__.py"
    assert cvlib.__version__ == PROJECT["version"]
    assert PROJECT["name"] == "compvis-book"
    assert "do not `pip install cvlib`" in (ROOT / "README.md").read_text("utf-8")


def test_the_conda_door_is_thin():
    door = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *conda, pip = door["dependencies"]
    assert [re.match("[a-z]+", item)[0] for item in conda] == ["python", "pip"]
    assert pip == {"pip": ["-e .[book,dev]"]}


def test_constraints_pin_what_the_project_asks_for():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert (pins["torch"], pins["jupyter-book"]) == ("2.13.0", "1.0.4.post1")
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values()), "no platform tags"
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    wanted = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9_.-]+", item)[0]).lower() for item in wanted}
    assert names <= normal
    assert not {"torchvision", "lpips", "timm", "cvlib"} & normal


def test_makefile_names_no_python_older_than_the_project_needs(tmp_path):
    """An old interpreter is refused by name, before anything is installed."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo Python 3.9.1; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    tools = {tool: shutil.which(tool) for tool in ("make", "bash", "test", "echo")}
    for tool, path in tools.items():
        if path and not (tmp_path / tool).exists():
            (tmp_path / tool).symlink_to(path)
    done = subprocess.run(
        ["make", "install"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no Python 3.11 or newer found (python3 is Python 3.9.1)" in done.stdout + done.stderr
    assert not (tmp_path / ".venv").exists()


def test_git_holds_no_run_folders_and_no_file_beyond_ten_megabytes():
    """Checkpoints are a run's own; what lasts is committed as results and small weights."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    tracked = [name for name in done.stdout.split("\0") if name]
    assert "README.md" in tracked
    inside = [name for name in tracked if "runs" in Path(name).parts[:-1]]
    assert [name for name in inside if not name.startswith("book/results/runs/")] == []
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > 10_000_000} == {}
