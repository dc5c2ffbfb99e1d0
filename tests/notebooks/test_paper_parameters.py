"""The parameter files that hand the papers' own settings to their pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cvlib.data import _LOADERS
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


# steps of the released checkpoint, target of information and its slack
PARTS = {
    "cub": ("cub200_parts", 60_000, 0.1, 0.05),
    "deepfashion": ("deepfashion", 80_000, 2.0, 0.5),
    "penn_action": ("penn_action", 343_917, 1.5, 0.05),
    "exercise": ("pair_list", 80_000, 2.0, 0.5),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_have_the_settings_of_the_released_runs(name):
    text = (FOLDER / f"parts.{name}.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    assert text.startswith("# ") and "arXiv:2009.04264" in text.splitlines()[0]
    told = tuple(values[key] for key in ("data", "steps", "mi_target", "mi_slack"))
    assert told == PARTS[name] and values["data"] in _LOADERS
    same = {"image_size": 128, "n_parts": 25, "batch_size": 8, "learning_rate": 2e-4, "network": "paper"}
    assert same.items() <= values.items() and values["reconstruction"] == "vgg19"
