from __future__ import annotations

import re
from itertools import pairwise

import pytest

from cvlib.claims import aggregate, claim_plot, claims_table, ledger, record, scoreboard
from cvlib.claims.tables import _difference, _pairs
from cvlib.errors import BookError
from cvlib.show import figure


def test_ledger_counts_minutes(fill):
    fill(seeds=range(2))
    text = ledger("demo").text.splitlines()
    full, plain, total = text[2:5]
    assert "2 of 5" in full and full.split()[-3:] == ["1.5", "3", "4.5"]
    assert "2 of 5" in plain and plain.split()[-3:] == ["0.5", "1", "1.5"]
    assert "4 of 10" in total and total.split()[-2:] == ["4", "6"]


def test_ledger_folds_the_tuning_away(fill, capsys):
    fill()
    shown = ledger("demo")
    assert "three learning rates" not in shown.html and "trials" in shown.html
    assert "`full`: three learning rates" in capsys.readouterr().out.split("How the arms were tuned")[1]


def test_ledger_folds_the_notes_of_the_rules_too(write, rules, capsys):
    write({**rules, "notes": "seeds were  never\n  used"})
    ledger("demo")
    assert "How the arms were tuned\nnotes: seeds were never used\n" in capsys.readouterr().out


def test_ledger_guesses_from_the_rules_before_the_first_run(write, rules):
    write(rules)
    full, plain, total = ledger("demo").text.splitlines()[2:5]
    assert full.split()[-3:] == ["6", "0", "30"]
    assert plain.split()[-3:] == ["–", "0", "–"]
    assert "0 of 10" in total


def test_ledger_says_what_is_stale(fill, repo):
    fill()
    assert "changed since" not in ledger("demo").text
    (repo / "cvlib" / "a.py").write_text("x = 1\n")
    assert "10 of the runs rest on code that has changed since" in ledger("demo").text


def test_claims_table_sets_the_paper_beside_ours(fill):
    fill()
    aggregate("demo")
    html = claims_table("demo").html
    for wanted in (
        "C1</strong> ★",
        "7.9 (Table 4)",
        "-0.28 [",
        "L1",
        "<strong>reproduced</strong>",
        "<strong>holds</strong>, ",
        "needs a GPU day",
    ):
        assert wanted in html, wanted


def rows_of_scoreboard() -> list[list[str]]:
    """Return the cells of the scoreboard's rows."""
    return [re.split(r"\s{2,}", row.strip()) for row in scoreboard().text.splitlines()[2:]]


def test_scoreboard_has_a_row_per_chapter(fill, rules, write):
    fill()
    write({**rules, "chapter": "later"}, "later")
    assert rows_of_scoreboard()[0][2:] == ["2 not tested", "–", "–", "0.17"]  # not aggregated
    aggregate("demo")
    demo, later = rows_of_scoreboard()
    assert demo[0] == "`demo`" and demo[2:] == ["1 reproduced; 1 not tested", "C1 reproduced", "–", "0.17"]
    assert later[0] == "`later`" and later[2:] == ["2 not tested", "–", "–", "0"]


def test_ablations_of_our_own_are_no_claims_of_the_paper(fill, rules, write):
    rules["claims"].append({**rules["claims"][0], "id": "A1", "ours": True, "must_show": False})
    write(rules)
    fill()
    aggregate("demo")
    (demo,) = rows_of_scoreboard()
    assert demo[2] == "1 reproduced; 1 not tested" and demo[4] == "1 of 1 hold"
    rules["claims"].append({**rules["claims"][1], "id": "A2", "ours": True})  # nobody ran it: it did not fail
    write(rules)
    aggregate("demo")
    assert "1 of 1 hold; 1 not tested" in scoreboard().text


def test_what_is_asked_again_stands_in_the_row_of_its_chapter(fill, rules, write, arguments):
    fill()
    aggregate("demo")
    (alone,) = rows_of_scoreboard()
    again = {**rules, "chapter": "demo_b", "follows": "demo", "claims": [{**rules["claims"][0], "id": "C1b"}]}
    write(again, "demo_b")
    assert rows_of_scoreboard() == [alone] and "demo_b" not in scoreboard().text
    for arm, error in (("full", 1.0), ("plain", 0.5)):  # the second time it is the other way round
        for seed in range(5):
            record("demo_b", arm, seed, {"error": error + 0.01 * seed, "psnr": 10.0}, **arguments(seconds=36))
    aggregate("demo_b")
    (row,) = rows_of_scoreboard()
    assert row[3] == "C1 reproduced; C1b not reproduced" and "`demo_b`" not in scoreboard().text
    assert row[2] == alone[2]  # no further claim of the paper
    assert float(row[-1]) == float(alone[-1]) + 0.1


def test_plot_states_the_finding(fill):
    fill()
    aggregate("demo")
    out = claim_plot("demo", "C1")
    assert "Claim C1, reproduced. error of full minus plain: -0.28 [" in out.text
    assert 'alt="Claim C1' in out.html and "5 seeds" in out.html
    with pytest.raises(BookError, match="C2 of demo is not tested"):
        claim_plot("demo", "C2")
    with pytest.raises(BookError, match="claim 'C9' of demo"):
        claim_plot("demo", "C9")


@pytest.mark.parametrize("scale", [1.0, 0.01, 1e-4])
def test_names_and_numbers_of_a_plot_do_not_run_into_each_other(scale):
    long = {
        "arm": "ours-gradient",
        "against": "kmeans-features-gradient",
        "against_measure": "after an eighth",
    }
    entry = {"measure": "equivariance", "unit": "", "comparison": "higher", "margin": 0.0, **long}
    entry |= {"mean": -0.3 * scale, "low": -0.9 * scale, "high": 0.3 * scale}
    fig, (left, right) = figure(height=2.6, columns=2)
    _pairs(left, entry, [0.3, 0.4], [0.2, 0.3])
    _difference(right, entry, [-1.3 * scale, 1.0 * scale])
    fig.set_dpi(200)
    fig.draw_without_rendering()
    for ax in (left, right):
        shown = [label for label in ax.get_xticklabels() if label.get_text()]
        ends = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in shown))
        assert len(ends) >= 2 and all(a[1] < b[0] for a, b in pairwise(ends))
