from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.io import loadmat, savemat

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.bodies import MERGED
from cvlib.data.penn_action import read_clip
from cvlib.errors import BookError
from tests import layouts_parts

SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def penn(root, split="train", size=32, **options):
    return load("penn_action", split, size, root=str(root), **options)


def rows_of(data, rows):
    by_path = {row.path.removeprefix("Penn_Action/"): row for row in rows}
    return [by_path[path] for path in data.paths]


def test_splits_follow_the_labels_and_keep_clips_together(tmp_path):
    rows = layouts_parts.penn_action(tmp_path)
    found = {split: rows_of(penn(tmp_path, split), rows) for split in SPLITS}
    assert sum(map(len, found.values())) == len(rows) == 42
    assert {row.identity for row in found["validation"]} == {"0010"}
    assert {row.half for row in found["test"]} == {"test"} and {row.half for row in found["train"]} == {
        "train"
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_frames_are_cut_around_their_box_with_the_joints(tmp_path, split):
    rows = layouts_parts.penn_action(tmp_path)
    data = penn(tmp_path, split, 24, margin=0.0)
    for k, row in enumerate(rows_of(data, rows)):
        x, y, w, h = row.box
        side = round(max(w, h))
        left = min(max(round(x + w / 2 - side / 2), 0), 40 - side)
        top = min(max(round(y + h / 2 - side / 2), 0), 30 - side)
        picture = Image.open(tmp_path / row.path).crop((left, top, left + side, top + side))
        cut = torch.from_numpy(np.array(picture.resize((24, 24), Image.Resampling.BICUBIC)))
        shown = (data.images([k])[0] + 1) * 127.5
        torch.testing.assert_close(shown, cut.movedim(-1, 0).float(), atol=1e-3, rtol=0)
        for j, name in enumerate(data.joint_names):
            if name in row.joints:
                u, v = map(float, row.joints[name])
                expected = torch.tensor([(u - left) * 24 / side, (v - top) * 24 / side])
                torch.testing.assert_close(data.joints[k, j], expected, atol=1e-4, rtol=0)
            else:
                assert name.endswith("knee") and data.joints[k, j].isnan().all()
    assert list(data.joint_names) == layouts_parts.PENN_JOINTS


def test_pairs_are_frames_of_one_clip(tmp_path):
    layouts_parts.penn_action(tmp_path)
    data = penn(tmp_path)
    batch = next(data.batches(256, seed=0))
    clips = [data.paths[k].split("/")[1] for k in range(len(data))]
    for a, b in zip(batch["index"].tolist(), batch["partner_index"].tolist(), strict=True):
        assert clips[a] == clips[b]
    assert (batch["index"] != batch["partner_index"]).float().mean() > 0.5


def test_actions_and_strides_are_chosen(tmp_path):
    rows = layouts_parts.penn_action(tmp_path)
    some = penn(tmp_path, "train", actions=["pullup"], stride=2)
    assert some.label_names["action"] == ["pullup"]
    assert len(some) == 2 * len({row.identity for row in rows_of(some, rows)})
    assert [path[-10:] for path in some.paths[:2]] == ["000001.jpg", "000003.jpg"]
    whole = penn(tmp_path, "test", 40, is_cropped=False).images([0])[0]
    assert torch.equal(whole[:, :5], whole[:, 5:6].expand(-1, 5, -1))


def test_maps_come_from_a_list_beside_the_frames(tmp_path):
    layouts_parts.penn_action(tmp_path)
    base = tmp_path / "Penn_Action"
    layouts_parts.iuv(base / "iuv" / "x.png", (40, 30), 2)
    layouts_parts.text(base / "masks.csv", ["12,frames/0012/000002.jpg,iuv/x.png"])
    data = penn(tmp_path, "test", 40, is_cropped=False)
    at = data.paths.index("frames/0012/000002.jpg")
    assert data.is_masked.nonzero()[:, 0].tolist() == [at]
    expected = [MERGED.index(layouts_parts.DENSEPOSE[(column + 2) % 25]) for column in range(40)]
    assert data.masks([at])[0, 20].tolist() == expected


def test_a_clip_is_read_with_its_hidden_joints_and_odd_boxes(tmp_path):
    layouts_parts.penn_action(tmp_path)
    labels = tmp_path / "Penn_Action" / "labels"
    clip = read_clip(labels / "0003.mat")
    assert clip.is_train and clip.action == "jumping_jacks" and clip.number == "0003"
    assert clip.box(0) == (7.5, 4.0, 16.5, 24.0)
    seen = clip.joints[1][~np.isnan(clip.joints[1, :, 0])]
    assert clip.box(1) == (*seen.min(0), *(seen.max(0) - seen.min(0))) and len(seen) == 11
    assert read_clip(labels / "0004.mat").box(2) is not None  # has one box too few
    clip.joints[1] = np.nan
    assert clip.box(1) is None
    assert not read_clip(labels / "0012.mat").is_train


def relabel(root: Path, **changes) -> None:
    path = root / "Penn_Action" / "labels" / "0012.mat"
    fields = {k: v for k, v in loadmat(path).items() if not k.startswith("__")} | changes
    savemat(path, {k: v for k, v in fields.items() if v is not None})


def damage(root: Path) -> None:
    path = root / "Penn_Action" / "labels" / "0012.mat"
    savemat(path, {k: v for k, v in loadmat(path).items() if not k.startswith("__")}, do_compression=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:150] + bytes(40) + whole[190:])  # inside a compressed field


FRAME = "Penn_Action/frames/0012/000002.jpg"
MISTAKES = {
    "no folder": (lambda r: r.rename(r.with_name("gone")), r"data root .* is no folder; wanted frames/0001"),
    "no labels": (
        lambda r: (r / "Penn_Action/labels").rename(r / "x"),
        r"another layout; wanted frames/0001/",
    ),
    "no file": (
        lambda r: [path.unlink() for path in (r / "Penn_Action/labels").glob("*.mat")],
        r"labels has no \.mat file",
    ),
    "no pose": (
        lambda r: relabel(r, visibility=None),
        r"0012\.mat lacks visibility; wanted the fields action",
    ),
    "train 0": (lambda r: relabel(r, train=0), r"0012\.mat: 3 frames, train 0, x \(3, 13\)"),
    "two trains": (
        lambda r: relabel(r, train=[1, 1]),
        r"0012\.mat: action, train or nframes is no single value",
    ),
    "frames": (lambda r: relabel(r, nframes=4), r"0012\.mat: 4 frames, train -1, x \(3, 13\)"),
    "joints": (lambda r: relabel(r, x=np.ones((3, 12))), r"x \(3, 12\), y \(3, 13\)"),
    "boxes": (
        lambda r: relabel(r, bbox=np.ones((3, 5))),
        r"0012\.mat: bbox of shape \(3, 5\); wanted \(frames, 4\)",
    ),
    "text": (
        lambda r: relabel(r, nframes="three"),
        r"0012\.mat: text where numbers belong; wanted numbers",
    ),
    "huge box": (
        lambda r: relabel(r, bbox=np.array([[1.0, 1, 1e9, 1e9]] * 3)),
        r"000001\.jpg: box 1, 1, 1e\+09, 1e\+09 of a picture of",
    ),
    "endless box": (lambda r: relabel(r, bbox=np.array([[1.0, 1, np.inf, 9]] * 3)), r"box 1, 1, inf, 8 of"),
    "no mat": (
        lambda r: (r / "Penn_Action/labels/0012.mat").write_bytes(b"x" * 200),
        r"0012\.mat cannot be read \(",
    ),
    "hdf5": (
        lambda r: (r / "Penn_Action/labels/0012.mat").write_bytes(
            b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(99)
        ),
        r"0012\.mat cannot be read \(NotImplementedError",
    ),
    "damaged": (damage, r"0012\.mat cannot be read \(error: Error -3"),  # zlib's own
    "lost": (lambda r: (r / FRAME).unlink(), r"0012/000002\.jpg is missing, one of 1 of 9"),
    "broken": (lambda r: (r / FRAME).write_bytes(b"x"), r"0012/000002\.jpg cannot be read as a picture"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_path_and_the_place_to_get_it(tmp_path, case):
    spoil, words = MISTAKES[case]
    root = tmp_path / "data"
    root.mkdir()
    layouts_parts.penn_action(root)
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        penn(root, "test")
    assert " is at https://" in str(error.value) and "\n" not in str(error.value)


def test_bad_options_are_told(tmp_path):
    layouts_parts.penn_action(tmp_path)
    with pytest.raises(
        BookError, match=r"actions bowling; wanted some of jumping_jacks, pullup, tennis_serve"
    ):
        penn(tmp_path, actions=["bowling"])
    with pytest.raises(BookError, match=r"stride 0; wanted 1 or more"):
        penn(tmp_path, stride=0)


def test_check_counts_the_full_size_and_tells_one_missing(tmp_path):
    layouts_parts.full_size(tmp_path, "penn_action")
    done = CliRunner().invoke(commands, ["data", "check", "penn_action", str(tmp_path)])
    assert done.exit_code == 0 and done.output.count("as in the papers") == 2 and "2,326" in done.output
    (tmp_path / "Penn_Action/labels/2326.mat").unlink()
    done = CliRunner().invoke(commands, ["data", "check", "penn_action", str(tmp_path)])
    assert done.exit_code == 1 and "has 2,325 all clips of penn_action; wanted 2,326" in str(done.exception)
    (tmp_path / "Penn_Action/frames/0001/000001.jpg").unlink()
    done = CliRunner().invoke(commands, ["data", "check", "penn_action", str(tmp_path)])
    assert "0001/000001.jpg is missing, one of 1 of 2,325" in str(done.exception)
