"""Third-party files without a hub: pinned in one table, fetched by ordinary clients, verified on load."""

from __future__ import annotations

from cvlib.assets.store import cache_root, fetch, location, member, problem
from cvlib.assets.table import ASSETS, GROUPS, Asset, Member, asset_names, table_markdown

__all__ = [
    "ASSETS",
    "GROUPS",
    "Asset",
    "Member",
    "asset_names",
    "cache_root",
    "fetch",
    "location",
    "member",
    "problem",
    "table_markdown",
]
