"""What the page "parts_claims" defines: its arms against the rules, its judges against closed forms."""

from __future__ import annotations

import ast
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cvlib import claims
from cvlib.claims import load_rules, runs
from cvlib.data import load
from cvlib.pages import definitions
from cvlib.train import Runtime

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
    assert min(used) > 9 and max(page.TRIAL_SEEDS) <= 9


def test_arms_differ_from_the_recipe_in_what_their_names_say(page, story):
    default = asdict(story.Objective())

    def changed(name):
        found = asdict(page.objective_of(story, page.ARMS[name]))
        return {key for key in found if found[key] != default[key]}

    assert not any(changed(f"ours{end}") for end in page.ENDINGS.values()) and not changed("no-pair")
    assert changed("free") == changed("free-gradient") == {"is_constrained", "r_range"}
    assert changed("blunt") == {"sharpness"} and changed("unconcentrated") == {"concentration"}
    assert changed("scattered") == {"head_start"} and changed("unbounded") == {"patch"}
    assert changed("target-low") == changed("target-high") == {"mi_target"}
    low, high = (
        page.objective_of(story, page.ARMS[f"target-{end}"]).mi_target / default["mi_target"]
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
        objective = page.objective_of(story, page.ARMS[name])
        assert all(0 <= objective.at(progress / 10)[term] < 1e-6 for progress in range(11))


def test_k_means_has_the_settings_that_the_trials_chose(page):
    """The rules list what each trial gave; the page must have the best, and no other."""
    arms = load_rules(page.CHAPTER).arms
    chosen = {
        "kmeans-colour": {"place": page.PLACE},
        "kmeans-features": {"stage": page.STAGE, "enlarged": page.ENLARGED},
    }
    for name, settings in chosen.items():
        entries = [entry.split(" (") for entry in arms[name].tuning.split(": ")[-1].split("; ")]
        tried = [[float(v) for v in setting.split(" at ")] for setting, _ in entries]
        assert tried == [list(changes.values()) for changes in page.TRIALS[name]]
        results = [float(result.rstrip(")")) for _, result in entries]
        assert len(results) * len(page.TRIAL_SEEDS) == arms[name].trials
        assert page.TRIALS[name][results.index(max(results))] == settings


def _defined(path):
    found = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {t.id: node for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()}
    return found


def _used(node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute) and "story" in (
            getattr(part.value, "id", ""),
            getattr(part.value, "attr", ""),
        ):
            yield part.attr


def test_a_change_of_anything_that_a_run_rests_on_makes_it_stale(page):
    """All that training and judging reach in the pages, from name to name, is in the rules' code."""
    names = ("parts", "parts_learning", "parts_model", "parts_swaps")
    own = _defined(PAGES / "parts_claims.py")
    others = {name: _defined(PAGES / f"{name}.py") for name in names}
    home = {name: where for where, found in others.items() for name in found}
    assert len(home) == sum(map(len, others.values()))  # a definition has one home
    seen, ahead = (
        set(),
        [("parts_claims", name) for name in ("run_model", "run_clusters", "lay_out", "N_CHECKS")],
    )
    while ahead:
        where, name = ahead.pop()
        if (where, name) in seen:
            continue
        seen.add((where, name))
        for used in _used((own if where == "parts_claims" else others[where])[name]):
            if where == "parts_claims" and used in own:
                ahead.append((where, used))
            elif used in home:
                ahead.append((home[used], used))
    needed = {f"notebooks/{where}.py::{name}" for where, name in seen} - {
        "notebooks/parts_claims.py::run_model"
    }
    assert {where for where, _ in seen} == {"parts_claims", *names}
    assert len(needed) > 50 and needed <= set(load_rules(page.CHAPTER).code)


# pairs


def test_alone_pairs_every_image_with_itself_and_is_another_data_set(page, people):
    same = page.alone(people)
    rows = torch.tensor([0, 5, 9])
    batch = same.render(rows, same.draw(rows, gen(), True))
    assert torch.equal(batch["image"], batch["partner"]) and torch.equal(batch["partner_index"], rows)
    paired = people.render(rows, people.draw(rows, gen(), True))
    assert torch.equal(paired["image"], batch["image"])  # the same backgrounds in the same batch
    assert not torch.equal(paired["image"], paired["partner"]) and same.hash != people.hash


def test_givers_are_of_two_other_persons(page):
    person = torch.arange(40) % 8
    first, third = page.givers(person, gen())
    assert (person[first] != person).all() and (person[third] != person).all()
    assert (person[third] != person[first]).all() and len(first.unique()) > 15


def test_spaced_rows_hold_both_looks_of_a_pose(page):
    rows = page.spaced(640, 320)
    assert len(rows) == 320 and rows.max() < 640 and torch.equal(rows[::2] + 1, rows[1::2])
    assert torch.equal(page.spaced(48, 320), torch.arange(48))


# maps of parts


def test_part_iou_is_the_ratio_of_summed_intersections_and_unions(page):
    a, b = (torch.randint(0, 4, (3, 7, 5), generator=gen(s)) for s in (0, 1))
    region = torch.rand(3, 7, 5, generator=gen(2)) < 0.6
    both = sum(((a == p) & (b == p) & region).sum() for p in range(4))
    either = sum((((a == p) | (b == p)) & region).sum() for p in range(4))
    assert page.part_iou(a, b, region) == pytest.approx(float(both / either))


def test_thresholding_colour_is_exactly_equivariant_under_whole_pixels(page):
    x = torch.rand(3, 3, 32, 32, generator=gen()) * 2 - 1
    body = torch.zeros(3, 32, 32, dtype=torch.long)
    body[:, 8:24, 8:24] = 1
    shift = torch.tensor([[1.0, 0.0, 2 * 5 / 32], [0.0, 1.0, -2 * 3 / 32]]).expand(3, -1, -1)

    def threshold(z):
        return (z[:, 0] > 0).long() + 2 * (z[:, 1] > 0.3).long()

    assert page.equivariance(threshold, x, body, shift) == 1
    ids = threshold(x)
    fixed = page.equivariance(
        lambda z: ids, x, body, shift
    )  # by hand: place (y, x) comes from (y - 3, x + 5)
    moved = F.pad(ids, (0, 0, 3, 0))[:, :32][:, :, 5:]
    there = torch.zeros(3, 32, 32, dtype=torch.bool)
    there[:, 11:27, 3:19] = True
    assert fixed == pytest.approx(page.part_iou(F.pad(moved, (0, 5)), ids, there))


def test_what_a_warp_brings_in_from_outside_does_not_count(page):
    """Half of the warped image comes from beyond the edge; errors there alone are not blamed."""
    x = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    shift = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]).expand(2, -1, -1)
    errs = iter((False, True))

    def segment(z):
        ids = (z[:, 0] > 0).long()
        return ids.index_fill(2, torch.arange(8, 16), 7) if next(errs) else ids

    assert page.equivariance(segment, x, torch.ones(2, 16, 16, dtype=torch.long), shift) == 1


def test_small_warps_are_as_small_as_said(page):
    warps = page.small_warps(500, gen())
    scale = torch.linalg.det(warps[:, :, :2]).sqrt()
    angle = torch.atan2(warps[:, 1, 0], warps[:, 0, 0]).rad2deg()
    for found, limit in ((scale - 1, page.SCALE), (angle, page.TURN), (warps[:, :, 2], 2 * page.SHIFT)):
        assert 0.95 * limit < found.abs().max() <= limit + 1e-5
    rigid = warps[:, :, :2] / scale[:, None, None]
    torch.testing.assert_close(rigid @ rigid.mT, torch.eye(2).expand(500, -1, -1))


# swaps


def flat_people(seed=0, n=6):
    """Labels (n, 12, 12), and a colour for each label of each image, whose first channel says the label."""
    labels = torch.randint(0, 6, (n, 12, 12), generator=gen(seed))
    colours = torch.rand(n, 6, 3, generator=gen(seed + 1)) * 2 - 1
    colours[..., 0] = torch.arange(6) / 5
    return labels, colours


def paint(labels, colours):
    return torch.stack([c[ids] for ids, c in zip(labels, colours, strict=True)]).movedim(-1, 1)


def test_an_exact_painter_has_no_colour_error_and_one_that_paints_no_swap_has_all_of_it(page, story):
    labels, colours = flat_people()
    images, donors = paint(labels, colours), page.givers(torch.arange(6), gen())

    def scores(made):
        return page.swap_scores(story, made, lambda x: (5 * x[:, 0]).round().long(), images, labels, donors)

    giver, third = donors
    exact = scores(paint(labels, colours[giver]))
    assert exact["colour error"] < 1e-6 and exact["IoU with shape"] == 1 > exact["IoU with giver"]
    to_third = (colours[giver] - colours[third])[:, 1:].abs().mean()  # every label shows in every image
    assert exact["colour error to a third"] == pytest.approx(float(to_third), rel=1e-5)
    kept = scores(images)
    assert kept["colour error"] == pytest.approx(
        float((colours - colours[giver])[:, 1:].abs().mean()), rel=1e-5
    )
    stolen = scores(images[giver])
    assert stolen["IoU with giver"] == 1 > stolen["IoU with shape"]


def test_labels_that_one_of_two_images_hides_have_no_colour_error(page, story):
    labels, colours = flat_people(n=2)
    hidden = labels.clone()
    hidden[0][hidden[0] == 3] = 0  # of the first pair, label 3 is left out
    other = colours.clone()
    other[:, 3] += 0.5
    found = page.colour_error(story, paint(labels, colours), labels, paint(labels, other), hidden)
    assert found == pytest.approx(0.5 / (4 + 5), rel=1e-5)  # one of nine labels differs, by a half


# numbers over time and seeds


def test_late_mean_is_the_mean_over_the_last_steps(page):
    per_step = torch.rand(200, generator=gen()).tolist()
    ends = [30, 100, 150, 160, 200]
    rows = [
        {"step": b, "C1": sum(per_step[a:b]) / (b - a)} for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    rows.insert(2, {"step": 120, "other": 1.0})
    assert page.late_mean(rows, "C1") == pytest.approx(sum(per_step[150:]) / 50)
    halved = [{"step": 4, "C1": 1.0}, {"step": 8, "C1": 3.0}]
    assert page.late_mean(halved, "C1", share=0.75) == pytest.approx((2 * 1 + 4 * 3) / 6)


def test_a_seed_succeeds_if_it_leads_the_better_rival_by_more_than_the_margin(page):
    ours = {20: 0.40, 21: 0.30, 22: 0.25, 23: 0.9}
    rivals = [{20: 0.20, 21: 0.10, 22: 0.10}, {20: 0.10, 21: 0.26, 22: 0.30, 23: 0.1}]
    found = page.leads(ours, rivals, margin=0.05)
    assert {s: ok for s, (_, ok) in found.items()} == {20: True, 21: False, 22: False}
    assert [lead for lead, _ in found.values()] == pytest.approx([0.20, 0.04, -0.05])
    (a1,) = (claim for claim in load_rules(page.CHAPTER).claims if claim.id == "A1")
    assert {comparison.margin for comparison in a1.comparisons} == {page.MARGIN}


def test_a_comparison_is_told_with_what_became_of_it(page):
    entry = {"measure": "IoU", "comparison": "higher", "arm": "ours", "against": "free", "margin": 0.0,
             "arm_mean": 0.5, "against_mean": 0.25, "mean": 0.25, "low": 0.2, "high": 0.3,
             "holds": True}  # fmt: skip
    assert "`ours` 0.5 against `free` 0.25, claimed higher: +0.25 [+0.2, +0.3] (holds)" in page.told(entry)
    bar = page.told(entry | {"against": 0.9, "holds": False, "margin": 0.1})
    assert "against the bar 0.9, claimed higher by more than 0.1" in bar and "(does not hold)" in bar
    assert "0.25 (late)" in page.told(entry | {"against_measure": "late"})


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
    return page.lay_out(story, "plain", ["walk"], config, recipe, Runtime("cpu", "fp32"), False, True)


def test_every_kind_of_arm_gives_what_the_rules_ask(page, bench, tmp_path):
    wanted = load_rules(page.CHAPTER).measures
    values, beside = page.run_model(bench, "no-pair", 0, str(tmp_path))
    every = set().union(*(wanted(name) for name, arm in page.ARMS.items() if not arm.clusters))
    assert every <= set(values) and all(torch.tensor(v).isfinite() for v in values.values())
    assert len(beside["losses"]) == 2 and [row[0] for row in beside["curve"]] == [1, 2]
    assert values["equivariance"] == beside["extra"]["equivariance"][-1][1]
    assert page.late_mean([{"step": 1, "C1": values["C1"]}], "C1") == values["C1"]
    values, beside = page.run_clusters(bench, "kmeans-colour", 0)
    assert set(wanted("kmeans-colour")) <= set(values) and beside["losses"][0] > 0
    assert page.first_losses(bench, "kmeans-colour", 0) == beside["losses"]
    assert page.first_losses(bench, "kmeans-colour", 1) != beside["losses"]


def test_a_run_is_recorded_whole_and_its_first_losses_can_be_repeated(page, bench, tmp_path, monkeypatch):
    noted = {}
    monkeypatch.setattr(claims, "record", lambda *where, **told: noted.update(where=where, **told))
    page.run_and_record(bench, "free", 3, str(tmp_path))
    chapter, arm, seed, values = noted.pop("where")
    assert (chapter, arm, seed) == ("parts", "free", 3) and values["IoU"] >= 0
    assert noted["config"]["objective"]["is_constrained"] is False and noted["config"]["recipe"]["steps"] == 2
    assert page.first_losses(bench, "free", 3) == pytest.approx(noted["losses"])
    known = {field.name for field in fields(bench.recipe)}
    assert set(noted["config"]["recipe"]) == known


def test_a_replay_takes_the_first_twenty_steps_of_the_whole_recipe(page):
    asked = {}

    def train_parts(config, objective, recipe, *_, **options):
        asked.update(recipe=recipe, **options)
        return None, None, SimpleNamespace(result={"first_losses": {"loss": [1.0]}})

    story = SimpleNamespace(train_parts=train_parts, Objective=definitions(PAGES / "parts.py").Objective)
    held = {name: torch.zeros(4, 3, 8, 8) for name in ("validation", "test")}
    recipe = SimpleNamespace(steps=2000)
    bench = page.Bench(story, {"train": None}, None, recipe, None, False, held, held, {})
    assert page.first_losses(bench, "ours", 0) == [1.0]
    assert asked["stop"] == 20 and asked["recipe"].steps == 2000  # rates and weights go by the whole


def test_softness_knows_a_blunt_map_from_a_sharp_one(page, story):
    """Equal logits without noise give log P and the variance of the whole image; decided ones give 0."""

    def model(height):
        logits = torch.zeros(1, 4, 8, 8)
        logits[:, 0] = height
        code = SimpleNamespace(sample=lambda: None)
        return SimpleNamespace(shape=lambda x: code, logits=lambda pi: logits, noisy=lambda z: z.softmax(1))

    images, runtime = torch.zeros(1, 3, 8, 8), Runtime("cpu", "fp32")
    blunt, sharp = (page.softness(story, model(height), images, runtime) for height in (0.0, 60.0))
    assert blunt["entropy of S"] == pytest.approx(torch.log(torch.tensor(4.0)).item(), rel=1e-5)
    assert sharp["entropy of S"] < 1e-6
    places = (torch.arange(8) + 0.5) / 8 * 2 - 1
    whole = 2 * float(places.square().mean())  # of a part that is everywhere
    assert blunt["variance of a part"] == pytest.approx(whole, rel=1e-3)
