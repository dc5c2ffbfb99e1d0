"""What the page "s2sd_claims" defines: the arms that the rules name, and what tells them apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvlib.claims import follow_ups, load_rules, runs
from cvlib.pages import definitions

PAGES = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(PAGES / "s2sd_claims.py")


@pytest.fixture(scope="module")
def methods(page):
    story = definitions(PAGES / "s2sd.py")
    return {name: story.Method(**changes) for name, changes in page.ARMS.items()}


def test_arms_are_those_of_the_rules(page):
    rules = load_rules("s2sd")
    assert set(page.ARMS) == set(rules.arms) and set(page.STRETCH) <= set(page.ARMS)
    measures = {measure for arm in rules.arms for measure in rules.measures(arm)}
    assert measures == {"Recall@1", "Recall@1 of features", "spectral decay", "intra / inter"}
    assert all(measures <= set(run["values"]) for run in runs("s2sd"))


def test_names_say_objective_and_dimension(methods):
    for name, method in methods.items():
        objective, dim, *_ = name.split("-")
        assert method.dim == int(dim)
        assert method.objective == ("margin" if objective == "margin" else "multisimilarity")


def test_every_step_of_the_ladder_adds_one_thing(methods):
    plain, heads, dsd, msd, msdf = (methods[f"ms-32{x}"] for x in ("", "-heads", "-dsd", "-msd", "-msdf"))
    assert not plain.widths and heads.widths and not heads.gamma and not heads.gamma_features
    assert len(dsd.widths) == 1 and dsd.gamma and not dsd.gamma_features
    assert msd.widths == heads.widths == msdf.widths and msd.gamma == msdf.gamma and not msd.gamma_features
    assert msdf.gamma_features and msdf.detach and not methods["ms-32-pulled"].detach
    assert methods["ms-32-msdfa"].pool_aggr and not msdf.pool_aggr


def test_rates_are_those_that_the_trials_chose(methods):
    """The rules list what each trial gave; the arm must have the best, and no other."""
    rules = load_rules("s2sd")
    for name, key in (("ms-32", "learning_rate"), ("margin-32", "learning_rate"), ("ms-32-msdf", "gamma"),
                      ("margin-32-msdf", "gamma")):  # fmt: skip
        text = rules.arms[name].tuning.removeprefix("learning rate ").removeprefix("gamma ")
        tried = {float(v): float(r.rstrip(")")) for v, r in (entry.split(" (") for entry in text.split(", "))}
        assert len(tried) == rules.arms[name].trials == 3
        assert getattr(methods[name], key) == max(tried, key=tried.get)


def test_the_question_at_128_px_is_the_first_of_c1_and_nothing_else(page):
    first, again = load_rules("s2sd"), load_rules(page.AGAIN)
    (claim,) = again.claims
    assert claim.comparisons == first.claim("C1").comparisons[:1]
    assert page.AGAIN_SIZE == 128 and str(page.AGAIN_SIZE) in claim.id and follow_ups("s2sd") == [page.AGAIN]
    used = {0, *first.seeds, *(seed for entry in first.claims for seed in entry.seeds)}  # 0: the trials
    assert len(again.seeds) == len(first.seeds) and not used & set(again.seeds)


def test_runs_at_128_px_go_stale_with_all_that_those_at_64_px_rest_on(page):
    first, again = load_rules("s2sd"), load_rules(page.AGAIN)
    assert set(first.code) < set(again.code)
    assert {entry.split("::")[-1] for entry in set(again.code) - set(first.code)} == {
        "AGAIN_SIZE",
        "load_split",
    }


def test_both_sizes_have_one_recipe(page):
    """Of two recorded runs of an arm, all that the configuration says agrees, but for the size."""
    for run in runs(page.AGAIN):
        config = dict(run["config"])
        assert config.pop("image_size") == page.AGAIN_SIZE
        assert config == next(r["config"] for r in runs("s2sd") if r["arm"] == run["arm"])
        assert 0 < run["values"]["Recall@1 of frozen features"] < 100
