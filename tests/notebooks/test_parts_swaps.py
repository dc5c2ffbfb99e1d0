"""What the page "parts_swaps" defines: painters that are known, and the story's model untrained."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict
from pathlib import Path

import jupytext
import pytest
import torch
import yaml
from torch import nn

from cvlib.notebooks import parts
from cvlib.pages import definitions
from cvlib.pages.parameters import check_parameters, notebook_parameters
from cvlib.train import Runtime, weights_metadata
from tests import layouts_parts
from tests.tiny_parts import gen, model_of, rand

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "parts_swaps.py")


@pytest.fixture(scope="module")
def story():
    return definitions(ROOT / "notebooks" / "parts.py")


def test_redressing_touches_the_named_parts_alone(page):
    a, b = rand(2, 4, 3), rand(2, 4, 3, seed=1)
    mixed = page.redress(a, b, torch.tensor([0, 2, 2, 1]), 2)
    assert torch.equal(mixed[:, 1:3], b[:, 1:3]) and torch.equal(mixed[:, ::3], a[:, ::3])


@pytest.mark.parametrize("piece", ["everything", "legs"])
def test_the_live_cell_shows_a_pose_in_the_clothes_of_another(page, story, monkeypatch, piece):
    shown, people = {}, rand(5, 3, 16, 16)
    model = model_of(story).eval()
    monkeypatch.setattr(page, "picture", lambda images, **told: shown.update(images=images, **told))
    crowd = type("Crowd", (), {"images": lambda self, rows: people[rows], "__len__": lambda self: 5})
    around = {
        "test": crowd(),
        "model": model,
        "runtime": Runtime(device="cpu", precision="fp32"),
        "assignment": torch.tensor([0, 1, 2, 3]),
    }
    for name, value in around.items():
        monkeypatch.setattr(page, name, value, raising=False)
    page.play(1, 7, piece)  # the seventh of five is the second
    assert shown["images"].shape == (4, 3, 16, 16) and shown["images"].isfinite().all()
    assert torch.equal(shown["images"][[0, 3]], people[[1, 2]]) and piece in shown["caption"]


def test_locality_is_whole_where_the_painter_looks_at_one_pixel(page, story):
    model = model_of(story).eval()
    ids = torch.randint(0, 3, (2, 16, 16), generator=gen())
    alpha = rand(2, 4, 6)
    model.generator = nn.Module()
    model.generator.forward = lambda z, masks: 0.3 * z[:, :3]
    local = page.edit_locality(model, ids, alpha, alpha.roll(1, 0))
    torch.testing.assert_close(local[:3], torch.ones(3))
    assert math.isnan(local[3])  # no pixel has it


def test_swaps_are_pairs_of_shape_and_appearance(page, story):
    model = model_of(story).eval()
    ids, alpha = torch.randint(0, 4, (2, 16, 16), generator=gen()), rand(3, 4, 6)
    matrix = page.swapped(model, ids, alpha)
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(
            matrix[i, j], model.paint(ids[i : i + 1], alpha[j : j + 1])[0], atol=1e-5, rtol=0
        )


# where the model comes from


def defaults(page):
    return notebook_parameters(jupytext.read(ROOT / "notebooks" / f"{page}.py", fmt="py:percent"))[0]


def test_parameters_are_the_storys_so_that_its_runs_are_found():
    ours, story = defaults("parts_swaps"), defaults("parts")
    assert story == ours | {"record": False}
    for file in (ROOT / "notebooks" / "params").glob("parts.*.yaml"):
        given = yaml.safe_load(file.read_text("utf-8"))
        check_parameters({k: v for k, v in given.items() if k != "record"}, ours, "parts_swaps")


def test_the_books_network_is_what_the_defaults_ask_for(story):
    values = defaults("parts_swaps")
    known = weights_metadata(ROOT / "book" / "results" / "weights" / "parts.safetensors")
    names = ("image_size", "n_parts", "covariance", "mi_target", "mi_slack", "reconstruction", "batch_size")
    asked = {name: values[name] for name in (*names, "steps", "learning_rate")}
    config, aim, recipe = story.settings(values["network"], **asked)
    same = {"model": asdict(config), "objective": asdict(aim)}
    assert story.is_as_asked(known, same | {name: values[name] for name in ("clips", "background")})
    report = yaml.safe_load((ROOT / "notebooks" / "params" / "parts_swaps.report.yaml").read_text("utf-8"))
    assert recipe.steps < report["steps"] <= known["steps"]


def test_other_data_are_trained_on_and_named_by_their_own_labels(tmp_path, monkeypatch):
    """Runs the cells up to the model, twice: the second time the run of the first is found."""
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CVLIB_SMOKE", "1")
    known = parts.MERGED
    layouts_parts.WRITERS["cub200_parts"](tmp_path)
    code = [
        cell
        for cell in jupytext.read(ROOT / "notebooks" / "parts_swaps.py", fmt="py:percent").cells
        if cell.cell_type == "code"
    ]
    last = next(k for k, cell in enumerate(code) if "train_parts(" in cell.source)
    given = {"data": "cub200_parts", "data_root": str(tmp_path), "image_size": 32, "n_parts": 4}
    spaces = []
    for _ in range(2):
        spaces.append({"__name__": "parts_swaps"})
        for cell in code[: last + 1]:
            exec(cell.source, spaces[-1])
            if "parameters" in cell.metadata.get("tags", []):
                spaces[-1] |= {**given, "run_dir": str(tmp_path / "runs")}
    first, again = spaces
    assert first["MERGED"] == first["test"].names and known == parts.MERGED  # the story's own stay
    assert first["assignment"].max() < len(first["MERGED"]) and math.isfinite(first["ours"].overall)
    assert first["result"].folder == again["result"].folder
    for name, weights in first["model"].state_dict().items():
        assert torch.equal(weights, again["model"].state_dict()[name]), name
