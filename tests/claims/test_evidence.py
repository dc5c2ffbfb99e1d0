"""What claims pages show of a chapter: recorded values by seed, and decided comparisons in words."""

from __future__ import annotations

import pytest

from cvlib.claims import Evidence, aggregate, chapters, load_results, record, told

ENTRY = {
    "measure": "IoU", "comparison": "higher", "arm": "ours", "against": "free", "margin": 0.0, "unit": "",
    "arm_mean": 0.5, "against_mean": 0.25, "mean": 0.25, "low": 0.2, "high": 0.3, "holds": True,
}  # fmt: skip


def test_a_comparison_is_told_with_what_became_of_it():
    assert told(ENTRY) == "IoU of `ours` 0.5 against `free` 0.25, claimed higher: +0.25 [+0.2, +0.3] (holds)"
    bar = told(ENTRY | {"against": 0.9, "holds": False, "margin": 0.1})
    assert "against the bar 0.9, claimed higher by more than 0.1" in bar and "(does not hold)" in bar
    late = told(ENTRY | {"against": "ours", "against_measure": "late"})
    assert late.startswith("`ours, IoU` 0.5 against `ours, late` 0.25")
    assert "`ours − free` 0.5" in told(ENTRY | {"less": "free"})


def test_values_are_those_of_the_runs_that_know_the_measure(write, rules, arguments):
    write(rules)
    for seed, value in ((2, 0.5), (0, 0.25)):
        record("demo", "full", seed, {"error": value, "psnr": 20.0 + seed}, **arguments())
    aggregate("demo")
    evidence = Evidence("demo", "error")
    assert evidence.by_seed("full") == {0: 0.25, 2: 0.5} and evidence.over_seeds("full", "psnr") == [20, 22]
    assert evidence.by_seed("plain") == {} and evidence.by_seed("full", "unheard of") == {}
    assert set(evidence.decided) == {claim["id"] for claim in load_results("demo")["claims"]}
    assert all(evidence.comparisons(claim) == [] for claim in evidence.decided)


@pytest.mark.parametrize("chapter", chapters())
def test_every_decided_comparison_of_the_book_can_be_told(chapter):
    entries = [entry for claim in load_results(chapter)["claims"] for entry in claim["comparisons"]]
    for entry in entries:
        assert told(entry).endswith(("(holds)", "(does not hold)"))
