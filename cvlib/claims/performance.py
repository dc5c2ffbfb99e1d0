"""book/results/performance.json: our speed beside a peer's, measured in one run, always as a ratio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from cvlib.claims.store import check, read_json, results_root, write_json
from cvlib.errors import BookError

__all__ = ["Row", "load_rows", "write_rows"]

_N, _MAYBE = int | float, int | float | None
_ROW = {
    "name": str, "ours": _N, "peer": _N, "peer_name": str, "unit": str, "ratio": _N, "low": _N, "high": _N,
    "floor_fraction": _MAYBE, "peak_mb": _MAYBE, "peer_peak_mb": _MAYBE,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One comparison. ratio, low, high: how many times better ours is (above 1), with its interval.

    ours, peer: in ``unit`` ("ms", "images/s"); floor_fraction: the floor (operations, bytes) / measured.
    """

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float
    low: float
    high: float
    floor_fraction: float | None = None
    peak_mb: float | None = None
    peer_peak_mb: float | None = None


def _checked(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    for row in rows:
        where = f"results/performance.json: {row.name}"
        check(asdict(row), _ROW, where)
        # speeds and times both occur: the ratio is ours/peer or peer/ours, as the unit has it
        plain = (row.ours / row.peer, row.peer / row.ours) if row.ours > 0 and row.peer > 0 else ()
        if not any(abs(row.ratio - value) <= 0.02 * value for value in plain):
            raise BookError(
                f"{where}: ratio {row.ratio} of ours {row.ours} and peer {row.peer}", "their ratio"
            )
        if not row.low <= row.ratio <= row.high:
            raise BookError(
                f"{where}: ratio {row.ratio} outside [{row.low}, {row.high}]", "low <= ratio <= high"
            )
    if len({row.name for row in rows}) != len(rows):
        raise BookError(f"results/performance.json: names {[row.name for row in rows]}", "each name once")
    return rows


def load_rows() -> list[Row]:
    """Return the rows of book/results/performance.json, checked; none if there is no such file."""
    path = results_root() / "performance.json"
    if not path.is_file():
        return []
    data = read_json(path)
    check(data, {"rows": list}, "results/performance.json")
    for i, row in enumerate(data["rows"]):
        check(row, _ROW, f"results/performance.json: rows[{i}]")
    return _checked(Row(**row) for row in data["rows"])


def write_rows(rows: Iterable[Row]) -> Path:
    """Add rows to book/results/performance.json, replacing those of the same name; return its path."""
    new = {row.name: row for row in _checked(rows)}
    merged = {row.name: row for row in load_rows()} | new
    return write_json(
        results_root() / "performance.json", {"rows": [asdict(merged[n]) for n in sorted(merged)]}
    )
