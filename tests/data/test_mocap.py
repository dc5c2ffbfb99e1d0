from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from cvlib.assets import member
from cvlib.data import mocap, mocap_rotations
from cvlib.data.mocap import CLIPS, JOINTS, Motion, clip, read_clip
from cvlib.data.mocap_skeleton import OFFSETS, PARENTS, SWAPPED, forward_kinematics
from cvlib.errors import BookError


def frames_of(name: str) -> np.ndarray:
    return np.array(json.loads(member("mocap", f"humanoid3d_{name}.txt").read_text())["Frames"])


def scipy_rotations(row: np.ndarray) -> dict[str, Rotation]:
    """The local rotations of a frame, read from the sheet's table of columns a second time."""
    found = {name: Rotation.identity() for name in ("right_wrist", "left_wrist")}
    order = [
        "root",
        "chest",
        "neck",
        "right_hip",
        "right_knee",
        "right_ankle",
        "right_shoulder",
        "right_elbow",
    ]
    order += ["left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow"]
    at = 4
    for name in order:
        if name.endswith(("knee", "elbow")):
            found[name], at = Rotation.from_euler("z", row[at]), at + 1
        else:
            found[name], at = Rotation.from_quat(np.roll(row[at : at + 4], -1)), at + 4
    assert at == 44
    return found


def test_the_sheets_reference_positions_of_walk():
    joints = clip("walk").joints()[0]
    reference = {
        "root": (0, 0.8475, 0),
        "right_ankle": (0.2411, 0.0577, 0.0364),
        "left_ankle": (-0.3474, 0.1139, -0.0351),
        "right_wrist": (-0.1382, 0.8102, 0.2374),
        "neck": (0.0472, 1.3048, 0.0173),
    }
    for name, position in reference.items():
        np.testing.assert_allclose(joints[JOINTS.index(name)], position, atol=6e-5)  # four digits are given


def test_forward_kinematics_equals_a_loop_with_scipy():
    """Chains from the root, joint by joint, in another library; backflip and kick are off unit."""
    for name in ("walk", "backflip", "kick"):
        row, joints = frames_of(name)[0], clip(name).joints()[0]
        local = scipy_rotations(row)
        for joint, known in zip(JOINTS, joints, strict=True):
            chain = [joint]
            while PARENTS[JOINTS.index(chain[0])] >= 0:
                chain.insert(0, JOINTS[PARENTS[JOINTS.index(chain[0])]])
            position, turned = row[1:4], local["root"]
            for link in chain[1:]:
                position = position + turned.apply(OFFSETS[JOINTS.index(link)].numpy())
                turned = turned * local[link]
            np.testing.assert_allclose(known, position, atol=1e-12)


def test_all_clips_have_the_known_lengths_at_30_hz():
    """floor(30 x seconds) + 1, seconds from the sheet's table of frames and durations."""
    seconds = {"backflip": 28 * 0.0625, "kick": 46 * 0.033333, "spin": 106 * 0.041667, "run": 24 * 0.033332}
    seconds |= {"roll": 119 * 0.016666 + 0.032666, "dance_b": 152 * 0.016666}
    assert len(CLIPS) == 15
    for name, duration in seconds.items():
        assert len(clip(name)) == math.floor(30 * duration) + 1, name
    assert sum(len(frames_of(name)) for name in CLIPS) == 1620
    assert not clip("kick").loops and clip("walk").loops


@pytest.mark.parametrize("name", CLIPS)
def test_quaternions_are_unit_and_do_not_jump(name):
    q = clip(name).rotations
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(q.shape[:-1], dtype=q.dtype))
    assert ((q[1:] * q[:-1]).sum(-1) > 0.85).all()  # the most: 58 degrees in 1/30 s, backflip
    joints = clip(name).joints()
    bones = (joints[:, 1:] - joints[:, list(PARENTS[1:])]).norm(dim=-1)
    torch.testing.assert_close(bones, OFFSETS[1:].norm(dim=-1).expand_as(bones))


def test_resampling_is_scipys_slerp_between_the_key_frames():
    """Roll: durations differ within the file, and lengths are off by up to .19."""
    raw, motion = frames_of("roll"), clip("roll")
    times = np.concatenate([[0], np.cumsum(raw[:-1, 0])])
    at = np.arange(len(motion)) / 30
    for joint in ("root", "left_shoulder", "right_knee"):
        keys = Rotation.concatenate([scipy_rotations(row)[joint] for row in raw])
        known = Slerp(times, keys)(at)
        ours = Rotation.from_quat(motion.rotations[:, JOINTS.index(joint)].numpy().take([1, 2, 3, 0], -1))
        assert (known * ours.inv()).magnitude().max() < 1e-7
    for axis in range(3):
        np.testing.assert_allclose(motion.root[:, axis], np.interp(at, times, raw[:, 1 + axis]), atol=1e-12)


def test_at_their_own_rate_the_key_frames_come_back():
    raw, motion = frames_of("crawl"), clip("crawl", 1 / 0.016666)
    assert len(motion) == len(raw)
    np.testing.assert_allclose(motion.root, raw[:, 1:4], atol=1e-9)
    knee = motion.rotations[:, JOINTS.index("left_knee")]
    np.testing.assert_allclose(2 * torch.atan2(knee[:, 3], knee[:, 0]), raw[:, 34], atol=1e-9)


@pytest.mark.parametrize("name", ["cartwheel", "kick", "getup_faceup"])
def test_a_mirrored_motion_is_the_reflection_with_sides_swapped(name):
    motion = clip(name)
    mirrored = motion.mirror()
    assert mirrored.is_mirrored and not mirrored.mirror().is_mirrored
    torch.testing.assert_close(mirrored.mirror().rotations, motion.rotations, rtol=0, atol=0)
    torch.testing.assert_close(mirrored.mirror().root, motion.root, rtol=0, atol=0)
    reflected = motion.joints() * torch.tensor([1.0, 1.0, -1.0])
    right, left = JOINTS.index("right_wrist"), JOINTS.index("left_wrist")
    torch.testing.assert_close(mirrored.joints()[:, left], reflected[:, right])
    torch.testing.assert_close(mirrored.joints(), reflected[:, list(SWAPPED)])
    assert [SWAPPED[k] for k in (3, 4, 5, 6, 7, 8)] == [9, 10, 11, 12, 13, 14]  # the files' own lists


def test_turning_turns_the_joints_about_the_vertical():
    motion = clip("run")
    R = torch.from_numpy(Rotation.from_euler("y", 1.2).as_matrix())
    torch.testing.assert_close(motion.turn(1.2).joints(), motion.joints() @ R.T)


def test_centred_joints_and_trajectory_together_are_the_motion():
    motion = clip("jump")
    centred = motion.joints(centred=True)
    assert centred[:, 0].abs().max() == 0
    torch.testing.assert_close(centred + motion.root[:, None], motion.joints())


def test_rotations_agree_with_scipy():
    rng = np.random.default_rng(0)
    p, q = (Rotation.random(50, rng=rng) for _ in range(2))
    w_first = [torch.from_numpy(r.as_quat(canonical=False).take([3, 0, 1, 2], -1)) for r in (p, q)]
    np.testing.assert_allclose(mocap_rotations.to_matrix(w_first[0]), p.as_matrix(), atol=1e-12)
    ours = mocap_rotations.to_matrix(mocap_rotations.product(*w_first))
    np.testing.assert_allclose(ours, (p * q).as_matrix(), atol=1e-12)
    for k in range(50):
        known = Slerp([0, 1], Rotation.concatenate([p[k], q[k]]))(0.3)
        got = mocap_rotations.slerp(w_first[0][k], w_first[1][k], torch.tensor([0.3], dtype=torch.float64))
        np.testing.assert_allclose(mocap_rotations.to_matrix(got), known.as_matrix(), atol=1e-9)


def test_signs_follow_their_neighbours():
    turns = mocap_rotations.about((0.0, 1.0, 0.0), torch.linspace(0, 6, 20, dtype=torch.float64))
    flips = torch.where(torch.arange(20) % 3 == 1, -2.0, 0.5)[:, None]
    torch.testing.assert_close(mocap_rotations.continuous(turns * flips), turns)


def clip_file(tmp_path, **changes):
    """A copy of the run clip with one thing changed."""
    content = json.loads(member("mocap", "humanoid3d_run.txt").read_text())
    frames = content["Frames"]
    for (frame, column), value in changes.pop("cells", {}).items():
        frames[frame][column] = value
    for key, value in changes.items():
        content[key] = value
    path = tmp_path / "humanoid3d_broken.txt"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"Frames": [[0.1] * 44, [0.1] * 43]}, r"frame 1 has 43 columns; wanted 44"),
        ({"cells": {(3, 7): float("nan")}}, r"frame 3, column 7 is nan"),
        ({"cells": {(0, 2): "high"}}, r"frame 0, column 2 is high, str; wanted a finite number"),
        ({"cells": {(1, 9): 10**400}}, r"frame 1, column 9 is 1000.*; wanted a finite number"),
        ({"cells": {(2, 12 + k): 0.0 for k in range(4)}}, r"frame 2, neck has a quaternion of length 0"),
        ({"cells": {(4, 0): 0.0}}, r"lasts 0 s"),
        ({"cells": {(-1, 0): -1.0}}, r"lasts -1 s"),
        ({"Speed": 1}, r"Speed; wanted the keys Loop and Frames"),
        ({"Loop": "often"}, r"Loop is 'often'"),
        ({"Frames": []}, r"Frames is no list of frames"),
    ],
)
def test_a_broken_clip_is_told(tmp_path, changes, told):
    with pytest.raises(BookError, match=told) as error:
        read_clip(clip_file(tmp_path, **changes))
    assert "humanoid3d_broken.txt" in str(error.value)


def test_other_mistakes_are_told(tmp_path):
    sound = clip_file(tmp_path)
    assert isinstance(read_clip(sound), Motion) and read_clip(sound).name == "broken"
    with pytest.raises(BookError, match="rate of 0"):
        read_clip(sound, 0)
    with pytest.raises(BookError, match="cannot be read"):
        read_clip(tmp_path / "absent.txt")
    sound.write_text("[1, 2]")
    with pytest.raises(BookError, match="holds list"):
        read_clip(sound)
    with pytest.raises(BookError, match="moonwalk"):
        mocap.clip("moonwalk")
    with pytest.raises(ValueError, match="wanted"):
        forward_kinematics(torch.zeros(2, 3), torch.zeros(3, 15, 4))
