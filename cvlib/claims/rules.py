"""The rules of a chapter: what it claims and what decides, written down before the first run.

A rule file, book/results/rules/<chapter>.yaml (keys with ? may be left out)::

    chapter: taming
    paper: Esser et al. 2021
    data: emoji, 32 px, split by concept
    assets: [emoji, vgg16-hed]                 # ? what the runs need
    code: [cvlib/nn, notebooks/taming.py::fit_first_stage]   # ? a change of it makes runs stale
    seeds: [0, 1, 2, 3, 4]
    follows: demo                              # ? the chapter of which it asks something again
    withdrawn:                                 # ? runs that were deleted: nothing vanishes unsaid
      - {commit: 7d65a08, runs: 15, outcome: C1 partly, why: a faulty network}
    arms:
      pixels: {description: L1 only, tuning: three learning rates, trials: 3, minutes: 4}   # minutes ?
      full: {description: L1 + perceptual + adversarial, tuning: the same, trials: 3}
    claims:
      - id: C1
        statement: Perceptual and adversarial training lowers the perceptual error while PSNR falls.
        paper: {value: rFID 7.9 against 20.0, source: Table 4}
        measurement: LPIPS-VGG16-HED and PSNR over all test images
        rule: Both comparisons hold over 5 paired seeds.
        must_show: true                        # ? one or two claims of the file
        ours: true                             # ? a question of this book's, not a claim of the paper's
        seeds: [0, 1, 2]                       # ? instead of the file's
        needs: ImageNet                        # ? instead of comparisons, where nothing here can test it
        comparisons:
          - {measure: lpips, unit: "", comparison: lower, arm: full, against: pixels}
          - {measure: psnr, unit: dB, comparison: lower, arm: full, against: pixels, margin: 0.5}   # margin ?

``against`` is an arm or a number. A difference counts if it exceeds ``margin`` (0; negative: "not worse by").
Gains are compared by naming what is subtracted on either side, and ``factor``, which multiplies the right
one: "heads gain less than half of what the whole gains" is {arm: heads, less: plain, comparison: lower,
against: whole, against_less: plain, factor: 0.5}. All subtraction is within a seed. ``against_measure`` takes
another measure on the right, so that two measures of one arm can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cvlib.claims.store import chapters, check, results_root
from cvlib.errors import BookError

__all__ = ["Arm", "Claim", "Comparison", "Rules", "Withdrawn", "follow_ups", "load_rules"]

_NUMBER = int | float
_TOP = {"chapter": str, "paper": str, "data": str, "seeds": list, "arms": dict, "claims": list,
        "assets?": list, "code?": list, "notes?": str, "follows?": str, "withdrawn?": list}  # fmt: skip
_WITHDRAWN = {"commit": str, "runs": int, "outcome": str, "why": str}
_ARM = {"description": str, "tuning": str, "trials": int, "minutes?": _NUMBER}
_CLAIM = {"id": str, "statement": str, "paper": dict, "measurement": str, "rule": str, "comparisons": list,
          "must_show?": bool, "ours?": bool, "seeds?": list, "needs?": str}  # fmt: skip
_COMPARISON = {"measure": str, "comparison": str, "arm": str, "against": str | int | float, "unit": str,
               "margin?": _NUMBER, "less?": str, "against_less?": str, "factor?": _NUMBER,
               "against_measure?": str}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way of training: what it is, how it was tuned (``trials`` runs, as many as every other arm)."""

    name: str
    description: str
    tuning: str
    trials: int
    minutes: float | None = None


@dataclass(frozen=True)
class Comparison:
    """``arm`` is lower (higher) than ``against`` (an arm or a number) in ``measure`` by over ``margin``."""

    measure: str
    comparison: str
    arm: str
    against: str | float
    unit: str
    margin: float = 0.0
    less: str | None = None  # an arm that is subtracted from ``arm``
    against_less: str | None = None  # an arm that is subtracted from ``against``
    factor: float = 1.0  # times the right side
    against_measure: str | None = None  # of the right side, if not ``measure``

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms it needs runs of, each once."""
        named = (self.arm, self.less, self.against, self.against_less)
        return tuple(dict.fromkeys(arm for arm in named if isinstance(arm, str)))

    @property
    def names(self) -> tuple[str, str]:
        """The two sides in words."""
        left = f"{self.arm} − {self.less}" if self.less else self.arm
        right = f"{self.against} − {self.against_less}" if self.against_less else f"{self.against}"
        if self.against_measure:
            left, right = f"{left}, {self.measure}", f"{right}, {self.against_measure}"
        times = f"{self.factor:g} · " if self.factor != 1 else ""
        return left, f"{times}({right})" if times and self.against_less else f"{times}{right}"

    def sides(
        self, values: Mapping[tuple[str, int], Mapping[str, float]], seeds: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        """Return left and right side for each seed; ``values`` holds all measures of each (arm, seed)."""

        def column(measure: str, arm: str | float, less: str | None) -> list[float]:
            first = [float(values[arm, s][measure] if isinstance(arm, str) else arm) for s in seeds]
            return (
                [a - values[less, s][measure] for a, s in zip(first, seeds, strict=True)] if less else first
            )

        right = column(self.against_measure or self.measure, self.against, self.against_less)
        return column(self.measure, self.arm, self.less), [self.factor * x for x in right]

    @property
    def sign(self) -> int:
        """+1 if higher is claimed, -1 if lower."""
        return 1 if self.comparison == "higher" else -1


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, how it is measured, and the comparisons that must all hold."""

    id: str
    statement: str
    paper_value: str
    paper_source: str
    measurement: str
    rule: str
    comparisons: tuple[Comparison, ...]
    seeds: tuple[int, ...]
    must_show: bool = False
    needs: str = ""
    ours: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms it needs, each once."""
        return tuple(dict.fromkeys(arm for comparison in self.comparisons for arm in comparison.arms))


@dataclass(frozen=True)
class Withdrawn:
    """Recorded runs that were deleted: the commit that last held them, how many, what they said, and why."""

    commit: str
    runs: int
    outcome: str
    why: str


@dataclass(frozen=True)
class Rules:
    """All claims of a chapter with their arms; see :func:`load_rules`."""

    chapter: str
    paper: str
    data: str
    seeds: tuple[int, ...]
    arms: dict[str, Arm]
    claims: tuple[Claim, ...]
    assets: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    withdrawn: tuple[Withdrawn, ...] = ()
    follows: str = ""  # the chapter whose question these rules ask again
    notes: str = ""  # on seeds, trials and what else decided about the plan

    def claim(self, name: str) -> Claim:
        """Return the claim with this id; BookError if there is none."""
        for claim in self.claims:
            if claim.id == name:
                return claim
        raise BookError(f"claim {name!r} of {self.chapter}", f"one of {[claim.id for claim in self.claims]}")

    def measures(self, arm: str) -> list[str]:
        """Return the measures that a run of this arm must record, each once."""
        pairs = [c for claim in self.claims for c in claim.comparisons if arm in c.arms]
        return list(dict.fromkeys(m for c in pairs for m in (c.measure, c.against_measure) if m))


def load_rules(chapter: str) -> Rules:
    """Return the rules of a chapter from book/results/rules/<chapter>.yaml, checked.

    Raises: BookError, one line with file and key, for a missing file, an unknown or missing key, a wrong
    type, an arm or id that does not exist or exists twice, fewer than two seeds, an uneven tuning budget,
    none or more than two ``must_show``.
    """
    path = results_root() / "rules" / f"{chapter}.yaml"
    if not path.is_file():
        raise BookError(f"{path} is missing", f"a chapter with rules: {', '.join(chapters()) or 'none yet'}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BookError(f"{path}: {error}", "YAML") from error
    return parse_rules(data, path)


def follow_ups(chapter: str) -> list[str]:
    """Return the rule files that ask something of ``chapter`` again (fresh seeds, another size), sorted.

    Rules stay as they are once runs exist, so such a question has a file of its own, with its own Holm
    correction. It stands on the chapter's page and is no further claim.
    """
    return [name for name in chapters() if load_rules(name).follows == chapter]


def parse_rules(data: Any, path: Path) -> Rules:
    """Return the rules in ``data`` as read from ``path``; see :func:`load_rules`."""
    where = f"rules/{path.name}"
    check(data, _TOP, where)
    if data["chapter"] != path.stem:
        raise BookError(f"{where}: chapter is {data['chapter']!r}", repr(path.stem))
    arms = {str(name): _arm(str(name), arm, where) for name, arm in data["arms"].items()}
    seeds = _seeds(data["seeds"], where)
    claims = tuple(_claim(claim, i, arms, seeds, where) for i, claim in enumerate(data["claims"]))
    _whole(arms, claims, where)
    assets, code = (tuple(map(str, data.get(key, ()))) for key in ("assets", "code"))
    for i, entry in enumerate(data.get("withdrawn", ())):
        check(entry, _WITHDRAWN, f"{where}: withdrawn[{i}]")
    withdrawn = tuple(Withdrawn(**entry) for entry in data.get("withdrawn", ()))
    follows = data.get("follows", "")
    if follows and (follows == path.stem or not path.with_name(f"{follows}.yaml").is_file()):
        raise BookError(f"{where}: follows is {follows!r}", "another chapter that has rules")
    head = (path.stem, data["paper"], data["data"])
    notes = " ".join(data.get("notes", "").split())
    return Rules(*head, seeds, arms, claims, assets, code, withdrawn, follows, notes)


def _whole(arms: dict[str, Arm], claims: tuple[Claim, ...], where: str) -> None:
    ids = [claim.id for claim in claims]
    if not ids or len(set(ids)) != len(ids):
        raise BookError(f"{where}: claims with ids {ids}", "at least one, each id once")
    if len({arm.trials for arm in arms.values()}) > 1:
        budget = {arm.name: arm.trials for arm in arms.values()}
        raise BookError(f"{where}: arms.trials is {budget}", "the same tuning budget for every arm")
    if not 1 <= sum(claim.must_show for claim in claims) <= 2:
        raise BookError(f"{where}: must_show on {[c.id for c in claims if c.must_show]}", "one or two claims")
    if unused := set(arms) - {arm for claim in claims for arm in claim.arms}:
        raise BookError(f"{where}: arms {sorted(unused)} in no comparison", "every arm in a comparison")


def _arm(name: str, data: Any, where: str) -> Arm:
    check(data, _ARM, f"{where}: arms.{name}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name) or re.search(r"-s\d+$", name):
        raise BookError(f"{where}: arm {name!r}", "lower case letters, digits, . _ - (it names files)")
    return Arm(name, **data)


def _seeds(seeds: list[Any], where: str) -> tuple[int, ...]:
    if len(seeds) < 2 or len(set(seeds)) != len(seeds) or not all(type(s) is int and s >= 0 for s in seeds):
        raise BookError(f"{where}: seeds is {seeds}", "at least two different whole numbers")
    return tuple(seeds)


def _claim(data: Any, index: int, arms: dict[str, Arm], seeds: tuple[int, ...], where: str) -> Claim:
    name = data.get("id", index) if isinstance(data, dict) else index
    where = f"{where}: claims.{name}"
    check(data, _CLAIM, where)
    check(data["paper"], {"value": str | int | float, "source": str}, f"{where}.paper")
    listed = enumerate(data["comparisons"])
    comparisons = tuple(_comparison(entry, arms, f"{where}.comparisons[{i}]") for i, entry in listed)
    if bool(comparisons) == bool(data.get("needs")):
        raise BookError(f"{where}: {len(comparisons)} comparisons and needs {data.get('needs', '')!r}",
                        "comparisons, or else what a test of it needs")  # fmt: skip
    paper, own = data["paper"], data.get("seeds")
    plain = {key: value for key, value in data.items() if key not in ("paper", "comparisons", "seeds")}
    seeds = _seeds(own, where) if own is not None else seeds
    return Claim(**plain, paper_value=str(paper["value"]), paper_source=paper["source"],
                 comparisons=comparisons, seeds=seeds)  # fmt: skip


def _comparison(data: Any, arms: dict[str, Arm], where: str) -> Comparison:
    check(data, _COMPARISON, where)
    if data["comparison"] not in ("lower", "higher"):
        raise BookError(f"{where}.comparison is {data['comparison']!r}", "lower or higher")
    comparison = Comparison(**data)
    for arm in comparison.arms:
        if arm not in arms:
            raise BookError(f"{where}: unknown arm {arm!r}", f"one of {', '.join(arms)}")
    left = (comparison.arm, comparison.less, comparison.measure)
    if left == (
        comparison.against,
        comparison.against_less,
        comparison.against_measure or comparison.measure,
    ):
        raise BookError(f"{where}: arm {comparison.arm!r} against itself", "two different arms")
    return comparison
