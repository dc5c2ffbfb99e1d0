"""Races measure ratios, memory and the floor, and stop where the two do not do the same work."""

from __future__ import annotations

import time

import pytest
import torch

from cvlib.claims import racing
from cvlib.claims.racing import operations_per_second, race, race_apart
from cvlib.errors import BookError

PROGRAM = """
import sys
who, seconds = sys.argv[1], {"ours": 2.0, "peer": 6.0}
found = 0.5 + float(sys.argv[3]) * (who == "peer")
print(seconds[who], {"ours": 5, "peer": 50}[who], {"ours": 4e9, "peer": 0}[who], sys.argv[2], found)
"""


def test_a_race_gives_the_ratio_of_the_times():
    row = race("waiting", lambda: time.sleep(0.02), lambda: time.sleep(0.06), "longer", rounds=3)
    assert row.unit == "ms" and 2 < row.ratio < 4 and row.low <= row.ratio <= row.high
    assert row.peer / row.ours == pytest.approx(row.ratio)
    assert (row.floor_fraction, row.peak_mb, row.peer_peak_mb) == (None, None, None)


def test_a_race_of_rates_divides_by_what_each_made():
    def wait():
        time.sleep(0.04)

    row = race("waiting", wait, wait, "half as many", rounds=3, made=(20, 10))
    assert row.unit == "images/s" and 1.6 < row.ratio < 2.5
    assert 0.7 * 20 / 0.04 < row.ours <= 20 / 0.04


def test_the_first_call_of_each_does_not_count():
    calls = []

    def slow_at_first(who: str) -> None:
        time.sleep(0.01 if who in calls else 0.5)
        calls.append(who)

    row = race("waking", lambda: slow_at_first("ours"), lambda: slow_at_first("peer"), "peer", rounds=1)
    assert sorted(calls) == ["ours", "ours", "peer", "peer"] and row.ours < 250 and row.peer < 250


def test_the_one_who_went_second_goes_first_in_the_next_round(tmp_path):
    calls: list[str] = []
    race("turns", lambda: calls.append("ours"), lambda: calls.append("peer"), "peer", rounds=3)
    assert calls == ["ours", "peer", "peer", "ours"] * 2

    seen = tmp_path / "seen"
    note = f"import sys; open({str(seen)!r}, 'a').write(sys.argv[1] + ' '); print(1, 1, 0, 0)"
    race_apart("turns apart", note, [], "peer", rounds=3)
    assert seen.read_text().split() == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_the_floor_is_the_time_of_the_operations_at_the_full_rate(monkeypatch):
    monkeypatch.setattr(racing, "operations_per_second", lambda device: 1e9)

    def wait():
        time.sleep(0.04)

    row = race("waiting", wait, wait, "itself", rounds=1, made=(5, 5), operations=1e7)
    assert row.floor_fraction == pytest.approx(1e7 / 1e9 / 0.04, rel=0.4)
    assert race_apart("apart", PROGRAM, [7, 0], "slower", rounds=1).floor_fraction == 4e9 / 1e9 / 2


def test_the_full_rate_is_that_of_this_machine():
    assert 1e8 < operations_per_second(n=256) < 1e14  # a hundredth of an old core, ten times a large card


def test_a_race_of_processes_reads_time_memory_and_results():
    row = race_apart("apart", PROGRAM, [7, 0], "slower", rounds=2)
    assert (row.ours, row.peer, row.ratio, row.unit) == (2000, 6000, 3, "ms")
    assert (row.peak_mb, row.peer_peak_mb) == (5, 50)


def test_other_results_are_not_the_same_work():
    with pytest.raises(BookError, match=r"apart: \[7.0, 0.5\] and \[7.0, 1.5\]; wanted results within 1e-06"):
        race_apart("apart", PROGRAM, [7, 1], "slower", rounds=1)
    assert race_apart("apart", PROGRAM, [7, 1], "slower", rounds=1, atol=2).ratio == 3


def test_a_program_that_fails_says_why():
    with pytest.raises(BookError, match=r"broken: ours ended with 1; .*ZeroDivisionError"):
        race_apart("broken", "1 / 0", [], "nobody", rounds=1)


HOLDS = """
import numpy as np
from cvlib.claims.racing import report
before = np.ones(2**23)  # 64 MB that are there before

def score(n):
    return 3 * n, float(np.ones(n).sum()), 8.0

report(score, 2**22)
"""


def test_a_report_counts_the_memory_of_the_work_alone():
    """Four million numbers in double are 32 MB; what the program or its parent held before is not counted."""
    held = torch.ones(2**25)  # 128 MB in this process
    row = race_apart("ones", HOLDS, [], "itself", rounds=1)
    assert row.peak_mb == pytest.approx(32, abs=4) and row.floor_fraction > 0
    del held
