"""Several real processes on one cache: a crowd, and a kill at the worst moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cvlib.assets.store as store
from cvlib.assets import fetch, location, problem
from cvlib.errors import BookError

# A fresh process that fetches the tiny asset; argv: the table, and a file to write once unpacking began.
DRIVER = """
import sys, time
from pathlib import Path
import cvlib.assets.store as store, cvlib.assets.table as table
table.ASSETS = store.ASSETS = table.load_table(Path(sys.argv[1]))
if len(sys.argv) > 2:  # stop for ever in the middle of unpacking, and say so
    copy, told = store.unpack, Path(sys.argv[2])
    def half(asset, archive, folder):
        copy(asset, archive, folder)
        next(folder.rglob("b.bin")).write_bytes(b"half")
        told.write_text("here")
        time.sleep(60)
    store.unpack = half
print(store.fetch("tiny"))
"""


def table_file(asset, path: Path) -> Path:
    members = ", ".join(f'["{m.name}", {m.size}, "{m.sha256}"]' for m in asset.members)
    keys = ("kind", "package", "version", "file", "sha256", "licence", "credit", "what")
    rows = [f'{key} = "{getattr(asset, key)}"' for key in keys]
    path.write_text(
        "\n".join(
            [f"[{asset.name}]", *rows, f"size = {asset.size}", 'inside = "package"', f"members = [{members}]"]
        )
    )
    return path


def start(table: Path, *more: str) -> subprocess.Popen[str]:
    """A real process of its own group, so that a kill reaches its fake npm too."""
    command = [sys.executable, "-c", DRIVER, str(table), *more]
    root = Path(store.__file__).parents[2]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_two_processes_fetch_once(make, use, npm, tmp_path, whole, rests):
    asset, _ = make()
    use(asset)
    calls = npm(seconds=0.7)
    table = table_file(asset, tmp_path / "table.toml")
    both = [start(table), start(table)]
    out = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], out
    assert {stdout.strip() for stdout, _ in out} == {str(location(asset))}
    assert len(calls.read_text().splitlines()) == 1  # the second waited and found it done
    assert whole(location(asset)) and not rests()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("moment", ["downloading", "unpacking"])
def test_kill_9_leaves_nothing_half(make, use, npm, tmp_path, moment, whole, rests):
    asset, _ = make()
    use(asset)
    table = table_file(asset, tmp_path / "table.toml")
    if moment == "downloading":
        npm(seconds=60, half=True)
        process = start(table)
        wait_for(lambda: any((tmp_path / "cache").rglob("tiny-1.0.tgz")))
    else:
        npm()
        process = start(table, str(tmp_path / "told"))
        wait_for((tmp_path / "told").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert problem(asset) is None and rests()  # nothing under its name, only rests aside
    npm(fail="npm error not today")
    with pytest.raises(BookError, match="not today"):
        fetch("tiny")
    assert not rests()  # no stale lock; the rests are swept before anything new is fetched
    npm()
    assert whole(fetch("tiny"))
