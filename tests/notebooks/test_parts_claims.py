"""What the page "parts_claims" defines: its arms against the rules, its judges against closed forms."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cvlib import claims
from cvlib.claims import load_rules, runs
from cvlib.data import load
from cvlib.pages import definitions
from cvlib.train import Runtime
from tests.reach import reach

PAGES = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(PAGES / "parts_claims.py")


@pytest.fixture(scope="module")
def story():
    return definitions(PAGES / "parts.py")


@pytest.fixture(scope="module")
def people():
    return load("bodies", "test", 64, pairs="pose", clips=["walk"], shapes=4, poses=6)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# arms and rules


def test_arms_are_those_of_the_rules(page):
    rules = load_rules(page.CHAPTER)
    assert set(page.ARMS) == set(rules.arms)
    assert {arm for wave in page.WAVES for arm in wave} < set(page.ARMS)
    for run in runs(page.CHAPTER):
        assert set(rules.measures(run["arm"])) <= set(run["values"])


def test_what_is_asked_once_more_is_asked_of_the_same_arms_and_code_with_fresh_seeds(page):
    first, again = load_rules(page.CHAPTER), load_rules(page.AGAIN)
    assert again.follows == page.CHAPTER and again.code == first.code
    assert set(again.arms) <= set(page.ARMS) and not set(again.seeds) & set(first.seeds)
    assert {claim.id for claim in again.claims} == {*page.PAIRED, "A7"}
    for name, (where, place) in page.PAIRED.items():
        (asked,) = again.claim(name).comparisons
        assert asked == first.claim(where).comparisons[place]
    (control,) = again.claim("A7").comparisons  # differs in the target alone
    low, ours = (page.ARMS[arm] for arm in control.arms)
    assert replace(low, target=ours.target) == ours and low.target < ours.target
    for run in runs(page.AGAIN):
        assert set(again.measures(run["arm"])) <= set(run["values"])


def test_a_comparison_is_moved_to_the_other_wall_with_both_of_its_arms(page):
    rules = load_rules(page.CHAPTER)
    bar, free = rules.claim("P4").comparisons
    assert page.elsewhere(bar, "-gradient") == replace(bar, arm="ours-gradient")
    assert page.elsewhere(free, "-gradient") == replace(free, arm="ours-gradient", against="free-gradient")
    assert page.elsewhere(rules.claim("P3").comparisons[1], "-gradient") is None  # nobody ran it there


def test_what_must_show_is_run_before_the_rest_and_in_whole_pairs(page):
    rules = load_rules(page.CHAPTER)
    needed = {arm for claim in rules.claims if claim.must_show for arm in claim.arms}
    assert needed == {arm for wave in page.WAVES for arm in wave}
    pairs = [(arm, seed) for arm in reversed(page.ARMS) for seed in rules.seeds[::-1]]
    found = page.in_order(pairs)
    assert sorted(found) == sorted(pairs)
    size = len(rules.seeds) * len(page.WAVES[0])
    assert {arm for arm, _ in found[:size]} == set(page.WAVES[0])
    first = found[: len(page.WAVES[0])]
    assert {seed for _, seed in first} == {rules.seeds[0]} and {arm for arm, _ in first} == set(page.WAVES[0])


def test_seeds_are_none_that_trials_used(page):
    rules = load_rules(page.CHAPTER)
    used = {*rules.seeds, *(seed for claim in rules.claims for seed in claim.seeds)}
    assert min(used) > 24 and max(page.TRIAL_SEEDS) <= 9  # 20 to 24 were the first edition's


def test_arms_differ_from_the_recipe_in_what_their_names_say(page, story):
    default = asdict(story.Objective())

    def changed(name):
        arm = page.ARMS[name]
        found = asdict(page.objective_of(arm))
        of_wall = default | {"head_start": page.HEAD_START[arm.background]}
        return {key for key in found if found[key] != of_wall[key]}

    assert not any(changed(f"ours{end}") for end in page.ENDINGS.values()) and not changed("no-pair")
    assert changed("free") == changed("free-gradient") == {"is_constrained", "r_range"}
    assert changed("blunt") == {"sharpness"} and changed("unconcentrated") == {"concentration"}
    assert changed("scattered") == {"head_start"} and changed("unbounded") == {"patch"}
    assert changed("target-low") == changed("target-high") == {"mi_target"}
    low, high = (
        page.objective_of(page.ARMS[f"target-{end}"]).mi_target / default["mi_target"]
        for end in ("low", "high")
    )
    assert (low, high) == pytest.approx((1 / 5, 5))
    assert [name for name, arm in page.ARMS.items() if not arm.is_paired] == ["no-pair"]
    for name, arm in page.ARMS.items():
        assert name.endswith(page.ENDINGS[arm.background]) and (
            arm.clusters in name if arm.clusters else "kmeans" not in name
        )


def test_terms_that_are_off_weigh_nothing_at_any_time(page, story):
    for name, term in (
        ("blunt", "sharpness"),
        ("unconcentrated", "concentration"),
        ("scattered", "head_start"),
        ("unbounded", "patch"),
    ):
        objective = page.objective_of(page.ARMS[name])
        assert all(0 <= objective.at(progress / 10)[term] < 1e-6 for progress in range(11))


def test_k_means_has_the_settings_that_the_trials_chose(page):
    """The rules list what each trial gave; the page must have the best, and no other."""
    arms = load_rules(page.CHAPTER).arms
    assert set(page.CHOSEN) == {name for name, arm in page.ARMS.items() if arm.clusters}
    spent = dict.fromkeys(("kmeans-colour", "kmeans-features"), 0)
    for name, tried in page.TRIALS.items():
        entries = [entry.split(" (") for entry in arms[name].tuning.split(": ")[-1].split("; ")]
        listed = [[float(v) for v in setting.split(" at ")] for setting, _ in entries]
        assert listed == [list(changes.values()) for changes in tried]
        results = [float(result.rstrip(")")) for _, result in entries]
        assert tried[results.index(max(results))] == page.CHOSEN[name]
        spent[name.removesuffix("-gradient")] += len(results) * len(page.TRIAL_SEEDS)
    for kind, runs_spent in spent.items():
        assert runs_spent == arms[kind].trials
        assert page.CHOSEN[f"{kind}-photo"] == page.CHOSEN[f"{kind}-gradient"]


def test_a_change_of_anything_that_a_run_rests_on_makes_it_stale(page):
    """All that training and judging reach in the pages, from name to name, is in the rules' code."""
    starts = [("parts_claims", name) for name in ("run_model", "run_clusters", "N_CHECKS")]
    needed = reach(*starts, ("parts_judge", "lay_out"))
    assert len(needed) > 50 and needed <= set(load_rules(page.CHAPTER).code)
    pages = ("parts", "parts_claims", "parts_judge", "parts_learning", "parts_model", "parts_swaps")
    assert {name.split("::")[0] for name in needed} == {f"notebooks/{page}.py" for page in pages}


# pairs


def test_alone_pairs_every_image_with_itself_and_is_another_data_set(page, people):
    same = page.alone(people)
    rows = torch.tensor([0, 5, 9])
    batch = same.render(rows, same.draw(rows, gen(), True))
    assert torch.equal(batch["image"], batch["partner"]) and torch.equal(batch["partner_index"], rows)
    paired = people.render(rows, people.draw(rows, gen(), True))
    assert torch.equal(paired["image"], batch["image"])  # the same backgrounds in the same batch
    assert not torch.equal(paired["image"], paired["partner"]) and same.hash != people.hash


# numbers over time and seeds


def test_a_seed_succeeds_if_it_leads_the_better_rival_by_more_than_the_margin(page):
    ours = {20: 0.40, 21: 0.30, 22: 0.25, 23: 0.9}
    rivals = [{20: 0.20, 21: 0.10, 22: 0.10}, {20: 0.10, 21: 0.26, 22: 0.30, 23: 0.1}]
    found = page.leads(ours, rivals, margin=0.05)
    assert {s: ok for s, (_, ok) in found.items()} == {20: True, 21: False, 22: False}
    assert [lead for lead, _ in found.values()] == pytest.approx([0.20, 0.04, -0.05])
    (a1,) = (claim for claim in load_rules(page.CHAPTER).claims if claim.id == "A1")
    assert {comparison.margin for comparison in a1.comparisons} == {page.MARGIN}


def test_every_claim_of_the_rules_has_a_reading(page):
    assert set(page.READINGS) == {claim.id for claim in load_rules(page.CHAPTER).claims}


# a model and a k-means from end to end


@pytest.fixture(scope="module")
def bench(page, story):
    config = replace(
        story.PartsConfig(),
        n_parts=4,
        shape_widths=(8, 8),
        decoder_widths=(8, 8),
        critic_width=8,
        critic_blocks=1,
    )
    recipe = replace(page.Recipe(), steps=2, batch_size=2, n_checks=2)
    return page.lay_out("plain", ["walk"], config, recipe, Runtime("cpu", "fp32"), False, True)


def test_every_kind_of_arm_gives_what_the_rules_ask(page, bench, tmp_path):
    wanted = load_rules(page.CHAPTER).measures
    values, beside = page.run_model(bench, "no-pair", 0, str(tmp_path))
    every = set().union(*(wanted(name) for name, arm in page.ARMS.items() if not arm.clusters))
    assert every <= set(values) and all(torch.tensor(v).isfinite() for v in values.values())
    assert len(beside["losses"]) == 2 and [row[0] for row in beside["curve"]] == [1, 2]
    assert values["equivariance"] == beside["extra"]["equivariance"][-1][1]
    values, beside = page.run_clusters(bench, "kmeans-colour", 0)
    assert set(wanted("kmeans-colour")) <= set(values) and beside["losses"][0] > 0
    assert page.first_losses(bench, "kmeans-colour", 0) == beside["losses"]
    assert page.first_losses(bench, "kmeans-colour", 1) != beside["losses"]


def test_a_run_is_recorded_whole_and_its_first_losses_can_be_repeated(page, bench, tmp_path, monkeypatch):
    noted = {}
    monkeypatch.setattr(claims, "record", lambda *where, **told: noted.update(where=where, **told))
    page.run_and_record("parts", bench, "free", 3, str(tmp_path))
    chapter, arm, seed, values = noted.pop("where")
    assert (chapter, arm, seed) == ("parts", "free", 3) and values["IoU"] >= 0
    assert noted["config"]["objective"]["is_constrained"] is False and noted["config"]["recipe"]["steps"] == 2
    assert page.first_losses(bench, "free", 3) == pytest.approx(noted["losses"])
    known = {field.name for field in fields(bench.recipe)}
    assert set(noted["config"]["recipe"]) == known


def test_a_replay_takes_the_first_twenty_steps_of_the_whole_recipe(page, monkeypatch):
    asked = {}

    def train_parts(config, objective, recipe, *_, **options):
        asked.update(recipe=recipe, **options)
        return None, None, SimpleNamespace(result={"first_losses": {"loss": [1.0]}})

    monkeypatch.setattr(page, "train_parts", train_parts)
    held = {name: torch.zeros(4, 3, 8, 8) for name in ("validation", "test")}
    recipe = SimpleNamespace(steps=2000)
    bench = page.Bench({"train": None}, None, recipe, None, False, held, held, {})
    assert page.first_losses(bench, "ours", 0) == [1.0]
    assert asked["stop"] == 20 and asked["recipe"].steps == 2000  # rates and weights go by the whole
