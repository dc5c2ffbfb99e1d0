from __future__ import annotations

import json

import pytest

from cvlib.claims import Row, load_rows, results_root, write_rows
from cvlib.errors import BookError

ROW = Row("quantizer", 100.0, 394.0, "original", "ms", 3.94, 3.6, 4.2, floor_fraction=0.3)


def test_rows_have_the_fields_of_the_design(repo):
    assert load_rows() == []
    write_rows([ROW])
    data = json.loads((results_root() / "performance.json").read_text())
    fields = [
        "name",
        "ours",
        "peer",
        "peer_name",
        "unit",
        "ratio",
        "low",
        "high",
        "floor_fraction",
        "peak_mb",
        "peer_peak_mb",
    ]
    assert list(data) == ["rows"] and list(data["rows"][0]) == fields
    assert load_rows() == [ROW]


def test_rows_are_merged_by_name(repo):
    other = Row("batches", 74000.0, 60000.0, "loader", "images/s", 1.233, 1.1, 1.3)
    write_rows([ROW])
    write_rows([other, Row("quantizer", 90.0, 394.0, "original", "ms", 4.38, 4.0, 4.5)])
    assert [(row.name, row.ours) for row in load_rows()] == [("batches", 74000.0), ("quantizer", 90.0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 2.0}, "wanted their ratio"),
        ({"low": 4.0}, "outside"),
        ({"ours": float("nan")}, "ours is 'nan'"),
        ({"ours": 0.0}, "wanted their ratio"),
        ({"unit": 3}, "unit is '3'"),
    ],
)
def test_wrong_rows_are_refused(repo, changes, message):
    with pytest.raises(BookError, match=message):
        write_rows([Row(**{**ROW.__dict__, **changes})])
    assert not (results_root() / "performance.json").exists()
    with pytest.raises(BookError, match="each name once"):
        write_rows([ROW, ROW])
