from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import load
from cvlib.errors import BookError
from tests import layouts_parts

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def birds(root, split="test", size=32, **options):
    return load("cub200_parts", split, size, root=str(root), **options)


def rows_of(root, data, rows):
    """The rows of the layout that a data set's images stand for."""
    by_path = {row.path.removeprefix("CUB_200_2011/"): row for row in rows}
    return [by_path[path] for path in data.paths]


def test_the_official_split_less_a_tenth_for_validation(tmp_path):
    rows = layouts_parts.cub200(tmp_path)
    found = {
        split: {row.identity for row in rows_of(tmp_path, birds(tmp_path, split), rows)} for split in SPLITS
    }
    train = sorted(row.identity for row in rows if row.half == "train")
    assert found["validation"] == {train[9]} and found["train"] == set(train) - {train[9]}
    assert found["test"] == {row.identity for row in rows if row.half == "test"}


@pytest.mark.parametrize("masks_inside", [False, True])
def test_images_masks_and_joints_lie_on_each_other(tmp_path, masks_inside):
    """Cut by hand: the square around the box without margin, enlarged; Pillow alone reads the files."""
    rows = layouts_parts.cub200(tmp_path, masks_inside=masks_inside)
    data = birds(tmp_path, size=24, margin=0.0)
    for k, row in enumerate(rows_of(tmp_path, data, rows)):
        x, y, w, h = row.box
        side = round(max(w, h))
        left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
        area = (left, top, left + side, top + side)
        picture = Image.open(tmp_path / row.path).convert("RGB").crop(area)
        cut = torch.from_numpy(np.array(picture.resize((24, 24), Image.Resampling.BICUBIC)))
        torch.testing.assert_close(
            (data.images([k])[0] + 1) * 127.5, cut.movedim(-1, 0).float(), atol=1e-3, rtol=0
        )
        grey = Image.open(tmp_path / row.mask).crop(area).resize((24, 24), Image.Resampling.NEAREST)
        assert torch.equal(data.masks([k])[0], torch.from_numpy(np.array(grey) >= 128).long())
        for j, name in enumerate(data.joint_names):
            if name in row.joints:
                u, v = row.joints[name]
                expected = torch.tensor([(u - left) * 24 / side, (v - top) * 24 / side])
                torch.testing.assert_close(data.joints[k, j], expected, atol=1e-4, rtol=0)
            else:
                assert data.joints[k, j].isnan().all()
    assert list(data.joint_names) == layouts_parts.BIRD_JOINTS
    assert data.names == ("background", "figure") and data.masks(
        torch.arange(len(data))
    ).unique().tolist() == [0, 1]


def test_grey_photographs_odd_names_and_tall_ones_come_along(tmp_path):
    rows = layouts_parts.cub200(tmp_path)
    named = {}
    for split in SPLITS:
        data = birds(tmp_path, split)
        named |= {
            row.identity.rsplit("_", 1)[1]: data.images([k])[0]
            for k, row in enumerate(rows_of(tmp_path, data, rows))
        }
    assert len(named) == 24 and "7005.JPG" in named
    for grey in ("7001.jpg", "7009.jpg"):
        assert torch.equal(named[grey][0], named[grey][2]) and named[grey].std() > 0.01


def test_a_whole_picture_has_its_edge_repeated(tmp_path):
    layouts_parts.cub200(tmp_path)
    image = birds(tmp_path, size=40, is_cropped=False).images([0])[0]  # 40 x 30: five rows above and below
    assert torch.equal(image[:, :5], image[:, 5:6].expand(-1, 5, -1))
    assert torch.equal(image[:, 35:], image[:, 34:35].expand(-1, 5, -1))
    assert not torch.equal(image[:, 5], image[:, 6])


def test_pairs_are_two_warps_of_one_bird_unmirrored(tmp_path):
    layouts_parts.cub200(tmp_path)
    data = birds(tmp_path, "train")
    batch = next(data.batches(16, seed=0))
    assert torch.equal(batch["index"], batch["partner_index"]) and not data.flip
    assert (batch["image"] - batch["partner"]).abs().amax((1, 2, 3)).min() > 0.05
    plain = birds(tmp_path, "train", warps=None)
    batch = next(plain.batches(16, seed=0))
    assert torch.equal(batch["image"], batch["partner"])
    assert data.label_names["class"] == layouts_parts.BIRDS


def test_a_missing_mask_is_listed_and_unknown(tmp_path, capsys):
    rows = layouts_parts.cub200(tmp_path)
    data = birds(tmp_path, "train")
    lost = [k for k, row in enumerate(rows_of(tmp_path, data, rows)) if not row.mask]
    assert (~data.is_masked).nonzero()[:, 0].tolist() == lost and len(lost) == 1
    assert (data.masks(lost) == -1).all() and (data.masks([0]) >= 0).all()
    assert "cub200_parts, train: 1 of 15 pictures have no mask" in capsys.readouterr().err


def test_the_papers_annotated_views_are_shared_between_validation_and_test(tmp_path):
    layouts_parts.cub200(tmp_path)
    ids = layouts_parts.annotated_birds(tmp_path)
    for split, own in (("validation", range(0, 8, 2)), ("test", range(1, 8, 2))):
        data = birds(tmp_path, split, 40, truth="parts")
        assert data.names == ("background", "head", "chest", "wing", "tail", "feet")
        assert [path.rsplit("/", 1)[1] for path in data.paths] == [f"view_{k}.jpg" for k in own]
        for at, k in enumerate(own):
            assert np.array_equal(data.masks([at])[0, 5:35], ids[k])  # 40 x 30 in a square of 40
        assert data.joints.shape == (4, 0, 2)
        assert next(data.batches(4, seed=0))["mask"].max() == 5  # warped with its image
        assert (
            birds(tmp_path, split, 40).names == data.names
        )  # what is there is taken, unless the figure is asked for
        assert birds(tmp_path, split, 40, truth="figure").names == ("background", "figure")
    train = birds(tmp_path, "train", truth="parts")
    assert (train.masks(torch.arange(len(train))) == -1).all() and train.names == data.names


def append(path, line):
    path.write_text(path.read_text() + line + "\n")


def without(path, n=1):
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-n]))


BASE = "CUB_200_2011"
MISTAKES = {
    "no folder": (
        lambda r: r.rename(r.with_name("gone")),
        r"data root .* is no folder; wanted CUB_200_2011/images",
    ),
    "no list": (
        lambda r: (r / BASE / "images.txt").unlink(),
        r"has another layout; wanted CUB_200_2011/images\.txt",
    ),
    "no split": (lambda r: (r / BASE / "train_test_split.txt").unlink(), r"train_test_split\.txt is missing"),
    "short split": (
        lambda r: without(r / BASE / "train_test_split.txt"),
        r"split\.txt speaks of other images",
    ),
    "no box": (lambda r: without(r / BASE / "bounding_boxes.txt"), r"bounding_boxes\.txt lacks image 24"),
    "flat box": (
        lambda r: append(r / BASE / "bounding_boxes.txt", "3 1 1 0 5"),
        r"boxes\.txt: image 3 is 0 x 5",
    ),
    "odd box": (
        lambda r: append(r / BASE / "bounding_boxes.txt", "3 1 1 nan 5"),
        r"boxes\.txt, line 25: '3 1 1 nan 5'",
    ),
    "word box": (
        lambda r: append(r / BASE / "bounding_boxes.txt", "3 left 1 5 5"),
        r"boxes\.txt, line 25: '3 left 1 5 5'; wanted 'image_id x y width height'",
    ),
    "odd part": (
        lambda r: append(r / BASE / "parts/part_locs.txt", "3 16 1 1 1"),
        r"locs\.txt: part 16 of image 3",
    ),
    "odd line": (
        lambda r: append(r / BASE / "parts/part_locs.txt", "3 x 1 1 1"),
        r"locs\.txt, line 361: '3 x 1 1 1'",
    ),
    "few parts": (
        lambda r: without(r / BASE / "parts/parts.txt"),
        r"parts\.txt has 14 parts; wanted 1 to 15",
    ),
    "lost": (
        lambda r: next((r / BASE / "images" / layouts_parts.BIRDS[0]).glob("B*_7002.jpg")).unlink(),
        r"7002\.jpg is missing, one of 1 of 8 ",
    ),
    "broken": (
        lambda r: next((r / BASE / "images" / layouts_parts.BIRDS[0]).glob("B*_7002.jpg")).write_bytes(b"x"),
        r"7002\.jpg cannot be read as a p",
    ),
    "mask": (
        lambda r: next((r / "segmentations" / layouts_parts.BIRDS[0]).glob("*_7002.png")).write_bytes(b"x"),
        r"7002\.png cannot be read as a p",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_path_and_the_place_to_get_it(tmp_path, case):
    spoil, words = MISTAKES[case]
    root = tmp_path / "data"
    root.mkdir()
    layouts_parts.cub200(root)
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        birds(root)
    assert " is at https://" in str(error.value) and "\n" not in str(error.value)


def test_mistakes_with_annotated_views_are_told(tmp_path):
    layouts_parts.cub200(tmp_path)
    with pytest.raises(BookError, match=r"truth 'legs'; wanted one of auto, figure, parts"):
        birds(tmp_path, truth="legs")
    with pytest.raises(BookError, match=r"SegmentationClass is missing; wanted view_<i>\.png"):
        birds(tmp_path, truth="parts")
    layouts_parts.annotated_birds(tmp_path, 2)
    base = tmp_path / "cub_semantic" / "segmentation_mask"
    Image.new("RGB", (40, 30), (1, 2, 3)).save(base / "SegmentationClass" / "view_1.png")
    with pytest.raises(
        BookError, match=r"view_1\.png has the colour \(1, 2, 3\) at x 0, y 0; .*CUB-200-2011 is"
    ):
        birds(tmp_path, truth="parts")
    (base / "JPEGImages" / "view_1.jpg").unlink()
    with pytest.raises(BookError, match=r"view_1\.jpg is missing; wanted the picture that view_1\.png annot"):
        birds(tmp_path, truth="parts")


def test_check_counts_the_full_size(tmp_path):
    layouts_parts.full_size(tmp_path, "cub200_parts")
    done = CliRunner().invoke(commands, ["data", "check", "cub200_parts", str(tmp_path)])
    assert done.exit_code == 0 and done.output.count("as in the papers") == 3
    assert all(number in done.output for number in ("5,994", "5,794", "11,788"))


def test_check_tells_one_missing_picture(tmp_path):
    layouts_parts.full_size(tmp_path, "cub200_parts", spare=1)
    done = CliRunner().invoke(commands, ["data", "check", "cub200_parts", str(tmp_path)])
    assert done.exit_code == 1 and "has 5,793 test images of cub200_parts; wanted 5,794" in str(
        done.exception
    )
    (tmp_path / "CUB_200_2011/images/001.X/x.jpg").unlink()
    done = CliRunner().invoke(commands, ["data", "check", "cub200_parts", str(tmp_path)])
    assert "x.jpg is missing, one of 11,787" in str(done.exception)
