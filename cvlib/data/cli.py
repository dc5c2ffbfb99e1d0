"""``cvlib data``: whether a data set on the reader's disk is complete."""

from __future__ import annotations

import click

from cvlib.data.metric_listings import SETS
from cvlib.data.metric_sets import check

__all__ = ["check_counts"]


def check_counts(name: str, root: str) -> None:
    """Print how many images and classes ``root`` holds of the data set ``name``, beside what the papers used.

    Raises: BookError, after the table, for the first number that differs; before it, for data that
    :func:`cvlib.data.metric_sets.check` cannot count.
    """
    rows = check(name, root)
    click.echo(f"{name:<16} {'half':<6} {'counted':<8} {'found':>8}")
    for half, what, found, wanted in rows:
        verdict = "as in the papers" if found == wanted else f"wanted {wanted:,}"
        click.echo(f"{'':<16} {half:<6} {what:<8} {found:>8,}  {verdict}")
    for half, what, found, wanted in rows:
        if found != wanted:
            raise SETS[name].error(f"{root} has {found:,} {half} {what} of {name}", f"{wanted:,}")
