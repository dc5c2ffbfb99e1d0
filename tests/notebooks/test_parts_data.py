"""The page "parts" on real data: its batches train the model, and what no mask covers is not scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jupytext
import pytest
import torch

from cvlib.errors import BookError
from cvlib.metrics.segmentation import overlaps
from cvlib.notebooks import parts_learning as learning
from cvlib.pages import definitions
from cvlib.train import Runtime
from tests import layouts_parts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "parts.py")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tiny(page):
    config = page.PartsConfig(image_size=16, n_parts=4, dim_pi=8, dim_alpha=6)
    small = {"shape_widths": (8, 8), "decoder_widths": (8, 8), "generator_widths": (8, 8)}
    return replace(config, **small, appearance_widths=(8,), critic_width=16, critic_blocks=1)


@pytest.mark.parametrize("data", layouts_parts.WRITERS)
def test_batches_of_real_data_move_every_network(page, root, tiny, data):
    layouts_parts.WRITERS[data](root)
    train = page.load_split(data, str(root), "train", 16)
    batch = next(train.batches(4, seed=0))
    torch.manual_seed(0)
    model = page.PartsModel(tiny, page.Objective(), page.pyramid_distance)
    model.duals.lam.fill_(3.0)
    losses, _ = model.losses(batch["image"], batch["partner"], 1.0)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    for part in learning.PartsModel.MODULES:
        slopes = [p.grad for p in getattr(model, part).parameters() if p.grad is not None]
        assert all(slope.isfinite().all() for slope in slopes) and any(
            slope.abs().max() > 0 for slope in slopes
        )


def test_a_run_on_a_pair_list_is_watched_and_graded(page, root, tiny):
    """Pictures without a mask take no part in a grade; it is the one of the others alone."""
    layouts_parts.exercise(root)
    splits = {
        name: page.load_split("pair_list", str(root), name, 16) for name in ("train", "validation", "test")
    }
    rows = torch.arange(len(splits["train"]))
    assert not splits["train"].is_masked.all()
    watched, truth = splits["train"].images(rows), splits["train"].masks(rows)
    runtime = Runtime(device="cpu", precision="fp32")
    model, album, result = page.train_parts(
        tiny,
        page.Objective(),
        learning.Recipe(steps=2, batch_size=2, n_checks=2),
        splits["train"],
        watched,
        truth,
        seed=0,
        runtime=runtime,
        root=str(root / "runs"),
        n_kept=2,
    )
    assert album.steps.tolist() == [1, 2, 0] and 0 <= result.history[-1]["eval/IoU"] <= 1
    names = splits["train"].names
    parts = page.parts_of(model, watched, runtime)
    table = overlaps(parts, truth, 4, len(names))
    lacking = ~splits["train"].is_masked
    assert table[lacking].sum() == 0 and (table[~lacking].sum((1, 2)) == 256).all()
    graded = page.grade(
        {"validation": parts, "test": parts}, {"validation": truth, "test": truth}, 4, len(names)
    )
    alone = {"validation": truth[~lacking], "test": truth[~lacking]}
    same = page.grade(dict.fromkeys(alone, parts[~lacking]), alone, 4, len(names))
    assert graded.scores.overall == same.scores.overall and graded.scores.images[lacking].isnan().all()


@pytest.mark.parametrize("data", ["pair_list", "cub200_parts"])
def test_masks_of_real_data_are_labels_already(root, data, monkeypatch):
    """Merging them as those of bodies would make feet of what nobody knows. Runs the cells up to the data."""
    layouts_parts.WRITERS[data](root)
    monkeypatch.setenv("CVLIB_SMOKE", "1")
    cells = jupytext.read(ROOT / "notebooks" / "parts.py", fmt="py:percent").cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    last = next(k for k, cell in enumerate(code) if "load_split(" in cell.source)
    space = {"__name__": "parts"}
    for cell in code[: last + 1]:
        exec(cell.source, space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"data": data, "data_root": str(root), "image_size": 32, "run_dir": str(root / "runs")}
    assert space["MERGED"] == space["test"].names
    ids = torch.tensor([[[-1, 0, 1]]])
    assert torch.equal(space["merge"](ids), ids)


def test_other_data_and_a_missing_folder_are_told(page, root):
    with pytest.raises(BookError, match=r"data 'cub200'; wanted one of bodies, cub200_parts, deepfashion"):
        page.load_split("cub200", "", "train", 16)
    with pytest.raises(
        BookError, match=r"no folder for deepfashion; wanted the folder of the data; pass data_r"
    ):
        page.load_split("deepfashion", "", "train", 16)
    assert tuple(layouts_parts.WRITERS) == page.REAL


def test_bodies_are_still_pairs_of_poses(page):
    data = page.load_split("bodies", "", "validation", 16, small=True, clips=["walk"])
    assert len(data) == 2 * 4 * 6 and data.pairs == "pose"
    assert data.names[0] == "background" and len(data.names) == 15
