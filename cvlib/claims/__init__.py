"""Claims of the papers put to the test: rules first, one file per seed, intervals, verdicts, tables."""

from __future__ import annotations

from cvlib.claims.code import code_hash
from cvlib.claims.evidence import Evidence, told
from cvlib.claims.performance import Row, load_rows, write_rows
from cvlib.claims.rules import Arm, Claim, Comparison, Rules, follow_ups, load_rules
from cvlib.claims.runs import confirm, missing, record, runs, stale
from cvlib.claims.stats import Interval, detectable, effect_size, holm, paired_bootstrap, sign_flip_p, t_p
from cvlib.claims.store import chapters, results_root
from cvlib.claims.tables import claim_plot, claims_table, ledger, scoreboard
from cvlib.claims.verdicts import aggregate, evaluate, load_results, rules_precede_runs

__all__ = [
    "Arm",
    "Claim",
    "Comparison",
    "Evidence",
    "Interval",
    "Row",
    "Rules",
    "aggregate",
    "chapters",
    "claim_plot",
    "claims_table",
    "code_hash",
    "confirm",
    "detectable",
    "effect_size",
    "evaluate",
    "follow_ups",
    "holm",
    "ledger",
    "load_results",
    "load_rows",
    "load_rules",
    "missing",
    "paired_bootstrap",
    "record",
    "results_root",
    "rules_precede_runs",
    "runs",
    "scoreboard",
    "sign_flip_p",
    "stale",
    "t_p",
    "told",
    "write_rows",
]
