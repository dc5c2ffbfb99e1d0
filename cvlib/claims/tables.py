"""What a reader sees of the evidence: ledger, claims table, plot and scoreboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from textwrap import fill
from typing import Any

from cvlib.claims.rules import Comparison, follow_ups, load_rules
from cvlib.claims.runs import missing, runs, stale
from cvlib.claims.store import chapters, results_root
from cvlib.claims.verdicts import VERDICTS, load_results
from cvlib.errors import BookError
from cvlib.show import COLOURS, Output, figure, folded, show, table

__all__ = ["claim_plot", "claims_table", "comparison_of", "ledger", "scoreboard"]


def ledger(chapter: str) -> Output:
    """Show arms x seeds x measured minutes: what was run, what is missing and what that will take.

    How each arm was tuned can fill a page; it is folded away below the table with the notes of the rules, the
    number of trials stays.
    """
    rules, done, open_pairs = load_rules(chapter), runs(chapter), missing(chapter)
    rows, sums = [], [0.0, 0.0]
    for arm in rules.arms.values():
        minutes = [run["seconds"] / 60 for run in done if run["arm"] == arm.name]
        left = sum(name == arm.name for name, _ in open_pairs)
        each = sum(minutes) / len(minutes) if minutes else arm.minutes
        ahead = left * each if each is not None else None if left else 0.0
        sums = [sums[0] + sum(minutes), sums[1] + (ahead or 0.0)]
        seeds = f"{len(minutes)} of {len(minutes) + left}"
        rows.append([f"`{arm.name}`", arm.description, arm.trials, seeds, each, sum(minutes), ahead])
    rows.append(["**all**", "", None, f"{len(done)} of {len(done) + len(open_pairs)}", None, *sums])
    old = f" {len(stale(chapter))} of the runs rest on code that has changed since." if stale(chapter) else ""
    head = ["arm", "what it is", "trials", "seeds", "minutes a seed", "minutes spent", "minutes to go"]
    shown = table(rows, head, caption=f"Ledger of {chapter}.{old}", digits=3)
    told = {"notes": rules.notes} if rules.notes else {}
    folded("How the arms were tuned", told | {f"`{arm.name}`": arm.tuning for arm in rules.arms.values()})
    return shown


def _numbers(entry: dict[str, Any]) -> str:
    return f"{entry['mean']:+.3g} [{entry['low']:+.3g}, {entry['high']:+.3g}] {entry['unit']}".strip()


def claims_table(chapter: str) -> Output:
    """Show a chapter's claims: the paper's value, every comparison's numbers, the verdict."""
    rows: list[list[Any]] = []
    for claim in load_results(chapter)["claims"]:
        paper = f"Paper: {claim['paper']['value']} ({claim['paper']['source']})"
        found = "\n".join(map(_finding, claim["comparisons"])) or f"needs {claim['needs'] or 'its runs'}"
        name, verdict = f"**{claim['id']}**" + " ★" * claim["must_show"], f"**{claim['verdict']}**"
        rows.append([name, f"{claim['statement']}\n{paper}", found, claim["n_seeds"], verdict])
    caption = (
        f"Claims of {chapter}. Differences are means over paired seeds with 95 % bootstrap intervals, which "
        "are too narrow for few seeds (five: about 85 %, three: about 75 %), so a verdict also asks for p; "
        "d is the standardised difference, p one-sided after Holm's correction. ★ must show."
    )
    return table(rows, ["", "claim", "measured here", "seeds", "verdict"], caption=caption, digits=2)


def comparison_of(entry: Mapping[str, Any]) -> Comparison:
    """Return the comparison that a decided entry of a chapter's results was made by."""
    return Comparison(
        **{field.name: entry[field.name] for field in fields(Comparison) if field.name in entry}
    )


def _finding(entry: dict[str, Any]) -> str:
    left, right = comparison_of(entry).names
    what = f"`{entry['measure']}` of `{left}` {entry['comparison']} than `{right}`"
    by = f" by {entry['margin']:g}" if entry["margin"] else ""
    size = "" if entry["effect"] is None else f", d = {entry['effect']:.2g}"
    p = f"p = {entry['p_holm']:.2g}" if entry["p_holm"] >= 0.001 else "p < 0.001"
    return f"{what}{by}: **{'holds' if entry['holds'] else 'does not hold'}**, {_numbers(entry)}{size}, {p}"


def scoreboard() -> Output:
    """Show one row per chapter: how many of the paper's claims came out how, and those that must show.

    Ablations of our own are counted apart: those whose every comparison holds, out of those tested. What
    a chapter asked again (:func:`~cvlib.claims.follow_ups`) is no further claim: its verdict stands beside
    the first.
    """
    rows = [_score(chapter) for chapter in chapters() if not load_rules(chapter).follows]
    head = ["chapter", "paper", "claims of the paper", "must show", "our ablations", "hours of runs"]
    return table(rows, head, caption="Scoreboard: the papers' claims on this book's data.", digits=2)


def _decided(chapter: str) -> list[dict[str, Any]]:
    """The claims of a chapter as its results decide them; none before they were aggregated."""
    return load_results(chapter)["claims"] if (results_root() / f"{chapter}.json").is_file() else []


def _score(chapter: str) -> list[Any]:
    """The row of a chapter on the scoreboard."""
    rules, again = load_rules(chapter), follow_ups(chapter)
    ours = {claim.id for claim in rules.claims if claim.ours}
    decided = _decided(chapter)
    claims = [claim for claim in decided if claim["id"] not in ours]
    asides = [claim["verdict"] for claim in decided if claim["id"] in ours]
    holding, tested = asides.count("reproduced"), sum(verdict != "not tested" for verdict in asides)
    n_claims = len(rules.claims) - len(ours)
    counts = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}
    if not decided:
        counts["not tested"] = n_claims
    fates = "; ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    asked = claims + [claim for name in again for claim in _decided(name)]
    stars = "; ".join(f"{claim['id']} {claim['verdict']}" for claim in asked if claim["must_show"])
    hours = sum(run["seconds"] for name in (chapter, *again) for run in runs(name)) / 3600
    told = {f"{holding} of {tested} hold": tested, f"{len(ours) - tested} not tested": len(ours) - tested}
    ablations = "; ".join(text for text, n in told.items() if n) or None
    return [f"`{chapter}`", rules.paper, fates, stars or None, ablations, hours]


def claim_plot(chapter: str, claim: str, caption: str = "") -> Output:
    """Show a claim seed by seed: both arms paired, and their difference with its interval.

    The shaded side is where the claim puts the difference. Raises: BookError if the claim is not tested.
    """
    (found,) = [c for c in load_results(chapter)["claims"] if c["id"] == load_rules(chapter).claim(claim).id]
    entries = found["comparisons"]
    if not entries:
        raise BookError(f"claim {claim} of {chapter} is not tested", "its runs", f"see ledger({chapter!r})")
    by_seed = {(run["arm"], run["seed"]): run["values"] for run in runs(chapter)}
    seeds = load_rules(chapter).claim(claim).seeds
    fig, axes = figure(height=2.3 * len(entries) + 0.3, rows=len(entries), columns=2, squeeze=False)
    for row, entry in zip(axes, entries, strict=True):
        ours, theirs = comparison_of(entry).sides(by_seed, seeds)
        _pairs(row[0], entry, ours, theirs)
        _difference(row[1], entry, [a - b for a, b in zip(ours, theirs, strict=True)])
    parts = [f"{e['measure']} of {' minus '.join(comparison_of(e).names)}: {_numbers(e)}" for e in entries]
    alt = f"Claim {claim}, {found['verdict']}. " + "; ".join(parts) + "."
    text = caption or (
        f"**{claim}: {found['verdict']}.** Left: {len(seeds)} seeds, a line per pair. Right: their "
        "differences, mean and 95 % bootstrap interval; shaded where the claim puts them."
    )
    return show(fig, alt=alt, caption=text)


def _pairs(ax: Any, entry: dict[str, Any], ours: list[float], theirs: list[float]) -> None:
    for pair in zip(theirs, ours, strict=True):
        ax.plot([0, 1], pair, color=COLOURS["control"], linewidth=1, linestyle="-", zorder=1)
    ax.scatter([0] * len(theirs), theirs, color=COLOURS["baseline"], marker="^", zorder=2)
    ax.scatter([1] * len(ours), ours, color=COLOURS["ours"], marker="o", zorder=2)
    left, right = map(_short_lines, comparison_of(entry).names)
    ax.set(xticks=[0, 1], xticklabels=[right, left], xlim=(-0.5, 1.5))
    ax.set_ylabel(f"{entry['measure']} ({entry['unit']})" if entry["unit"] else entry["measure"])


def _short_lines(name: str) -> str:
    """Return an arm's name in lines that leave room for the other one's beside it."""
    return "\n".join(fill(part, 16) for part in name.replace(" − ", "\n− ").splitlines())


def _difference(ax: Any, entry: dict[str, Any], differences: list[float]) -> None:
    sign = 1 if entry["comparison"] == "higher" else -1
    edge, far = sign * entry["margin"], max(map(abs, differences)) * 1.3 or 1.0
    low, high = min(-0.2 * far, edge, *differences), max(0.2 * far, edge, *differences)
    limits = (low - 0.1 * (high - low), high + 0.1 * (high - low))
    ax.axvspan(edge, limits[1] if sign > 0 else limits[0], color=COLOURS["real"], alpha=0.12, linewidth=0)
    ax.axvline(edge, color=COLOURS["paper"], linestyle="--", linewidth=1)
    ax.scatter(differences, range(1, len(differences) + 1), color=COLOURS["control"], zorder=2)
    bars = [[entry["mean"] - entry["low"]], [entry["high"] - entry["mean"]]]
    ax.errorbar([entry["mean"]], [0], xerr=bars, fmt="o", color=COLOURS["ours"], capsize=4, zorder=3)
    ax.set(yticks=[0, (1 + len(differences)) / 2], yticklabels=["mean", "seeds"], xlim=limits)
    ax.set_ylim(-0.8, len(differences) + 0.8)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("difference" + f" ({entry['unit']})" * bool(entry["unit"]))
    ax.grid(False)
