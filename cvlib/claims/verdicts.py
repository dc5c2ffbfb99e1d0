"""From runs to verdicts: every comparison decided by the rule that was written down before."""

from __future__ import annotations

import math
import subprocess
from dataclasses import asdict
from typing import Any

import yaml

from cvlib.claims.rules import Claim, Comparison, Rules, load_rules
from cvlib.claims.runs import runs
from cvlib.claims.stats import effect_size, holm, paired_bootstrap, sign_flip_p, t_p
from cvlib.claims.store import read_json, repository, results_root, write_json
from cvlib.errors import BookError

__all__ = ["LEVEL", "aggregate", "evaluate", "load_results", "rules_precede_runs"]

LEVEL = 0.05
VERDICTS = ("reproduced", "partly", "not reproduced", "not tested")

_DERIVED = {
    "less": None,
    "against_less": None,
    "factor": 1.0,
    "against_measure": None,
}  # said only where a comparison has them

_Table = dict[tuple[str, int], dict[str, Any]]


def aggregate(chapter: str) -> dict[str, Any]:
    """Decide every claim of a chapter, write book/results/<chapter>.json and return its content."""
    results = evaluate(chapter)
    write_json(results_root() / f"{chapter}.json", results)
    return results


def evaluate(chapter: str) -> dict[str, Any]:
    """Return what :func:`aggregate` writes, without writing: a pure function of rules and runs.

    A comparison holds if the 95 % paired bootstrap interval of the difference, in the claimed direction,
    lies above the margin and its one-sided paired t-test has p <= 0.05 after Holm's correction over all
    comparisons of the chapter's claims (one not yet run counts as p = 1, so that leaving
    claims out buys nothing). The exact sign-flip p stands beside it: it assumes less, but 5 seeds cannot
    bring it under 1/32. All comparisons hold: reproduced; some: partly; none: not reproduced; a run
    missing: not tested.
    """
    rules = load_rules(chapter)
    table: _Table = {(run["arm"], run["seed"]): run for run in runs(chapter)}
    decided = [_decide(claim, table) for claim in rules.claims]
    entries = [entry for part in decided for entry in part]
    untested = sum(len(claim.comparisons) for claim in rules.claims) - len(entries)
    for entry, p in zip(entries, holm([entry["p"] for entry in entries] + [1.0] * untested), strict=False):
        entry["p_holm"], entry["holds"] = _short(p), entry.pop("clear") and p <= LEVEL
    claims = [_claim(rules, claim, part, table) for claim, part in zip(rules.claims, decided, strict=True)]
    return {"chapter": chapter, "claims": claims}


def _decide(claim: Claim, table: _Table) -> list[dict[str, Any]]:
    """The comparisons of a claim, or none if one of its runs is missing."""
    if any((arm, seed) not in table for arm in claim.arms for seed in claim.seeds):
        return []
    return [_compare(comparison, claim.seeds, table) for comparison in claim.comparisons]


def _compare(comparison: Comparison, seeds: tuple[int, ...], table: _Table) -> dict[str, Any]:
    sign, margin = comparison.sign, comparison.margin
    wanted = [(arm, seed) for arm in comparison.arms for seed in seeds]
    values = {pair: table[pair]["values"] for pair in wanted}
    ours, theirs = comparison.sides(values, seeds)
    gains = [sign * (a - b) - margin for a, b in zip(ours, theirs, strict=True)]
    effect = effect_size(ours, theirs)
    numbers = {
        "arm_mean": sum(ours) / len(ours),
        "against_mean": sum(theirs) / len(theirs),
        **paired_bootstrap(ours, theirs)._asdict(),
        "p_sign_flip": sign_flip_p(gains),
        "p": t_p(gains),
    }
    return {
        **{
            key: value
            for key, value in asdict(comparison).items()
            if key not in _DERIVED or value != _DERIVED[key]
        },
        **{name: _short(value) for name, value in numbers.items()},
        "effect": _short(effect) if math.isfinite(effect) else None,
        "n_seeds": len(seeds),
        "clear": paired_bootstrap(gains).low > 0,
    }


def _short(value: float) -> float:
    """Six digits: enough for any table, and free of a machine's last bit."""
    return float(f"{value:.6g}")


def _claim(rules: Rules, claim: Claim, entries: list[dict[str, Any]], table: _Table) -> dict[str, Any]:
    used = [table[arm, seed] for arm in claim.arms for seed in claim.seeds if (arm, seed) in table]
    holding = sum(entry["holds"] for entry in entries)
    verdict = "reproduced" if holding == len(entries) else "partly" if holding else "not reproduced"

    def joined(key: str) -> str:
        return ", ".join(dict.fromkeys(run[key] for run in used))

    first = entries[0] if entries else None
    complete = [seed for seed in claim.seeds if all((arm, seed) in table for arm in claim.arms)]
    return {
        "id": claim.id,
        "statement": claim.statement,
        "paper": {"value": claim.paper_value, "source": claim.paper_source},
        "measured": {key: first[key] for key in ("mean", "low", "high", "unit")} if first else None,
        "effect": first["effect"] if first else None,
        "n_seeds": len(complete) if claim.arms else 0,
        "rule": claim.rule,
        "verdict": verdict if entries else "not tested",
        "must_show": claim.must_show,
        "scale": joined("scale"),
        "device": joined("device"),
        "seconds": round(sum(run["seconds"] for run in used), 3),
        "peak_mb": max((run["peak_mb"] for run in used), default=0.0),
        "command": joined("command"),
        "commit": joined("commit"),
        "assets": list(rules.assets),
        "comparisons": entries,
        "needs": claim.needs,
    }


def load_results(chapter: str) -> dict[str, Any]:
    """Return book/results/<chapter>.json; BookError if it is missing, broken or not what the runs give."""
    path = results_root() / f"{chapter}.json"
    results = read_json(path)
    if results != evaluate(chapter):
        wanted, do = "the aggregate of its rules and runs", f"call cvlib.claims.aggregate({chapter!r})"
        raise BookError(f"{path} disagrees with its runs", wanted, do)
    return results


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(repository()), *words], capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def rules_precede_runs(chapter: str) -> list[str]:
    """Return what is wrong with the order of rules and runs in the history; an empty list is right.

    The rules must be committed in an earlier commit than the first run, and what decides (the comparisons
    and seeds of each claim) must since have stayed as it was then. Where all runs were deleted, a new
    edition may begin with other rules, if the rules list the commit that last held the old runs.
    """
    root, repo = results_root().resolve(), repository()
    rules = (root / "rules" / f"{chapter}.yaml").relative_to(repo).as_posix()
    folder = (root / "runs" / chapter).relative_to(repo).as_posix()
    born = _git("log", "--diff-filter=A", "--format=%H", "--", rules).splitlines()[-1:]
    if not born:
        return [f"{rules} is not committed"]
    history = _git("log", "--reverse", "--topo-order", "--format=%H", "--", folder).splitlines()
    emptied = [i for i, commit in enumerate(history) if not _git("ls-tree", commit, "--", folder)]
    told = [entry.commit for entry in load_rules(chapter).withdrawn]
    if unsaid := [history[i - 1] for i in emptied if not any(history[i - 1].startswith(c) for c in told)]:
        return [f"{rules}: withdrawn does not name {unsaid[0][:8]}, whose runs were deleted"]
    first = history[emptied[-1] + 1 if emptied else 0 :][:1]
    if not first:
        return []
    if first == born or not _git("merge-base", born[0], first[0]).startswith(born[0]):
        return [f"{rules} came with {born[0][:8]}, not before the first run in {first[0][:8]}"]
    then = _deciding(_git("show", f"{first[0]}^:{rules}"))
    now = _deciding((repo / rules).read_text(encoding="utf-8"))
    faults = []
    for claim, (comparisons, seeds) in then.items():
        if claim not in now or now[claim][0] != comparisons or not set(seeds) <= set(now[claim][1]):
            faults.append(f"{rules}: {claim} decides otherwise than before the first run ({first[0][:8]})")
    return faults


def _deciding(text: str) -> dict[str, tuple[Any, list[int]]]:
    data = yaml.safe_load(text)
    return {
        claim["id"]: (claim["comparisons"], claim.get("seeds", data["seeds"])) for claim in data["claims"]
    }
