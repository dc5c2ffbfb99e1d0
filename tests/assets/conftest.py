"""Tiny packages made here, and a fake npm that delivers them: the tests ask no registry."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cvlib.assets.store as store
import cvlib.assets.table as table
from cvlib.assets import Asset, Member

CONTENT = {"a.txt": b"first member\n", "deep/b.bin": bytes(range(256)) * 40}
Entry = tuple[str, bytes | None, bytes]  # path, content (None: not a plain file), tar type


def _zip(entries: list[Entry]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name: an attack, made on purpose
        for path, content, kind in entries:
            info = zipfile.ZipInfo(path)
            info.external_attr = (0o120777 if kind == tarfile.SYMTYPE else 0o100644) << 16
            bundle.writestr(info, b"/etc/passwd" if content is None else content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _tar(entries: list[Entry], compression: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{compression}") as bundle:
        for path, content, kind in entries:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = kind, "" if content is not None else "/etc/passwd"
            info.size = len(content or b"")
            bundle.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def _deb(entries: list[Entry]) -> bytes:
    """The "ar" layout of deb(5); the odd-sized first member checks the padding."""
    parts = [b"!<arch>\n"]
    dotted = [(path if path.startswith(("/", "..")) else f"./{path}", *rest) for path, *rest in entries]
    for name, body in (("debian-binary", b"2.0"), ("data.tar.xz", _tar(dotted, "xz"))):
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode())
        parts.append(body + b"\n" * (len(body) % 2))
    return b"".join(parts)


def archive_bytes(kind: str, entries: list[Entry]) -> bytes:
    if kind == "wheel":
        return _zip(entries)
    return _deb(entries) if kind == "debian" else _tar(entries, "gz")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Asset, Path]]:
    """Return a maker of (asset, its archive in tmp_path/archives), honest but for the entries in front."""

    def maker(
        name: str = "tiny", kind: str = "npm", front: tuple[Entry, ...] = (), **changes: object
    ) -> tuple[Asset, Path]:
        members = tuple(
            Member(path, len(data), hashlib.sha256(data).hexdigest(), f"package/{path}")
            for path, data in CONTENT.items()
        )
        honest = [(f"package/{path}", data, tarfile.REGTYPE) for path, data in CONTENT.items()]
        data = archive_bytes(kind, [*front, *honest])
        suffix = {"wheel": "-1.0-py3-none-any.whl", "npm": "-1.0.tgz", "debian": "_1.0_all.deb"}[kind]
        path = tmp_path / "archives" / (name + suffix)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        made = Asset(
            name, kind, name, "1.0", path.name, len(data), digest, "MIT", "the tests", "a fixture", members
        )
        return replace(made, **changes), path  # type: ignore[arg-type]

    return maker


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Put assets in the table's place, with an empty cache and no archives of the reader's."""

    def user(*assets: Asset) -> None:
        chosen = {asset.name: asset for asset in assets}
        groups = {"all": tuple(chosen), "quick": tuple(chosen)}
        monkeypatch.setattr(table, "ASSETS", chosen)
        monkeypatch.setattr(store, "ASSETS", chosen)
        monkeypatch.setattr(table, "GROUPS", groups)
        monkeypatch.setattr(store, "GROUPS", groups)
        monkeypatch.setattr(store, "_verified", {})
        monkeypatch.setenv("CVLIB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("CVLIB_ARCHIVES", raising=False)

    return user


@pytest.fixture
def npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Install a fake npm in front of PATH; return the file to which it adds a line per call.

    ``NAME@1.0`` is answered with archives/NAME-1.0.tgz after ``seconds``; ``half`` writes only half of it
    first and then waits; ``fail`` prints that text and exits with 1.
    """
    if os.name == "nt":
        pytest.skip("the fake npm is a Unix script")
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"

    def installer(seconds: float = 0, half: bool = False, fail: str = "") -> Path:
        script = f"""#!{sys.executable}
import pathlib, sys, time
with open({str(calls)!r}, "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if {fail!r}:
    sys.exit({fail!r})
name = sys.argv[-1].replace("@", "-") + ".tgz"
data = (pathlib.Path({str(tmp_path / "archives")!r}) / name).read_bytes()
if {half!r}:
    pathlib.Path(name).write_bytes(data[: len(data) // 2])
time.sleep({seconds})
pathlib.Path(name).write_bytes(data)
"""
        path = folder / "npm"
        path.write_text(script)
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        return calls

    return installer


@pytest.fixture
def whole() -> Callable[[Path], bool]:
    """Return a test of whether a folder holds the fixture's members and nothing else."""

    def check(folder: Path) -> bool:
        found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return found == CONTENT

    return check


@pytest.fixture
def rests(tmp_path: Path) -> Callable[[], list[str]]:
    """Return a lister of whatever lies in the cache beside locks and finished folders."""

    def check() -> list[str]:
        names = [path.name for path in (tmp_path / "cache" / "assets").glob("*")]
        return [name for name in names if name.startswith(".") and not name.endswith(".lock")]

    return check
