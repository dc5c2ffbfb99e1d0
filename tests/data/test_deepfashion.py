from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.bodies import MERGED
from cvlib.errors import BookError
from tests import layouts_parts

SPLITS = ("train", "validation", "test")
LIST = "Eval/list_eval_partition.txt"


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def fashion(root, split="test", size=32, **options):
    return load("deepfashion", split, size, root=str(root), **options)


def test_splits_follow_the_list_and_keep_items_together(tmp_path):
    rows = {row.path: row for row in layouts_parts.deepfashion(tmp_path)}
    items, seen = {}, []
    for split in SPLITS:
        data = fashion(tmp_path, split)
        own = [rows[path] for path in data.paths]
        assert [data.label_names["identity"][k] for k in data.labels["identity"]] == [
            row.identity for row in own
        ]
        assert {row.half for row in own} == {"test" if split == "test" else "train"}
        items[split], seen = {row.identity for row in own}, seen + data.paths
        for k, row in enumerate(own):
            truth = np.asarray(Image.open(tmp_path / row.path).convert("RGB"))
            shown = ((data.images([k])[0] + 1) * 127.5).round().byte().movedim(0, -1)
            assert np.array_equal(shown, truth), row.path
    assert sorted(seen) == sorted(rows) and items["validation"] == {"id_00000010"}
    assert not items["train"] & items["validation"]


def test_pairs_show_one_item_and_a_single_picture_itself(tmp_path):
    layouts_parts.deepfashion(tmp_path)
    data = fashion(tmp_path, "train")
    batch = next(data.batches(256, seed=0))
    assert torch.equal(data.labels["identity"][batch["partner_index"]], batch["identity"])
    alone = data.label_names["identity"].index("id_00000002")
    single = batch["identity"] == alone
    assert single.any() and torch.equal(batch["image"][single], batch["partner"][single])
    assert (batch["index"] == batch["partner_index"])[~single].any()  # as in the authors' configurations
    other = next(fashion(tmp_path, "train", avoid_identity=True).batches(256, seed=0))
    assert (other["index"] != other["partner_index"])[other["identity"] != alone].all()
    assert data.label_names["category"] == ["MEN/Jackets_Vests", "WOMEN/Blouses_Shirts", "WOMEN/Dresses"]


def test_maps_are_merged_and_missing_ones_unknown(tmp_path, capsys):
    rows = layouts_parts.deepfashion(tmp_path)
    data = fashion(tmp_path)
    assert data.names == MERGED
    masked = [row.path for row in rows if row.mask]
    at = data.paths.index(masked[0])
    assert data.is_masked.nonzero()[:, 0].tolist() == [at] and len(masked) == 1
    expected = [MERGED.index(layouts_parts.DENSEPOSE[(column + 3) % 25]) for column in range(32)]
    assert data.masks([at])[0].tolist() == [expected] * 32
    assert "deepfashion, test: 8 of 9 pictures have no mask" in capsys.readouterr().err
    assert (data.masks(torch.arange(9))[~data.is_masked] == -1).all()
    (tmp_path / "masks.csv").unlink()
    assert not fashion(tmp_path).is_masked.any()
    assert capsys.readouterr().err.count("no mask") == 0  # a data set without any needs no list


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


MISTAKES = {
    "no folder": (lambda r: r.rename(r.with_name("gone")), r"data root .* is no folder; wanted Eval/list"),
    "no list": (lambda r: (r / LIST).unlink(), r"has another layout; wanted Eval/list_eval_partition\.txt"),
    "no count": (
        lambda r: edit(r / LIST, "40\n", ""),
        r"begins otherwise; wanted the line 'image_name item_id",
    ),
    "wrong count": (lambda r: edit(r / LIST, "40\n", "41\n"), r"says '41' in its first line and has 40 rows"),
    "no header": (lambda r: edit(r / LIST, "item_id", "item"), r"begins otherwise"),
    "status": (
        lambda r: edit(r / LIST, "  query", "  probe"),
        r"line \d+: '.* probe'; wanted a picture in the f",
    ),
    "other item": (
        lambda r: edit(r / LIST, "  id_00000013  q", "  id_00000014  q"),
        r"line \d+: .* wanted a picture",
    ),
    "both halves": (
        lambda r: edit(r / LIST, "id_00000013  query", "id_00000013  train"),
        r"id_00000013 is in both",
    ),
    "odd line": (
        lambda r: edit(r / LIST, "  query", ""),
        r"partition\.txt, line \d+: 'img/.*' ?; wanted 'image_name",
    ),
    "lost": (
        lambda r: next((r / "Img").rglob("id_00000013/01_1*")).unlink(),
        r"01_1_front\.jpg is missing, one of 1 of 9",
    ),
    "broken": (
        lambda r: next((r / "Img").rglob("id_00000013/01_1*")).write_bytes(b"x"),
        r"01_1_front\.jpg cannot be r",
    ),
    "index": (
        lambda r: Image.new("RGB", (32, 32), (0, 0, 31)).save(r / "iuv/0_IUV.png"),
        r"0_IUV\.png has the part index 31; wanted 0 to 24",
    ),
    "columns": (
        lambda r: edit(r / "masks.csv", "relative_file_path_", "file"),
        r"masks\.csv has the columns character_id, file, relative_iuv_path_; wanted character_id and rel",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_path_and_the_place_to_get_it(tmp_path, case):
    spoil, words = MISTAKES[case]
    root = tmp_path / "data"
    root.mkdir()
    layouts_parts.deepfashion(root)
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        fashion(root)
    assert " is at https://" in str(error.value) and "\n" not in str(error.value)


def test_check_counts_the_full_size_and_tells_one_missing(tmp_path):
    layouts_parts.full_size(tmp_path, "deepfashion")
    done = CliRunner().invoke(commands, ["data", "check", "deepfashion", str(tmp_path)])
    assert done.exit_code == 0 and "52,712  as in the papers" in done.output
    assert done.output.count("nothing to compare with") == 2
    layouts_parts.full_size(tmp_path, "deepfashion", spare=1)
    done = CliRunner().invoke(commands, ["data", "check", "deepfashion", str(tmp_path)])
    assert done.exit_code == 1 and "has 52,711 all images of deepfashion; wanted 52,712" in str(
        done.exception
    )
