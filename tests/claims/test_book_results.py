"""The committed evidence itself: rules before runs, results that follow from runs."""

from __future__ import annotations

import subprocess

import pytest

from cvlib.claims import chapters, load_results, load_rows, load_rules, rules_precede_runs, runs
from cvlib.claims.store import repository

CHAPTERS = chapters()


@pytest.fixture(params=CHAPTERS or [None])
def chapter(request) -> str:
    if request.param is None:
        pytest.skip("no chapter has rules yet")
    return request.param


def test_rules_are_whole(chapter):
    assert load_rules(chapter).claims


def test_rules_were_committed_before_the_first_run(chapter):
    if not runs(chapter):
        pytest.skip(f"{chapter} has no recorded run yet")
    git = ["git", "-C", str(repository()), "rev-parse", "--is-shallow-repository"]
    if subprocess.run(git, capture_output=True, text=True).stdout.strip() != "false":
        pytest.skip("the history is not here (no checkout, or a shallow one)")
    assert rules_precede_runs(chapter) == []


def test_results_follow_from_the_runs(chapter):
    if not runs(chapter):
        pytest.skip(f"{chapter} has no recorded run yet")
    assert load_results(chapter)["chapter"] == chapter


def test_performance_rows_are_whole():
    rows = load_rows()
    if not rows:
        pytest.skip("no performance measured yet")
    assert all(row.low <= row.ratio <= row.high for row in rows)
