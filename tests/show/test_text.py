from __future__ import annotations

import pytest

from cvlib.errors import BookError
from cvlib.show import cell_text, credits, folded, say, table


def test_table_aligns_numbers_and_escapes_cells():
    out = table([["a<b", 0.12345, 3], ["**best**", None, 17372]], ["arm", "error", "n"], caption="Errors")
    assert "a&lt;b" in out.html and "<strong>best</strong>" in out.html
    assert out.html.count("text-align:right") == 6  # two columns of three cells
    assert "overflow-x:auto" in out.html and 'tabindex="0"' in out.html and 'aria-label="Errors"' in out.html
    assert out.html.count('scope="col"') == 3
    assert out.text.splitlines() == [
        "Errors",
        "arm       error  n",
        "a<b       0.123  3",
        "**best**  –      17,372",
    ]


def test_truth_is_a_word_and_an_empty_table_has_a_head():
    assert ">yes<" in table([[True]], ["holds"]).html
    assert table([], ["a", "b"]).html.count("<th ") == 2


def test_ragged_rows_are_refused():
    with pytest.raises(BookError, match="a table row of 1 cells"):
        table([["a", 1], ["b"]], ["arm", "error"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (-0.00012345, "-0.000123"), (float("inf"), "inf"), (100.4, "100")],
)
def test_numbers_read_well(value, text):
    assert cell_text(value) == text


def test_say_fills_in_numbers_and_leaves_latex_alone():
    assert say("falls by {d:.1f} dB", d=1.26).markdown == "falls by 1.3 dB"
    assert say(r"$\frac{a}{b}$").markdown == r"$\frac{a}{b}$"


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        ("x {a}", {"a": float("nan")}, "not finite"),
        ("x {a}", {"a": 1.0, "b": 2.0}, "never named"),
        ("x {a} {c}", {"a": 1.0}, "lacks a value for 'c'"),
    ],
)
def test_say_never_shows_a_broken_number(template, values, message):
    with pytest.raises(BookError, match=message):
        say(template, **values)


def test_credits_name_every_drawing_hand():
    text = credits("emoji", "emoji-noto").text
    assert text.startswith("Made from ") and text.count("(") >= 9
    assert text.count("Noto") <= 2  # noto and noto-v1, each once
    with pytest.raises(BookError, match="unknown asset 'emojis'"):
        credits("emojis")


def test_lines_break_in_a_cell_but_not_in_plain_text():
    out = table([["one\ntwo", "x" * 50]], ["a", "b"])
    assert "one<br>two" in out.html and "min-width:14em" in out.html
    assert "one; two" in out.text


def test_what_few_need_is_folded_but_read_in_plain_text():
    shown = folded("How *all* were tuned", {"`a`": "one\ntwo & three", "`b`": "as **a**"})
    assert shown.html.startswith("<details") and "<summary" in shown.html and " open" not in shown.html
    assert "<dt><code>a</code></dt><dd>one<br>two &amp; three</dd>" in shown.html
    assert "as <strong>a</strong>" in shown.html and "How <em>all</em> were tuned" in shown.html
    assert shown.text.splitlines() == ["How *all* were tuned", "`a`: one; two & three", "`b`: as **a**"]


def test_nothing_is_not_folded():
    with pytest.raises(BookError, match="nothing to fold under 'tuning'"):
        folded("tuning", {})
