from __future__ import annotations

import itertools

import pytest
import torch

import cvlib.data
from cvlib.data.mocap import CLIPS, clip
from cvlib.data.mocap_windows import CLIP_SPLITS, GAP, listing, load, time_blocks
from cvlib.errors import BookError

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("n", [3, 7, 24, 53, 133])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_blocks_lie_apart_and_inside(n, is_reversed):
    blocks = time_blocks(n, 3, is_reversed=is_reversed)
    frames = [set(range(block.start, block.stop)) for block in blocks.values()]
    for a, b in itertools.combinations(frames, 2):
        assert all(abs(i - j) > 3 for i in a for j in b)
    assert set.union(*frames) <= set(range(n)) and len(set.union(*frames)) == max(0, n - 6)
    assert len(frames[0]) >= len(frames[1]) == len(frames[2])


def test_the_listing_is_the_committed_one():
    """Golden rows: a change here changes every recorded run that used the splits."""
    rows = listing()
    assert len(rows) == 45 and rows[0] == ("backflip", "train", 0, 25)
    assert rows[3:6] == [
        ("cartwheel", "train", 44, 82),
        ("cartwheel", "validation", 22, 41),
        ("cartwheel", "test", 0, 19),
    ]
    sizes = {split: sum(b - a for _, of, a, b in rows if of == split) for split in SPLITS}
    assert sizes == {"train": 474, "validation": 223, "test": 223}


@pytest.mark.parametrize("by", ["time", "clip"])
def test_no_frame_serves_two_splits(by):
    used: dict[tuple[int, int], str] = {}
    for split in SPLITS:
        data = load(split, 8, 3, lag=2, by=by)
        for which, start in zip(data.labels["clip"].tolist(), data.labels["start"].tolist(), strict=True):
            for frame in range(start, start + 15):
                assert used.setdefault((which, frame), split) == split
    gap = GAP * 30 if by == "time" else 0
    for (which, frame), split in used.items():
        for near in range(frame, frame + int(gap) + 1):
            assert used.get((which, near), split) == split


def test_the_split_by_clip_names_every_clip_once():
    assert sorted(itertools.chain(*CLIP_SPLITS.values())) == sorted(CLIPS)


def test_windows_hold_the_clips_own_poses():
    data = load("train", 8, 4, lag=2)
    for k in range(0, len(data), 7):
        motion = clip(CLIPS[data.labels["clip"][k]])
        motion = motion.mirror() if data.labels["mirrored"][k] else motion
        frames = [int(data.labels["start"][k]) + 2 * i for i in range(8)]
        known = torch.stack([motion.joints()[i] - motion.root[i] for i in frames])
        torch.testing.assert_close(data.joints[k], known.float())
    starts = data.labels["start"][(data.labels["clip"] == 2) & (data.labels["mirrored"] == 0)]
    assert starts.diff().eq(4).all()
    assert data.labels["mirrored"].float().mean() == 0.5


def test_full_trajectories_start_above_the_origin_and_move():
    full, centred = (load("train", 8, trajectory=kind) for kind in ("full", "centred"))
    assert full.joints[:, 0, 0, [0, 2]].abs().max() == 0
    assert full.joints[:, 0, 0, 1].min() > 0.1  # the height is kept
    torch.testing.assert_close(full.joints - full.joints[:, :, :1], centred.joints)
    assert full.hash != centred.hash


def test_batches_repeat_and_turn_only_about_the_vertical():
    data = load("validation", 8)
    a, b = (next(data.batches(32, seed=3)) for _ in range(2))
    assert set(a) == {"joints", "heading", "index", "clip", "start", "mirrored"}
    assert all(torch.equal(a[key], b[key]) for key in a)
    plain = data.joints[a["index"]]
    torch.testing.assert_close(a["joints"][..., 1], plain[..., 1])
    angle = torch.atan2(a["joints"][..., 0], a["joints"][..., 2]) - torch.atan2(plain[..., 0], plain[..., 2])
    far = plain[..., [0, 2]].norm(dim=-1) > 0.05
    off = (angle - a["heading"][:, None, None]).sin().abs()[far]
    assert off.max() < 1e-4 and a["heading"].std() > 1
    still = next(data.batches(32, seed=3, augment=False))
    assert torch.equal(still["joints"], data.joints[still["index"]]) and "heading" not in still


def test_wrong_options_are_told():
    for options, told in [
        ({"length": 1}, "length 1"),
        ({"stride": 0}, "stride 0"),
        ({"lag": 1.5}, "lag 1.5"),
        ({"trajectory": "flat"}, "'flat'"),
        ({"by": "person"}, "'person'"),
        ({"clips": ["swim"]}, "'swim'"),
        ({"length": 64}, "no block of train has 64 frames|no block"),
    ]:
        with pytest.raises(BookError, match=told):
            load("test", **options)
    with pytest.raises(BookError, match="split 'dev'"):
        load("dev")
    with pytest.raises(ValueError, match="Generator"):
        data = load("test", 4)
        data.draw(torch.arange(2), None, True)


def test_a_subset_is_whole_and_images_are_refused():
    data = load("test", 8, stride=4)
    rows = torch.tensor([5, 0, 2])
    part = data.subset(rows)
    assert len(part) == 3 and torch.equal(part.joints, data.joints[rows]) and part.hash != data.hash
    assert torch.equal(part.labels["start"], data.labels["start"][rows])
    batch = next(part.batches(3, seed=0, augment=False))
    assert torch.equal(batch["joints"], part.joints[batch["index"]])
    with pytest.raises(BookError, match="a subset without images; wanted at least one"):
        data.subset(torch.tensor([]))
    with pytest.raises(BookError, match="images of mocap; wanted its tensor `joints`"):
        data.images(rows)
    with pytest.raises(BookError, match=r"motions come from cvlib\.data\.mocap_windows\.load"):
        cvlib.data.load("mocap", "test", 64)
