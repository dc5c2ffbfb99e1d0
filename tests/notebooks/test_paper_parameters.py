"""The parameter files that hand the metric-learning papers' own settings to their pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cvlib.data.metric_listings import SETS

FOLDER = Path(__file__).parents[2] / "notebooks" / "params"
EPOCHS = {"s2sd": (150, 150, 150), "diva": (350, 350, 150)}
TEXTS = {"data", "data_root", "backbone", "backbone_file", "objective"}


@pytest.mark.parametrize("chapter", EPOCHS)
@pytest.mark.parametrize("place", range(3))
def test_steps_are_whole_epochs_and_numbers_are_numbers(chapter, place):
    name = list(SETS)[place]
    text = (FOLDER / f"{chapter}.{name}.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    assert text.startswith("# ") and "arXiv:" in text.splitlines()[0]
    per_epoch = SETS[name].pictures["train"] // values["batch_size"]
    assert values["data"] == name and values["steps"] == EPOCHS[chapter][place] * per_epoch
    # 1e-5 without a dot would be a text to YAML
    assert {key for key, value in values.items() if isinstance(value, str)} <= TEXTS
    if chapter == "s2sd":  # distillation of features begins after 1000 steps
        assert int(values["warmup_share"] * values["steps"]) == 1000
    else:
        assert len(values["test_weights"]) == 4
