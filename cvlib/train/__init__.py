"""Training that can be stopped at any moment: device, precision, loop, checkpoints, schedules, averages."""

from __future__ import annotations

from cvlib.train.configs import canonical_json, config_differences, config_digest, run_folder
from cvlib.train.ema import EMA
from cvlib.train.folder import Interrupted
from cvlib.train.loop import RunResult, ended_after, fit
from cvlib.train.provenance import command_line, git_commit, peak_mb
from cvlib.train.rng import isolated_rng, seed_everything, seed_from
from cvlib.train.runtime import Runtime, microbatches, pays_bf16
from cvlib.train.schedules import Schedule, constant, warmup_cosine, warmup_linear
from cvlib.train.state import load_weights
from cvlib.train.weights import load_weights_file, save_weights, weights_metadata

__all__ = [
    "EMA",
    "Interrupted",
    "RunResult",
    "Runtime",
    "Schedule",
    "canonical_json",
    "command_line",
    "config_differences",
    "config_digest",
    "constant",
    "ended_after",
    "fit",
    "git_commit",
    "isolated_rng",
    "load_weights",
    "load_weights_file",
    "microbatches",
    "pays_bf16",
    "peak_mb",
    "run_folder",
    "save_weights",
    "seed_everything",
    "seed_from",
    "warmup_cosine",
    "warmup_linear",
    "weights_metadata",
]
