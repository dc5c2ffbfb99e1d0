from __future__ import annotations

import pytest

from cvlib.claims import follow_ups, load_rules
from cvlib.errors import BookError


def test_rules_are_read_whole(write, rules):
    write(rules)
    read = load_rules("demo")
    assert read.seeds == (0, 1, 2, 3, 4) and list(read.arms) == ["full", "plain"]
    assert read.claims[0].arms == ("full", "plain") and read.claims[0].paper_value == "7.9"
    assert read.claims[0].comparisons[1].against == 20 and read.claims[0].comparisons[1].arms == ("full",)
    assert read.measures("full") == ["error", "psnr"] and read.measures("plain") == ["error"]
    assert read.claim("C2").needs == "a GPU day"


def at(data: dict, *path):
    for key in path[:-1]:
        data = data[key]
    return data, path[-1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("chapter",), "other", "chapter is 'other'; wanted 'demo'"),
        (("seeds",), [0], r"seeds is \[0\]"),
        (("seeds",), [0, 0], r"seeds is \[0, 0\]"),
        (("seeds",), [0, True], "whole numbers"),
        (("seeds",), "01", "seeds is '01' .str."),
        (("wrong",), 1, "unknown key 'wrong'"),
        (("follows",), "demo", "follows is 'demo'; wanted another chapter"),
        (("follows",), "demos", "follows is 'demos'; wanted another chapter"),
        (("claims", 0, "paper"), {"value": 1}, r"claims.C1.paper: key 'source' is missing"),
        (("claims", 0, "must_show"), "yes", "must_show is 'yes'"),
        (("claims", 0, "must_show"), False, "must_show on"),
        (("claims", 1, "id"), "C1", "each id once"),
        (("claims", 1, "needs"), "", "claims.C2: 0 comparisons and needs ''"),
        (("claims", 0, "needs"), "x", "claims.C1: 2 comparisons and needs 'x'"),
        (("claims", 0, "comparisons", 0, "arm"), "ful", r"comparisons\[0\]: unknown arm 'ful'"),
        (("claims", 0, "comparisons", 0, "against"), "full", "against itself"),
        (("claims", 0, "comparisons", 0, "comparison"), "better", "comparison is 'better'"),
        (("claims", 0, "comparisons", 1, "margin"), float("nan"), "margin is 'nan'"),
        (("claims", 0, "comparisons", 1, "margin"), True, "margin is 'True'"),
        (("arms", "plain", "trials"), 9, "same tuning budget"),
        (("arms", "third"), {"description": "", "tuning": "", "trials": 3}, "in no comparison"),
        (("arms", "a/b"), {"description": "", "tuning": "", "trials": 3}, "arm 'a/b'"),
        (("arms", "x-s1"), {"description": "", "tuning": "", "trials": 3}, "arm 'x-s1'"),
        (("arms", "plain", "trials"), "3", "arms.plain: trials is '3'"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_one_clear_line(write, rules, path, value, message):
    mapping, key = at(rules, *path)
    mapping[key] = value
    write(rules)
    with pytest.raises(BookError, match=message) as error:
        load_rules("demo")
    assert "rules/demo.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["chapter", "paper", "data", "seeds", "arms", "claims"])
def test_a_missing_key_is_named(write, rules, key):
    del rules[key]
    write(rules)
    with pytest.raises(BookError, match=f"rules/demo.yaml: key '{key}' is missing"):
        load_rules("demo")


def test_missing_and_broken_files_are_named(write, rules):
    path = write(rules)
    with pytest.raises(BookError, match=r"other\.yaml is missing; wanted a chapter with rules: demo"):
        load_rules("other")
    path.write_text("chapter: [", encoding="utf-8")
    with pytest.raises(BookError, match=r"demo\.yaml: while parsing"):
        load_rules("demo")
    path.write_text("- a list", encoding="utf-8")
    with pytest.raises(BookError, match="wanted a mapping"):
        load_rules("demo")


def test_what_is_asked_again_names_its_chapter(write, rules):
    write(rules)
    write({**rules, "chapter": "demo_b", "follows": "demo"}, "demo_b")
    write({**rules, "chapter": "demo_a", "follows": "demo"}, "demo_a")
    write({**rules, "chapter": "demo_of_another", "follows": "demo_a"}, "demo_of_another")
    assert follow_ups("demo") == ["demo_a", "demo_b"] and not follow_ups("demo_b")
    assert load_rules("demo_a").follows == "demo" and not load_rules("demo").follows
