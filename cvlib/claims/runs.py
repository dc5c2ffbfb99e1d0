"""One file per finished seed: what was run, on what, with which result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvlib.claims.code import code_hash
from cvlib.claims.rules import Rules, load_rules
from cvlib.claims.store import check, read_json, results_root, write_json
from cvlib.errors import BookError

__all__ = ["WATTS", "confirm", "missing", "record", "runs", "stale"]

#: Declared power in watts where a run does not say: a desktop processor, a laptop chip, a server card.
WATTS = {"cpu": 65.0, "mps": 30.0, "cuda": 700.0}

_N = int | float
_RUN: dict[str, Any] = {
    "chapter": str, "arm": str, "seed": int, "scale": str, "values": dict, "config": dict, "data_hash": str,
    "losses": list, "curve": list, "seconds": _N, "peak_mb": _N, "energy_wh": _N, "watts": _N, "device": str,
    "command": str, "commit": str, "code": str, "extra": dict,
}  # fmt: skip


def record(
    chapter: str,
    arm: str,
    seed: int,
    values: Mapping[str, float],
    *,
    config: Mapping[str, Any],
    data_hash: str,
    losses: Sequence[float],
    curve: Sequence[Sequence[float]],
    seconds: float,
    peak_mb: float,
    device: str,
    command: str = "",
    watts: float | None = None,
    scale: str = "report",
    extra: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> Path:
    """Write book/results/runs/<chapter>/<arm>-s<seed>.json, whole or not at all, and return its path.

    Args: values: every measure that the rules ask of this arm (more are welcome); losses: of the first steps
        (20 are kept, to replay later); curve: rows [step, value]; device: "cpu ..." or "cuda ..." in words;
        watts: declared power, by default :data:`WATTS` of the device's first word; extra: anything else.
    Commit and code digest (the rules' ``code``) are those that this process found when it asked what is
    :func:`missing`: what is edited while a page trains is not what it runs. Energy is watts x seconds, an
    estimate. Raises: BookError for an arm or seed outside the rules, a missing or non-finite value, a run
    that is there already (unless ``replace``).
    """
    from cvlib.train.provenance import command_line

    rules, path = load_rules(chapter), _path(chapter, arm, seed)
    allowed = {(a, s) for claim in rules.claims for a in claim.arms for s in claim.seeds}
    if (arm, seed) not in allowed:
        raise BookError(f"a run of {arm!r} with seed {seed}", f"arms and seeds of rules/{chapter}.yaml")
    if path.exists() and not replace:
        raise BookError(
            f"{path} is there already", "a run that is missing", "give replace=True if it is stale"
        )
    commit, code = _begun.get(path.parent) or _state(rules)
    power = WATTS.get(device.split()[0].split(":")[0].lower(), WATTS["cpu"]) if watts is None else watts
    run = {
        "chapter": chapter, "arm": arm, "seed": seed, "scale": scale,
        "values": {name: float(value) for name, value in values.items()},
        "config": dict(config), "data_hash": data_hash, "losses": [float(loss) for loss in losses[:20]],
        "curve": [[float(x) for x in row] for row in curve], "seconds": round(float(seconds), 3),
        "peak_mb": round(float(peak_mb), 1), "energy_wh": round(power * seconds / 3600, 3), "watts": power,
        "device": device, "command": command or command_line(), "commit": commit,
        "code": code, "extra": dict(extra or {}),
    }  # fmt: skip
    _check_run(run, path, rules.measures(arm))
    return write_json(path, run)


_begun: dict[Path, tuple[str, str]] = {}  # of each folder of runs: the state in which its runs began


def _state(rules: Rules) -> tuple[str, str]:
    """Return the commit and the digest of what a run of ``rules`` rests on, now."""
    from cvlib.train.provenance import git_commit

    return git_commit(), code_hash(rules.code)


def _path(chapter: str, arm: str, seed: int) -> Path:
    return results_root() / "runs" / chapter / f"{arm}-s{seed}.json"


def _check_run(run: Any, path: Path, measures: Sequence[str]) -> None:
    where = f"runs/{path.parent.name}/{path.name}"
    check(run, _RUN, where)
    for name in measures:
        if name not in run["values"]:
            raise BookError(f"{where}: values has no {name!r}", f"all of {', '.join(measures)}")
    check(run["values"], dict.fromkeys(run["values"], _N), f"{where}: values")
    numbers = [*run["losses"], *(x for row in run["curve"] for x in row)]
    if not run["losses"] or not all(isinstance(x, _N) and math.isfinite(x) for x in numbers):
        raise BookError(f"{where}: losses {run['losses'][:3]} or curve", "finite numbers, one loss at least")
    if path.name != f"{run['arm']}-s{run['seed']}.json" or path.parent.name != run["chapter"]:
        raise BookError(
            f"{where}: holds {run['chapter']} {run['arm']} seed {run['seed']}", "the run in its name"
        )


def runs(chapter: str) -> list[dict[str, Any]]:
    """Return all recorded runs of a chapter, by arm and seed, checked; BookError names a broken file."""
    found, rules = [], load_rules(chapter)
    for path in (results_root() / "runs" / chapter).glob("[!.]*.json"):  # not what another process is writing
        run = read_json(path)
        _check_run(run, path, rules.measures(run.get("arm", "")) if isinstance(run, dict) else ())
        found.append(run)
    return sorted(found, key=lambda run: (run["arm"], run["seed"]))


def missing(chapter: str) -> list[tuple[str, int]]:
    """Return the (arm, seed) that the rules ask for and nobody has run, those of must_show claims first.

    Seeds go round the arms, so that a ledger that ends early leaves whole pairs.
    """
    rules = load_rules(chapter)
    claims = sorted(rules.claims, key=lambda claim: not claim.must_show)
    wanted = [(arm, seed) for claim in claims for seed in claim.seeds for arm in claim.arms]
    found = [pair for pair in dict.fromkeys(wanted) if not _path(chapter, *pair).exists()]
    if found:
        _begun.setdefault(_path(chapter, *found[0]).parent, _state(rules))
    return found


def stale(chapter: str) -> list[tuple[str, int]]:
    """Return the (arm, seed) whose code (the rules' ``code``) has changed since they were recorded."""
    now = code_hash(load_rules(chapter).code)
    return [(run["arm"], run["seed"]) for run in runs(chapter) if run["code"] != now]


def confirm(chapter: str, arm: str, seed: int, losses: Sequence[float], *, tolerance: float = 1e-4) -> bool:
    """Return whether replayed first losses equal the recorded ones; if so the run is no longer stale.

    Equal means: each within ``tolerance`` of the recorded loss, relative to it (absolute below 1).
    """
    run, path = read_json(_path(chapter, arm, seed)), _path(chapter, arm, seed)
    pairs = list(zip(run["losses"], losses, strict=False))
    same = len(losses) >= len(run["losses"]) and all(
        abs(a - b) <= tolerance * max(1, abs(a)) for a, b in pairs
    )
    if same:
        write_json(path, {**run, "code": code_hash(load_rules(chapter).code)})
    return same
