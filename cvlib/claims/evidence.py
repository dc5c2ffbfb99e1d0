"""What a claims page shows of its chapter: the recorded runs, the decided claims, and both in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvlib.claims.runs import runs
from cvlib.claims.tables import claim_plot, comparison_of
from cvlib.claims.verdicts import load_results

__all__ = ["Evidence", "told"]


def told(entry: Mapping[str, Any]) -> str:
    """Return a decided comparison in words: both sides, the difference [low, high], its fate."""
    left, right = comparison_of(entry).names
    measure = "" if entry.get("against_measure") else f"{entry['measure']} of "
    is_bar = not isinstance(entry["against"], str)
    against = f"the bar {right}" if is_bar else f"`{right}` {entry['against_mean']:.3g}"
    margin = f" by more than {entry['margin']:g}" if entry["margin"] else ""
    fate = "holds" if entry["holds"] else "does not hold"
    asked = f"claimed {entry['comparison']}{margin}"
    return (
        f"{measure}`{left}` {entry['arm_mean']:.3g} against {against}, {asked}: "
        f"{entry['mean']:+.2g} [{entry['low']:+.2g}, {entry['high']:+.2g}] ({fate})"
    )


class Evidence:
    """The recorded ``runs`` of a chapter and its ``decided`` claims by id; ``measure`` is the usual one."""

    def __init__(self, chapter: str, measure: str) -> None:
        self.chapter, self.measure = chapter, measure
        self.runs = runs(chapter)
        self.decided: dict[str, Any] = {claim["id"]: claim for claim in load_results(chapter)["claims"]}

    def by_seed(self, arm: str, measure: str = "") -> dict[int, float]:
        """Return a measure of the recorded runs of an arm, by seed; of runs that know it."""
        wanted = measure or self.measure
        found = {run["seed"]: run["values"] for run in self.runs if run["arm"] == arm}
        return {seed: values[wanted] for seed, values in sorted(found.items()) if wanted in values}

    def over_seeds(self, arm: str, measure: str = "") -> list[float]:
        """Return the same without the seeds."""
        return list(self.by_seed(arm, measure).values())

    def comparisons(self, claim: str) -> list[dict[str, Any]]:
        """Return the decided comparisons of a claim; none before there are runs enough."""
        found: list[dict[str, Any]] = self.decided[claim]["comparisons"]
        return found

    def plots(self) -> None:
        """Show every claim that was decided, seed by seed."""
        for claim in self.decided:
            if self.comparisons(claim):
                claim_plot(self.chapter, claim)

    def read(self, questions: Mapping[str, str]) -> None:
        """Say the verdict of every claim in ``questions`` that was decided, with what was asked and found."""
        from cvlib.show import say

        for claim, question in questions.items():
            if found := self.comparisons(claim):
                answers = "; ".join(map(told, found))
                say(f"**{claim}: {self.decided[claim]['verdict']}.** {question}: {answers}.")
