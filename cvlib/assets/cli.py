"""``cvlib assets``: what the pinned table holds, fetching it, checking it."""

from __future__ import annotations

import click

from cvlib.assets.store import cache_root, fetch, problem
from cvlib.assets.table import ASSETS, GROUPS, asset_names

__all__ = ["assets"]


@click.group()
def assets() -> None:
    """Third-party files: pinned, fetched by pip, npm and apt-get, verified."""


def _row(name: str, state: str) -> str:
    asset = ASSETS[name]
    size = f"{asset.size / 1e6:7.1f} MB {asset.unpacked / 1e6:7.1f} MB"
    return f"{name:<24} {state:<8} {size}  {asset.spec:<40} {asset.licence}"


@assets.command("list")
def list_assets() -> None:
    """Show every asset: state, archive and unpacked size, package, licence."""
    states = {None: "absent", "": "present"}
    click.echo(f"{'asset':<24} {'state':<8} {'archive':>10} {'unpacked':>10}  {'package':<40} licence")
    for name, asset in ASSETS.items():
        click.echo(_row(name, states.get(problem(asset), "damaged")))
    click.echo(f"\ngroups: {', '.join(GROUPS)}\nfolder: {cache_root() / 'assets'}")


@assets.command("fetch")
@click.argument("names", nargs=-1)
def fetch_assets(names: tuple[str, ...]) -> None:
    """Fetch assets or groups (default: quick); what is there and correct is left alone."""
    chosen = names or ("quick",)
    asset_names(chosen)  # a typo stops before the first download
    for name in chosen:
        fetch(name)
        click.echo(f"{name}: present and verified")


@assets.command("verify")
@click.argument("names", nargs=-1)
def verify_assets(names: tuple[str, ...]) -> None:
    """Hash what is in the cache; exit with 1 if a file named or found there is not the pinned one."""
    chosen = asset_names(names or tuple(ASSETS))
    found = {name: problem(ASSETS[name]) for name in chosen}
    for name, wrong in found.items():
        if wrong is not None:
            click.echo(f"{name:<24} {wrong or 'verified'}")
        elif names:
            click.echo(f"{name:<24} absent")
    bad = [name for name, wrong in found.items() if wrong or (names and wrong is None)]
    counts = sum(wrong == "" for wrong in found.values())
    click.echo(
        f"{counts} verified, {sum(wrong is None for wrong in found.values())} absent, {len(bad)} to mend"
    )
    if bad:
        click.echo(f"run 'cvlib assets fetch {' '.join(bad)}'")
        raise SystemExit(1)
