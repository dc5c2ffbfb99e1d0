from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cvlib.data import load
from cvlib.data.pictures import read_picture
from cvlib.errors import BookError


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def rgb(data, index):
    return ((data.images([index])[0] + 1) * 127.5).round().byte()


def test_classes_and_splits_come_from_subfolders(pictures):
    root = pictures(
        {
            "train/b/1.png": (20, 16),
            "train/a/2.jpg": (16, 30),
            "val/a/3.png": (16, 16),
            "train/notes.txt.png": (16, 16),
        }
    )
    (root / "train/notes.txt.png").unlink()
    (root / "train" / "a" / "thumbs.db").write_bytes(b"stray")
    (root / "train" / ".hidden.png").write_bytes(b"stray")
    train, val = (
        load("image_folder", "train", 16, root=str(root)),
        load("image_folder", "validation", 16, root=str(root)),
    )
    assert (
        train.label_names == {"class": ["a", "b"]}
        and train.labels["class"].tolist() == [0, 1]
        and len(val) == 1
    )
    assert torch.equal(
        rgb(val, 0), torch.from_numpy(read_picture(root / "val/a/3.png").copy()).permute(2, 0, 1)
    )
    with pytest.raises(BookError, match=r"has train, val; wanted a subfolder test as well"):
        load("image_folder", "test", 16, root=str(root))


def test_without_subfolders_content_decides_and_copies_stay_together(pictures):
    root = pictures({f"{k}.png": (16, 16) for k in range(60)})
    for k in range(60):
        shutil.copy(root / f"{k}.png", root / f"copy-{k}.png")
    parts = {
        split: load("image_folder", split, 16, root=str(root)) for split in ("train", "validation", "test")
    }
    assert sum(map(len, parts.values())) == 120 and all(len(part) % 2 == 0 for part in parts.values())
    assert 70 < len(parts["train"]) < 116 and parts["train"].labels == {}
    seen = [{rgb(part, k).numpy().tobytes() for k in range(len(part))} for part in parts.values()]
    assert not seen[0] & seen[1] and not seen[1] & seen[2] and not seen[0] & seen[2]


def test_short_side_is_resized_with_antialiasing_and_the_centre_cut(pictures):
    root = pictures({"train/x.png": (96, 64)})
    data = load("image_folder", "train", 16, root=str(root), crop="centre")
    whole = read_picture(root / "train/x.png").astype(float)
    blocks = whole.reshape(16, 4, 24, 4, 3).mean((1, 3))[:, 4:20]  # an area average, near the bicubic one
    assert (
        np.abs(rgb(data, 0).permute(1, 2, 0).numpy() - blocks).mean() < 8
    )  # noise of std 74; aliasing gives 60
    still = next(data.batches(1, seed=0, augment=False))["image"]
    assert torch.equal(still, data.images([0]))
    assert torch.equal(
        next(data.batches(1, seed=0))["image"].sort(-1)[0], still.sort(-1)[0]
    )  # mirrored at most


def test_larger_short_side_leaves_room_for_random_crops(pictures):
    root = pictures({"train/x.png": (40, 24)})
    data = load("image_folder", "train", 16, root=str(root), short_side=24, flip=False)
    whole = torch.from_numpy(read_picture(root / "train/x.png").copy()).permute(2, 0, 1)
    crops = ((next(data.batches(300, seed=0))["image"] + 1) * 127.5).round().byte()
    windows = whole.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3 * 256)
    known = {one.numpy().tobytes() for one in windows}
    got = {one.numpy().tobytes() for one in crops}
    assert got <= known and len(got) > 150


def test_every_kind_of_picture_is_read(tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (16, 20), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_picture(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray((grey.astype(np.uint16) << 8) + 7).save(tmp_path / "deep.png")
    assert np.array_equal(read_picture(tmp_path / "deep.png"), np.repeat(grey[..., None], 3, 2))
    rgba = np.dstack([grey, grey, grey, np.where(grey > 128, 255, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert np.array_equal(read_picture(tmp_path / "clear.png")[..., 0], np.where(grey > 128, grey, 255))
    Image.new("CMYK", (20, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red = read_picture(tmp_path / "print.jpg").reshape(-1, 3).mean(0)
    assert red[0] > 180 and red[1] < 80 and red[2] < 80
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "palette.gif")
    assert read_picture(tmp_path / "palette.gif").shape == (16, 20, 3)


@pytest.mark.parametrize(("orientation", "undo"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, undo):
    upright = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(np.rot90(upright, {3: 2, 6: 1, 8: 3}[orientation]))
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "x.png"), upright)


def test_order_and_hash_do_not_depend_on_place_or_time(pictures):
    names = {f"train/{k}.png": (16, 16) for k in (3, 10, 2)}
    one = load("image_folder", "train", 16, root=str(pictures(names, "one")))
    other = load("image_folder", "train", 16, root=str(pictures(names, "other")))
    assert one.hash == other.hash
    assert torch.equal(one.images([0, 1, 2]), other.images([0, 1, 2]))
    changed = pictures({**names, "train/2.png": (17, 16)}, "changed")
    assert load("image_folder", "train", 16, root=str(changed)).hash != one.hash


def test_a_changed_picture_is_seen(pictures):
    root = pictures({"train/x.png": (16, 16)})
    before = rgb(load("image_folder", "train", 16, root=str(root)), 0)
    Image.new("RGB", (16, 16), (1, 2, 3)).save(root / "train/x.png")
    after = rgb(load("image_folder", "train", 16, root=str(root)), 0)
    assert not torch.equal(before, after) and after[:, 5, 5].tolist() == [1, 2, 3]


def test_bad_folders_are_told(pictures, tmp_path):
    for root, words in (
        ("", "no folder for image_folder"),
        (str(tmp_path / "absent"), "absent' is no folder"),
        (str(pictures({}, "empty")), "empty holds no picture"),
    ):
        with pytest.raises(BookError, match=words):
            load("image_folder", "train", 16, root=root)
    few = str(pictures({"a.png": (16, 16)}, "few"))
    with pytest.raises(BookError, match=r"none of the 1 pictures of .*few falls into"):
        for split in ("train", "validation", "test"):
            load("image_folder", split, 16, root=few)
    with pytest.raises(BookError, match="crop 'corner'"):
        load("image_folder", "train", 16, root=few, crop="corner")
    with pytest.raises(BookError, match="short_side 8"):
        load("image_folder", "train", 16, root=few, short_side=8)


@pytest.mark.parametrize("damage", ["truncated", "text", "zero"])
def test_unreadable_picture_is_named_and_nothing_is_left(pictures, own_cache, damage):
    root = pictures({"train/good.png": (16, 16), "train/bad.jpg": (64, 64)})
    data = (root / "train/bad.jpg").read_bytes()
    (root / "train/bad.jpg").write_bytes(
        {"truncated": data[: len(data) // 2], "text": b"hello", "zero": b""}[damage]
    )
    with pytest.raises(BookError, match=r"bad\.jpg cannot be read as a picture"):
        load("image_folder", "train", 16, root=str(root))
    assert not list((own_cache / "image_folder").iterdir())


def test_picture_smaller_than_the_crop_is_named(pictures):
    root = pictures({"train/good.png": (32, 32), "train/small.png": (40, 12)})
    with pytest.raises(
        BookError, match=r"small\.png is 40 x 12 pixels; wanted at least 16 on the short side"
    ):
        load("image_folder", "train", 16, root=str(root))
