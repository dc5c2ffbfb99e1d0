from __future__ import annotations

import json
import subprocess

import pytest

from cvlib.claims import aggregate, evaluate, load_results, load_rules, results_root, rules_precede_runs
from cvlib.claims import record as record_run
from cvlib.errors import BookError

CLAIM_KEYS = {
    "id": str, "statement": str, "paper": dict, "measured": (dict, type(None)), "effect": (float, type(None)),
    "n_seeds": int, "rule": str, "verdict": str, "must_show": bool, "scale": str, "device": str,
    "seconds": (int, float), "peak_mb": (int, float), "command": str, "commit": str, "assets": list,
}  # fmt: skip


def test_the_aggregate_has_the_schema_of_the_design(fill):
    fill()
    aggregate("demo")
    data = json.loads((results_root() / "demo.json").read_text())
    assert list(data) == ["chapter", "claims"] and data["chapter"] == "demo"
    for claim in data["claims"]:
        assert set(CLAIM_KEYS) | {"comparisons", "needs"} == set(claim)
        for key, kind in CLAIM_KEYS.items():
            assert isinstance(claim[key], kind), key
        assert set(claim["paper"]) == {"value", "source"}
        assert claim["verdict"] in ("reproduced", "partly", "not reproduced", "not tested")
        assert claim["measured"] is None or list(claim["measured"]) == ["mean", "low", "high", "unit"]
    assert load_results("demo") == data


def test_numbers_are_those_of_the_runs(fill):
    fill(gap=0.3)
    claim = evaluate("demo")["claims"][0]
    # full - plain = -0.3 + 0.01 (seed - 2)(seed - 1): -0.28, -0.30, -0.30, -0.28, -0.24
    assert claim["measured"]["mean"] == pytest.approx(-0.28)
    assert -0.30 <= claim["measured"]["low"] < -0.28 < claim["measured"]["high"] <= -0.24
    assert claim["n_seeds"] == 5 and claim["seconds"] == 5 * (90 + 30) and claim["verdict"] == "reproduced"
    first, second = claim["comparisons"]
    assert first["p_sign_flip"] == 1 / 32 and first["effect"] < -5
    assert second["against_mean"] == 20 and second["mean"] == pytest.approx(5.0)
    assert first["p_holm"] == pytest.approx(max(2 * min(first["p"], second["p"]), first["p"]), rel=1e-4)


@pytest.mark.parametrize(
    ("gap", "psnr", "verdict"),
    [
        (0.3, 25.0, "reproduced"),
        (-0.3, 25.0, "partly"),
        (0.3, 20.9, "partly"),  # above 20, but not by the margin of 1
        (0.021, 19.0, "not reproduced"),  # right direction, within the noise
    ],
)
def test_verdicts(fill, gap, psnr, verdict):
    fill(gap, psnr)
    claims = evaluate("demo")["claims"]
    assert claims[0]["verdict"] == verdict
    assert claims[1]["verdict"] == "not tested" and claims[1]["needs"] == "a GPU day"


def test_gains_are_compared_within_each_seed(write, rules, arguments):
    """By hand: a - b is 0.1 and c - d is 0.3, whatever the seed adds to all four."""
    for name in ("a", "b", "c", "d"):
        rules["arms"][name] = {"description": name, "tuning": "none", "trials": 3}
    gain = {"measure": "r", "unit": "", "comparison": "lower", "arm": "a", "less": "b"}
    rules["claims"][1] = {
        **rules["claims"][1],
        "comparisons": [
            {**gain, "against": "c", "against_less": "d"},
            {**gain, "against": "c", "against_less": "d", "factor": 0.25},
            {**gain, "against": 0.5},
        ],
    }
    del rules["claims"][1]["needs"]
    write(rules)
    for seed in range(5):
        base = 0.01 * seed**2
        offsets = {"a": 0.1 + base, "b": base, "c": 7.3 - base, "d": 7.0 - base}
        for name, value in offsets.items():
            record_run("demo", name, seed, {"r": value + 0.001 * (seed == 2) * (name == "a")}, **arguments())
    first, quarter, number = evaluate("demo")["claims"][1]["comparisons"]
    assert first["arm_mean"] == pytest.approx(0.1002) and first["against_mean"] == pytest.approx(0.3)
    assert first["holds"] and first["mean"] == pytest.approx(-0.1998) and first["less"] == "b"
    assert not quarter["holds"] and quarter["against_mean"] == pytest.approx(0.075)
    assert number["holds"] and "factor" not in number and "against_less" not in number
    comparison = load_rules("demo").claim("C2").comparisons[1]
    assert comparison.names == ("a − b", "0.25 · (c − d)") and comparison.arms == ("a", "b", "c", "d")


def test_two_measures_of_one_arm_are_compared_within_each_seed(write, rules, arguments):
    """By hand: the joint embedding has 0.2 more than one of its heads, whatever the seed adds to both."""
    rules["arms"]["whole"] = {"description": "whole", "tuning": "none", "trials": 3}
    entry = {"measure": "joint", "unit": "", "comparison": "higher", "arm": "whole", "against": "whole"}
    claim = {k: v for k, v in rules["claims"][1].items() if k != "needs"}
    rules["claims"][1] = {**claim, "comparisons": [entry]}
    with pytest.raises(BookError, match="against itself"):
        write(rules)
        load_rules("demo")
    rules["claims"][1]["comparisons"] = [{**entry, "against_measure": "head"}]
    write(rules)
    for seed in range(5):
        head = 0.3 + 0.01 * seed**2
        values = {"head": head, "joint": head + 0.2 + 0.001 * (seed == 2)}
        record_run("demo", "whole", seed, values, **arguments())
    (found,) = evaluate("demo")["claims"][1]["comparisons"]
    assert found["holds"] and found["mean"] == pytest.approx(0.2002) and found["against_measure"] == "head"
    assert load_rules("demo").measures("whole") == ["joint", "head"]
    assert load_rules("demo").claim("C2").comparisons[0].names == ("whole, joint", "whole, head")


def test_a_missing_seed_means_not_tested(fill):
    fill(seeds=range(4))
    claim = evaluate("demo")["claims"][0]
    assert claim["verdict"] == "not tested" and claim["measured"] is None and claim["n_seeds"] == 4


def test_one_claim_more_can_cost_another_its_verdict(fill, rules, write):
    fill(gap=0.06, psnr=25.0)
    alone = evaluate("demo")["claims"][0]
    assert alone["verdict"] == "reproduced"
    p = alone["comparisons"][0]["p"]
    for i in range(int(0.05 / p) + 2):  # a family in which Holm's last steps exceed the level
        comparison = {"measure": "error", "unit": "", "comparison": "higher", "arm": "full", "against": 9 + i}
        rules["claims"].append({**rules["claims"][1], "id": f"D{i}", "comparisons": [comparison]})
        del rules["claims"][-1]["needs"]
    write(rules)
    claim = evaluate("demo")["claims"][0]
    assert claim["comparisons"][0]["low"] < 0 and not claim["comparisons"][0]["holds"]
    assert claim["verdict"] == "partly"


def test_a_claim_left_out_still_counts_in_the_correction(fill, rules, write):
    fill()
    before = evaluate("demo")["claims"][0]["comparisons"]
    comparison = {**rules["claims"][0]["comparisons"][0], "arm": "third"}
    rules["arms"]["third"] = rules["arms"]["plain"]
    rules["claims"].append(
        {**rules["claims"][0], "id": "C3", "must_show": False, "comparisons": [comparison]}
    )
    write(rules)
    claims = evaluate("demo")["claims"]
    assert claims[2]["verdict"] == "not tested"
    smallest = min(range(2), key=lambda i: before[i]["p"])
    after = claims[0]["comparisons"][smallest]["p_holm"]
    assert after == pytest.approx(1.5 * before[smallest]["p_holm"], rel=1e-4)  # three instead of two


def test_results_that_disagree_with_the_runs_are_refused(fill, arguments):
    fill()
    aggregate("demo")
    record_run("demo", "plain", 0, {"error": 2.0}, **arguments(), replace=True)
    with pytest.raises(BookError, match=r"demo.json disagrees with its runs.*aggregate\('demo'\)"):
        load_results("demo")
    aggregate("demo")
    assert load_results("demo")["claims"][0]["n_seeds"] == 5


def test_rules_before_runs_is_right(write, rules, commit, fill):
    write(rules)
    commit()
    fill()
    commit()
    assert rules_precede_runs("demo") == []
    rules["claims"][0]["statement"] = "Better words."
    rules["seeds"].append(5)
    write(rules)
    commit()
    assert rules_precede_runs("demo") == []


def test_rules_with_or_after_runs_are_wrong(write, rules, commit, fill, repo):
    assert rules_precede_runs("demo") == ["book/results/rules/demo.yaml is not committed"]
    fill()
    commit()
    assert "not before the first run" in rules_precede_runs("demo")[0]


def test_runs_committed_first_are_found_out(commit, fill, repo, rules, write):
    fill(seeds=range(2))
    path = repo / "book" / "results" / "rules" / "demo.yaml"
    text = path.read_text()
    path.unlink()
    commit()
    path.write_text(text)
    commit()
    fill(seeds=range(2, 5))  # later runs do not make up for the first
    commit()
    assert "not before the first run" in rules_precede_runs("demo")[0]


def test_a_new_edition_may_have_other_rules_if_it_names_the_old_one(write, rules, commit, fill, repo):
    write(rules)
    commit()
    fill()
    commit()
    git = ["git", "-C", str(repo), "rev-parse", "HEAD"]
    old = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    for path in (repo / "book" / "results" / "runs" / "demo").glob("*.json"):
        path.unlink()
    rules["claims"][0]["comparisons"][1]["margin"] = 0
    write(rules)
    commit()
    assert f"withdrawn does not name {old[:8]}" in rules_precede_runs("demo")[0]
    rules["withdrawn"] = [{"commit": old[:8], "runs": 10, "outcome": "C1 partly", "why": "a faulty network"}]
    write(rules)
    commit()
    assert rules_precede_runs("demo") == []
    fill()
    commit()
    assert rules_precede_runs("demo") == [] and load_rules("demo").withdrawn[0].runs == 10
    rules["claims"][0]["comparisons"][1]["margin"] = 1  # bent after the second edition's runs
    write(rules)
    assert "decides otherwise" in rules_precede_runs("demo")[0]


def test_a_rule_bent_after_the_runs_is_found_out(write, rules, commit, fill):
    write(rules)
    commit()
    fill()
    commit()
    rules["claims"][0]["comparisons"][1]["margin"] = 0
    write(rules)
    assert rules_precede_runs("demo")[0].startswith("book/results/rules/demo.yaml: C1 decides otherwise")
    assert load_rules("demo").claims[0].comparisons[1].margin == 0
