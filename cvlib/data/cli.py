"""``cvlib data``: whether a data set on the reader's disk is complete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from cvlib.data import animal_faces, cub_parts, deepfashion, imagenet, metric_sets, pair_list, penn_action
from cvlib.data.metric_listings import SETS
from cvlib.data.sources import Source
from cvlib.errors import BookError

__all__ = ["CHECKS", "check_counts"]

_Rows = list[tuple[str, str, int, int | None]]
#: where a data set is to be had, and rows (half, what is counted, found, wanted or None) for its folder
CHECKS: dict[str, tuple[Source, Callable[[str], _Rows]]] = {
    **{name: (kind, partial(metric_sets.check, name)) for name, kind in SETS.items()},
    **{one.NAME: (one.SOURCE, one.check) for one in (cub_parts, deepfashion, penn_action, pair_list)},
    **{one.NAME: (one.SOURCE, one.check) for one in (imagenet, animal_faces)},
}


def _verdict(found: int, wanted: int | None) -> str:
    if wanted is None:
        return "nothing to compare with"
    return "as in the papers" if found == wanted else f"wanted {wanted:,}"


def check_counts(name: str, root: str) -> None:
    """Print what ``root`` holds of the data set ``name``, beside what the papers used.

    Raises: BookError, after the table, for the first number that differs; before it, for an unknown name or
    data that cannot be counted.
    """
    if name not in CHECKS:
        raise BookError(f"data {name!r}", f"one of {', '.join(CHECKS)}")
    source, check = CHECKS[name]
    rows = check(root)
    click.echo(f"{name:<16} {'half':<10} {'counted':<10} {'found':>8}")
    for half, what, found, wanted in rows:
        click.echo(f"{'':<16} {half:<10} {what:<10} {found:>8,}  {_verdict(found, wanted)}")
    for half, what, found, wanted in rows:
        if wanted is not None and found != wanted:
            raise source.error(f"{root} has {found:,} {half} {what} of {name}", f"{wanted:,}")
