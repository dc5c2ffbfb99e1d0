"""Fifteen clips of human motion at one frame rate: unit quaternions, joints in metres, mirrored copies."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from cvlib.assets import ASSETS, member
from cvlib.data.mocap_rotations import about, conjugate_mirror, continuous, product, slerp
from cvlib.data.mocap_skeleton import JOINTS, SWAPPED, forward_kinematics
from cvlib.errors import BookError

__all__ = ["CLIPS", "JOINTS", "RATE", "Motion", "clip", "read_clip"]

RATE = 30.0  #: frames per second of every motion of the book
_PREFIX, _SUFFIX = "humanoid3d_", ".txt"
#: names of the clips: backflip, cartwheel, crawl, ...
CLIPS: tuple[str, ...] = tuple(
    one.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for one in ASSETS["mocap"].members
)

_COLUMNS = 44
_QUATERNIONS = {
    "root": 4,
    "chest": 8,
    "neck": 12,
    "right_hip": 16,
    "right_ankle": 21,
    "right_shoulder": 25,
    "left_hip": 30,
    "left_ankle": 35,
    "left_shoulder": 39,
}  # first of four columns, w first
_ANGLES = {"right_knee": 20, "right_elbow": 29, "left_knee": 34, "left_elbow": 43}  # radians about local z
_KEYS = {"Loop", "Frames", "RightJoints", "LeftJoints"}
_LARGEST = 1e300  # no length, angle or duration of a clip; integers beyond it fit no float
_SHORTEST = 0.1  # below it a quaternion has no direction; the files hold lengths from .58 on


@dataclass(frozen=True)
class Motion:
    """A motion of T frames, float64: poses relative to the parents, from which the joints follow."""

    name: str
    rate: float  #: frames per second
    loops: bool  #: whether the file says that it may be repeated
    root: Tensor  #: (T, 3), metres, y up
    rotations: Tensor  #: (T, 15, 4), unit quaternions (w, x, y, z) relative to the parent, continuous signs
    is_mirrored: bool = False

    def __len__(self) -> int:
        return len(self.root)

    def __repr__(self) -> str:
        mirror = ", mirrored" if self.is_mirrored else ""
        return f"<{self.name}: {len(self)} frames at {self.rate:g} Hz{mirror}>"

    def __getitem__(self, frames: slice) -> Motion:
        return replace(self, root=self.root[frames], rotations=self.rotations[frames])

    def joints(self, *, centred: bool = False) -> Tensor:
        """Return the joints' positions (T, 15, 3) in metres, relative to the root if ``centred``."""
        root = torch.zeros_like(self.root) if centred else self.root
        return forward_kinematics(root, self.rotations)[0]

    def mirror(self) -> Motion:
        """Return the motion in a mirror across its vertical plane z = 0: left and right change places."""
        swapped = conjugate_mirror(self.rotations[:, list(SWAPPED)])
        root = self.root * self.root.new_tensor([1.0, 1.0, -1.0])
        return replace(self, root=root, rotations=swapped, is_mirrored=not self.is_mirrored)

    def turn(self, heading: float) -> Motion:
        """Return the motion turned by ``heading`` radians about the vertical axis through the origin."""
        q = about((0.0, 1.0, 0.0), self.root.new_tensor(heading))
        rotations = self.rotations.clone()
        rotations[:, 0] = continuous(product(q, rotations[:, 0]))
        c, s = math.cos(heading), math.sin(heading)
        R = self.root.new_tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
        return replace(self, root=self.root @ R.T, rotations=rotations)


def _resample(times: Tensor, root: Tensor, q: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Return root and rotations every 1 / rate s from the first key frame to the last that is reached.

    Key frames q of continuous signs give frames of continuous signs.
    """
    n = math.floor(float(times[-1]) * rate + 1e-6) + 1
    at = torch.arange(n, dtype=times.dtype) / rate
    right = torch.searchsorted(times, at, right=True).clamp(1, len(times) - 1)
    left = right - 1
    share = ((at - times[left]) / (times[right] - times[left])).clamp(0, 1)
    between = torch.lerp(root[left], root[right], share[:, None])
    return between, slerp(q[left], q[right], share[:, None, None])


def _frames(path: Path) -> tuple[Tensor, bool]:
    """Return the checked key frames (T, 44) of a file and whether it loops."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BookError(
            f"{path} cannot be read as a motion clip ({error})", "JSON with Loop and Frames"
        ) from error
    if not isinstance(content, dict) or not {"Loop", "Frames"} <= set(content) <= _KEYS:
        seen = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise BookError(f"{path} holds {seen or 'nothing'}", "the keys Loop and Frames")
    if content["Loop"] not in ("wrap", "none"):
        raise BookError(f"{path}: Loop is {content['Loop']!r}", "'wrap' or 'none'")
    rows = content["Frames"]
    if not isinstance(rows, list) or len(rows) < 2 or not all(isinstance(row, list) for row in rows):
        raise BookError(f"{path}: Frames is no list of frames", "at least 2 lists of 44 numbers")
    for k, row in enumerate(rows):
        if len(row) != _COLUMNS:
            raise BookError(f"{path}: frame {k} has {len(row)} columns", f"{_COLUMNS}")
        for column, value in enumerate(row):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not abs(value) < _LARGEST:  # also refuses NaN
                seen = f"{path}: frame {k}, column {column} is {str(value)[:20]}"
                raise BookError(seen if is_number else f"{seen!s}, {type(value).__name__}", "a finite number")
    frames = torch.tensor(rows, dtype=torch.float64)
    if not bool((frames[:-1, 0] > 0).all()) or frames[-1, 0] < 0:
        shortest = min(frames[:-1, 0].min().item(), frames[-1, 0].item() or math.inf)
        raise BookError(f"{path}: a frame lasts {shortest:g} s", "more than 0 s (the last one may have 0)")
    return frames, content["Loop"] == "wrap"


def read_clip(path: str | Path, rate: float = RATE) -> Motion:
    """Return the motion in a file of DeepMimic's humanoid format, resampled to ``rate`` frames per second.

    The file holds 44 numbers a frame (duration, root, nine quaternions, four angles). Durations differ
    between files and within one, and the last does not count; quaternions are made unit and continuous in
    sign, then interpolated by slerp (positions linearly). The first frame is the file's.

    Raises: BookError, naming file and frame, for anything but finite numbers in 44 columns under the keys
    Loop and Frames, a frame without duration, a quaternion of nearly no length, or a rate of 0 or less.
    """
    path = Path(path)
    if not rate > 0 or not math.isfinite(rate):
        raise BookError(f"a rate of {rate} frames per second", "a number above 0")
    frames, loops = _frames(path)
    q = torch.zeros(len(frames), len(JOINTS), 4, dtype=torch.float64)
    q[..., 0] = 1  # the wrists are fixed
    for name, first in _QUATERNIONS.items():
        q[:, JOINTS.index(name)] = frames[:, first : first + 4]
    lengths = q.norm(dim=-1)
    if lengths.min() < _SHORTEST:
        frame, joint = divmod(int(lengths.argmin()), len(JOINTS))
        seen = f"{path}: frame {frame}, {JOINTS[joint]} has a quaternion of length {lengths.min():.2g}"
        raise BookError(seen, "about 1")
    for name, column in _ANGLES.items():
        q[:, JOINTS.index(name)] = about((0.0, 0.0, 1.0), frames[:, column])
    times = torch.cat([frames.new_zeros(1), frames[:-1, 0].cumsum(0)])
    root, rotations = _resample(times, frames[:, 1:4], continuous(q), rate)
    name = path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    return Motion(name, float(rate), loops, root, rotations)


@cache
def clip(name: str, rate: float = RATE) -> Motion:
    """Return one of the 15 clips of :data:`CLIPS`, fetched on first use.

    Raises: BookError for another name.
    """
    if name not in CLIPS:
        raise BookError(f"no clip is called {name!r}", f"one of {', '.join(CLIPS)}")
    return read_clip(member("mocap", f"{_PREFIX}{name}{_SUFFIX}"), rate)
