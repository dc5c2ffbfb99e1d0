from __future__ import annotations

import json
import re

import pytest
import torch

from cvlib.errors import BookError
from cvlib.show import search

ALT = "A box to search five pictures with two ways of answering."


def parts(**changes):
    good = {
        "images": torch.linspace(-1, 1, 5)[:, None, None, None].expand(-1, 3, 8, 8),
        "queries": [("red <apple>", 0), ("snail", 3)],
        "answers": {"before": [[(1, False)], [(2, True)]], "after": [[(4, True)], [(0, False)]]},
        "alt": ALT,
    }
    return {**good, **changes}


def test_everything_that_the_script_needs_is_in_the_output():
    out = search(**parts(caption="Five pictures."))
    config = json.loads(re.search(r"const c = (\{.*?\}), box", out.html).group(1))
    assert config["names"] == ["before", "after"] and config["queries"] == [["red <apple>", 0], ["snail", 3]]
    assert config["answers"] == [[[[1, 0]], [[2, 1]]], [[[4, 1]], [[0, 0]]]]
    assert config["columns"] * config["rows"] >= 5 and "Five pictures." in out.html and out.text == ALT
    assert "<apple>" not in out.html.replace("\\u003c", "")  # a name cannot become markup
    assert "http" not in out.html.replace("http://www.w3.org", "")


def test_the_same_search_has_the_same_name_and_another_does_not():
    names = [
        re.search(r'data-cv="(cv-\w+)"', search(**p).html).group(1)
        for p in (parts(), parts(), parts(quality=None))
    ]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": []}, "0 queries"),
        ({"answers": {"one": [[(1, True)]]}}, "2 queries, answers for"),
        ({"queries": [("a", 0), ("b", 5)]}, "pictures 0 to 5; wanted 0 to 4"),
        ({"alt": "short"}, "alt text"),
    ],
)
def test_what_cannot_be_searched_is_told(changes, message):
    with pytest.raises(BookError, match=message):
        search(**parts(**changes))
