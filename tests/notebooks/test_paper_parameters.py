"""The parameter files that hand the papers' own settings to their pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cvlib.data import _LOADERS
from cvlib.data.metric_listings import SETS
from cvlib.nn.backbones import alexnet_layers, resnet101_layers

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


# network, outputs, pixels it sees, steps of the autoencoder, subset: Rombach et al. 2020, authors' code
INVARIANCES = {
    "imagenet": ("alexnet", 1000, 227, 1_672_855, "animal_synsets.txt"),
    "animal_faces": ("resnet101", 149, 224, 631_606, "shared"),
}
CUTS = {"alexnet": alexnet_layers(), "resnet101": resnet101_layers()}


@pytest.mark.parametrize("name", INVARIANCES)
def test_invariances_have_the_authors_settings(name):
    text = (FOLDER / f"invariances_photos.{name}.yaml").read_text("utf-8")
    values, (first, second, *_) = yaml.safe_load(text), text.splitlines()
    assert first.startswith("# ") and "arXiv:2008.01777" in first
    assert second.startswith("# papermill notebooks/invariances_photos.ipynb out.ipynb -f notebooks/params/")
    assert f"invariances_photos.{name}.yaml -p data_root DIR -p backbone_file FILE" in second
    keys = ("backbone", "n_classes", "network_size", "autoencoder_steps", "subset")
    assert tuple(values[key] for key in keys) == INVARIANCES[name]
    flow = {"n_blocks": 20, "width": 1024, "depth": 2, "dim": 128, "image_size": 128, "steps": 250_000}
    assert flow.items() <= values.items() and values["n_views"] == 0
    assert values["batch_size"] == 16 and values["learning_rate"] == pytest.approx(16 * 4.5e-6)
    assert values["layers"] == list(CUTS[values["backbone"]])
    assert set(values["control"]) <= set(values["layers"]) and values["data"] == name
    assert {key for key, value in values.items() if isinstance(value, str)} <= TEXTS | {"subset"}
