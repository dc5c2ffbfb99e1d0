from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.bodies import MERGED
from cvlib.data.pair_list import Listed, read_list
from cvlib.errors import BookError
from tests import layouts_parts

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def pairs(root, split="train", size=32, **options):
    return load("pair_list", split, size, root=str(root), **options)


def test_lists_with_and_without_header_are_read(tmp_path):
    rows = {row.path: row for row in layouts_parts.exercise(tmp_path)}
    seen = []
    for split in SPLITS:
        data = pairs(tmp_path, split)
        own, seen = [rows[path] for path in data.paths], seen + data.paths
        assert [data.label_names["identity"][k] for k in data.labels["identity"]] == [
            row.identity for row in own
        ]
        for k, row in enumerate(own):
            truth = np.asarray(Image.open(tmp_path / row.path))
            shown = ((data.images([k])[0] + 1) * 127.5).round().byte().movedim(0, -1)
            assert np.array_equal(shown, truth)
            assert data.is_masked[k] == bool(row.mask)
            if row.mask:
                index = np.asarray(Image.open(tmp_path / row.mask))[..., 2]
                expected = [[MERGED.index(layouts_parts.DENSEPOSE[i]) for i in line] for line in index]
                assert data.masks([k])[0].tolist() == expected
            else:
                assert (data.masks([k]) == -1).all()
    assert sorted(seen) == sorted(rows)
    # sorted as texts: v1, v10, v11, v2 ... v9; the tenth of eleven is v8
    assert {rows[path].identity for path in pairs(tmp_path, "validation").paths} == {"v8"}


def test_partners_share_the_id_and_a_single_frame_is_its_own(tmp_path):
    layouts_parts.exercise(tmp_path)
    data = pairs(tmp_path)
    batch = next(data.batches(256, seed=0))
    assert torch.equal(data.labels["identity"][batch["partner_index"]], batch["identity"])
    single = batch["identity"] == data.label_names["identity"].index("v2")
    assert single.any() and torch.equal(batch["index"][single], batch["partner_index"][single])
    other = next(pairs(tmp_path, avoid_identity=True).batches(256, seed=0))
    assert ((other["index"] == other["partner_index"]) == single).all()


def test_a_list_for_validation_is_used_where_there_is_one(tmp_path):
    layouts_parts.exercise(tmp_path)
    layouts_parts.text(tmp_path / "validation.csv", ["v1,frames/01/00001.png"])
    assert pairs(tmp_path, "validation").paths == ["frames/01/00001.png"]
    assert len(pairs(tmp_path, "train")) == 31  # nothing is put aside


def test_masks_of_the_figure_are_another_column(tmp_path):
    layouts_parts.exercise(tmp_path)
    layouts_parts.figure(tmp_path / "m.png", (32, 32), 0)
    lines = ["character_id,relative_file_path_,relative_mask_path_,relative_iuv_path_"]
    lines += ["a,frames/01/00000.png,m.png,iuv/01/00000.png", "a,frames/01/00001.png,nan,"]
    layouts_parts.text(tmp_path / "test.csv", lines)
    data = pairs(tmp_path, "test", masks="figure")
    assert data.names == ("background", "figure") and data.is_masked.tolist() == [True, False]
    grey = np.asarray(Image.open(tmp_path / "m.png"))
    assert np.array_equal(data.masks([0])[0], grey >= 128)
    assert pairs(tmp_path, "test").names == MERGED and pairs(tmp_path, "test").masks([0]).max() == 5


def test_rows_are_what_the_file_says(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('7,"a, b.png"\n\n8, c.png ,m.png,more\n')
    assert read_list(path, "iuv") == [Listed("7", "a, b.png", ""), Listed("8", "c.png", "m.png")]
    path.write_text("relative_file_path_,character_id\nc.png,8\n")
    assert read_list(path, "figure") == [Listed("8", "c.png", "")]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


MISTAKES = {
    "no folder": (
        lambda r: r.rename(r.with_name("gone")),
        r"data root .* is no folder; wanted train\.csv, test",
    ),
    "no list": (
        lambda r: (r / "test.csv").unlink(),
        r"test\.csv is missing; wanted a list with the columns char",
    ),
    "no train": (lambda r: (r / "train.csv").unlink(), r"has another layout; wanted train\.csv, test\.csv"),
    "no id": (
        lambda r: edit(r / "test.csv", "character_id", "who"),
        r"test\.csv has the columns relative_file_path_, fps, who",
    ),
    "empty": (lambda r: (r / "test.csv").write_text("\n"), r"no picture for test in"),
    "short row": (
        lambda r: edit(r / "test.csv", ",25,v12", ""),
        r"test\.csv, line 2: 'frames/12/00000\.png,iuv",
    ),
    "huge cell": (
        lambda r: edit(r / "test.csv", ",25,v12", ",25," + "v" * 200_000),
        r"test\.csv: field larger than field limit.*; wanted a list with commas",
    ),
    "no path": (lambda r: edit(r / "test.csv", "frames/12/00000.png,", ","), r"line 2: ',25,v12.*every row"),
    "lost": (lambda r: (r / "frames/12/00001.png").unlink(), r"12/00001\.png is missing, one of 1 of 9"),
    "broken": (lambda r: (r / "frames/12/00001.png").write_bytes(b"x"), r"12/00001\.png cannot be read"),
    "index": (
        lambda r: Image.new("RGB", (32, 32), (0, 0, 25)).save(r / "iuv/12/00001.png"),
        r"00001\.png has the part index 25; wanted 0 to 24",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_path_and_the_place_to_get_it(tmp_path, case):
    spoil, words = MISTAKES[case]
    root = tmp_path / "data"
    root.mkdir()
    layouts_parts.exercise(root)
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        pairs(root, "test")
    assert " is at https://" in str(error.value) and "\n" not in str(error.value)


def test_other_masks_are_told(tmp_path):
    layouts_parts.exercise(tmp_path)
    with pytest.raises(BookError, match="masks 'parts'; wanted one of iuv, figure"):
        pairs(tmp_path, masks="parts")


def test_check_looks_pictures_up_and_has_nothing_to_compare_with(tmp_path):
    layouts_parts.exercise(tmp_path)
    done = CliRunner().invoke(commands, ["data", "check", "pair_list", str(tmp_path)])
    assert done.exit_code == 0 and done.output.count("nothing to compare with") == 4
    assert [line.split()[2] for line in done.output.splitlines()[1:]] == ["31", "11", "9", "3"]
    layouts_parts.text(tmp_path / "validation.csv", ["v1,frames/01/00009.png"])
    done = CliRunner().invoke(commands, ["data", "check", "pair_list", str(tmp_path)])
    assert done.exit_code == 1 and "01/00009.png is missing, one of 1" in str(done.exception)
