"""What the page "diva_claims" defines: the arms of the rules, what tells them apart, how they are judged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cvlib.claims import load_rules, runs
from cvlib.pages import definitions

PAGES = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="module")
def page():
    return definitions(PAGES / "diva_claims.py")


@pytest.fixture(scope="module")
def story():
    return definitions(PAGES / "diva.py")


@pytest.fixture(scope="module")
def configs(page, story):
    return {name: story.DivaConfig(**{**page.LEARNED, **changes}) for name, changes in page.ARMS.items()}


def differing(a, b) -> set[str]:
    """Return the names of the settings in which two configurations differ."""
    theirs = asdict(b)
    return {key for key, value in asdict(a).items() if value != theirs[key]}


def test_arms_are_those_of_the_rules(page):
    rules = load_rules("diva")
    named = {*page.STRETCH, *page.PER_CLASS, *page.ALL_CLASSES}
    assert set(page.ARMS) == set(rules.arms) and named <= set(page.ARMS)
    for run in runs("diva"):
        assert set(rules.measures(run["arm"])) <= set(run["values"])


def test_arms_differ_in_what_their_names_say(configs):
    diva = configs["diva"]
    assert differing(diva, configs["diva-rho-0"]) == {"rho"} and not configs["diva-rho-0"].rho
    assert configs["diva-rho-10"].rho == 10 * diva.rho and differing(diva, configs["diva-rho-10"]) == {"rho"}
    assert (
        differing(diva, configs["diva-nce-plain"]) == differing(diva, configs["diva-nce-column"]) == {"nce"}
    )
    assert differing(diva, configs["diva-ranked"]) == {"intra"}
    assert (
        differing(diva, configs["diva-all"])
        == set()
        == differing(configs["disc-256"], configs["disc-256-all"])
    )
    assert differing(configs["disc-64"], configs["disc-256"]) == {"dim"}
    for relation in ("dance", "shared", "intra"):
        assert configs[f"with-{relation}"].tasks == ("disc", relation)
        assert set(diva.tasks) - set(configs[f"without-{relation}"].tasks) == {relation}
        assert differing(diva, configs[f"without-{relation}"]) == {"tasks"}


def test_arms_of_one_total_width(configs):
    widths = {name: len(configs[name].tasks) * configs[name].dim for name in configs}
    assert widths["diva"] == widths["disc-256"] == widths["four-disc"] == widths["diva-all"] == 256
    assert widths["dance-on-disc"] == widths["disc-64"] == 64


def test_settings_are_those_that_the_trials_chose(page):
    """The rules list what each trial gave; the arms must have the best, and no other."""
    arms = load_rules("diva").arms

    def tried(name: str) -> dict[str, float]:
        text = arms[name].tuning.split(": ")[-1]
        found = {
            key: float(rest.rstrip(")")) for key, rest in (entry.split(" (") for entry in text.split("; "))
        }
        assert len(found) == len(page.TRIALS[name]) == arms[name].trials == 4
        return found

    for name, settings in (("disc-256", {"rate": page.RATE}), ("diva", page.LEARNED)):
        results = tried(name)
        best = page.TRIALS[name][list(results).index(max(results, key=results.get))]
        shared = best.keys() & settings.keys()  # DiVA's arms learn at the rate that the one head chose
        assert shared and all(settings[key] == best[key] for key in shared)


class Heads:
    """Stands in for the story: heads (2, H, d) in, the weighted join out, and a note of the weights."""

    def __init__(self, best: float) -> None:
        self.best, self.seen = best, []

    def aggregate(self, heads, weights):
        self.seen.append(weights)
        return torch.tensor(abs(weights[0] - self.best))


def test_the_first_weight_is_the_best_on_validation_and_a_lone_head_has_none(page, monkeypatch):
    monkeypatch.setattr(page, "hard_recall", lambda bench, z, split: {"validation": -float(z)}[split])
    for best in page.FIRST_WEIGHTS:
        heads = Heads(best)
        bench = SimpleNamespace(story=heads)
        assert page.best_first_weight(bench, torch.zeros(2, 3, 4)) == (best, 0.0)
        assert [w[1:] for w in heads.seen] == [[1.0, 1.0]] * len(page.FIRST_WEIGHTS)
    assert page.best_first_weight(SimpleNamespace(story=Heads(4.0)), torch.zeros(2, 1, 4))[0] == 1.0


def test_each_seed_trains_on_classes_of_its_own_and_two_arms_on_all(page):
    source = SimpleNamespace(labels=torch.arange(60) % 30, stage=6, hash="views")
    bench = page.Bench(None, None, {}, {"train": source}, None, 1, 4, 10)
    assert bench.training("diva-all", 3) is bench.training("disc-256-all", 4) is source
    first, again, other = (bench.training("diva", seed) for seed in (1, 1, 2))
    assert (
        len(first) == 20 and torch.equal(first.rows, again.rows) and not torch.equal(first.rows, other.rows)
    )
    assert torch.equal(bench.training("disc-256", 1).rows, first.rows)  # arms of a seed are paired
