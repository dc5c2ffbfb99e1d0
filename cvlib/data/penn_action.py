"""Penn Action: video clips of fifteen sports and exercises; a pair is two frames of one clip."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvlib.data.bodies_figure import MERGED
from cvlib.data.pair_list import mask_finder
from cvlib.data.part_masks import iuv_mask
from cvlib.data.part_pairs import PairDataset, paired, rows_of
from cvlib.data.part_pictures import Box, PartPicture
from cvlib.data.sources import Source
from cvlib.errors import BookError

__all__ = ["JOINTS", "NAME", "SOURCE", "Clip", "check", "load", "read_clip"]

NAME = "penn_action"
SOURCE = Source("Penn Action", "https://dreamdragon.github.io/PennAction/")
_SIDED = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
#: the 13 joints in the order of the labels: left before right
JOINTS: tuple[str, ...] = ("head", *(f"{side} {joint}" for joint in _SIDED for side in ("left", "right")))
_FIELDS = ("action", "train", "nframes", "bbox", "x", "y", "visibility")
_FOLDERS = ("", "Penn_Action")
_N_CLIPS, _N_ACTIONS = 2_326, 15  # from memory


@dataclass(frozen=True)
class Clip:
    """What labels/NNNN.mat says about a clip of T frames."""

    number: str
    action: str
    is_train: bool
    boxes: np.ndarray  #: float (T, 4): left, top, right and bottom; NaN where the file has none
    joints: np.ndarray  #: float (T, 13, 2), right and down in pixels, NaN where hidden

    def box(self, frame: int) -> Box | None:
        """Return the box of a frame; where it has no area, that of the visible joints; None without two."""
        left, top, right, bottom = self.boxes[frame].tolist()
        if not (right > left and bottom > top):
            seen = self.joints[frame][~np.isnan(self.joints[frame, :, 0])]
            if len(seen) < 2:
                return None
            (left, top), (right, bottom) = seen.min(0).tolist(), seen.max(0).tolist()
        return left, top, max(right - left, 1.0), max(bottom - top, 1.0)


def _fields(path: Path) -> dict[str, np.ndarray]:
    """Return what a label file holds under the names that are needed."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        table = loadmat(path, variable_names=list(_FIELDS))
    # what scipy raises on bytes that are no .mat file, half of one, or one of another version (7.3)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        NotImplementedError,  # what scipy says of version 7.3, which is HDF5
        MatReadError,
        zlib.error,
    ) as error:
        seen = f"{path} cannot be read ({type(error).__name__}: {error})"
        raise SOURCE.error(seen, "a .mat file of version 5") from error
    if lacking := [name for name in _FIELDS if name not in table]:
        raise SOURCE.error(f"{path} lacks {', '.join(lacking)}", f"the fields {', '.join(_FIELDS)}")
    return {name: np.asarray(table[name]) for name in _FIELDS}


def read_clip(path: Path) -> Clip:
    """Return a clip's labels. A .mat file of version 5 holds numbers and text; nothing in it is run.

    Boxes beyond the number of frames are dropped, and lacking ones have no area.
    Raises: BookError for a file that cannot be read, a missing field, or one of another shape.
    """
    fields = _fields(path)
    scalars = [fields[name].ravel() for name in ("action", "train", "nframes")]
    if any(len(value) != 1 for value in scalars):
        raise SOURCE.error(f"{path}: action, train or nframes is no single value", "one of each")
    numbers = [fields[name] for name in ("train", "nframes", "bbox", "x", "y", "visibility")]
    if any(value.dtype.kind not in "biuf" for value in numbers):
        raise SOURCE.error(f"{path}: text where numbers belong", "numbers in all fields but action")
    action, train, n = str(scalars[0][0]), scalars[1][0], int(scalars[2][0])
    shapes = {name: fields[name].shape for name in ("x", "y", "visibility")}
    if n < 1 or train not in (1, -1) or any(shape != (n, len(JOINTS)) for shape in shapes.values()):
        seen = f"{path}: {n} frames, train {train}, {', '.join(f'{k} {v}' for k, v in shapes.items())}"
        raise SOURCE.error(seen, f"1 or more frames, train 1 or -1, joints of (frames, {len(JOINTS)})")
    if fields["bbox"].ndim != 2 or fields["bbox"].shape[1] != 4:
        raise SOURCE.error(f"{path}: bbox of shape {fields['bbox'].shape}", "(frames, 4)")
    boxes = np.full((n, 4), math.nan)
    given = fields["bbox"][:n].astype(float)
    boxes[: len(given)] = given
    joints = np.stack([fields["x"], fields["y"]], -1).astype(float)
    joints[fields["visibility"] == 0] = math.nan
    return Clip(path.stem, action, train == 1, boxes, joints)


def _clips(root: str) -> tuple[Path, list[Clip]]:
    """Return the folder with labels/ and frames/, and its clips in the order of their numbers."""
    base = SOURCE.find(root, _FOLDERS, ("labels", "frames"), "frames/0001/000001.jpg and labels/0001.mat")
    files = sorted(p for p in (base / "labels").glob("*.mat") if not p.name.startswith("."))
    if not files:
        raise SOURCE.error(f"{base / 'labels'} has no .mat file", "labels/0001.mat and so on")
    return base, [read_clip(path) for path in files]


def _frame(clip: Clip, frame: int) -> str:
    """Return the path of a frame, counted from 0, below the folder of the data."""
    return f"frames/{clip.number}/{frame + 1:06d}.jpg"


def load(
    split: str,
    image_size: int,
    *,
    root: str,
    actions: Sequence[str] = (),
    stride: int = 1,
    is_cropped: bool = True,
    margin: float = 0.2,
    flip: bool = True,
    avoid_identity: bool = False,
) -> PairDataset:
    """Return every ``stride``-th frame of the clips below ``root``; the partner of one is any of its clip.

    "train" and "test" as the labels say; every tenth training clip is "validation". ``actions`` names those
    to keep, none for all; the paper trains on jumping_jacks and pullup. A square around the box (left, top,
    right, bottom, from memory) is cut out, wider by ``margin`` of its longer side on each side; a frame
    whose box has no area, or none at all, is cut around its visible joints. Stored frames take
    4 ``image_size``² bytes: at 128 pixels 11 GB for all of them.

    Masks: DensePose maps, if ``masks.csv`` lies beside frames/, a pair list whose relative_file_path_ is
    frames/0001/000001.jpg and whose relative_iuv_path_ counts from there too. The release has none.

    Raises: BookError for a missing file or field, another layout, an unknown action or a broken frame.
    """
    if stride < 1:
        raise BookError(f"stride {stride}", "1 or more")
    base, clips = _clips(root)
    known = sorted({clip.action for clip in clips})
    if unknown := sorted(set(actions) - set(known)):
        raise BookError(f"actions {', '.join(unknown)}", f"some of {', '.join(known)}")
    clips = [clip for clip in clips if clip.is_train == (split != "test")]
    clips = rows_of(split, clips, lambda clip: clip.number)
    clips = [clip for clip in clips if not actions or clip.action in actions]
    mask_of, pictures = mask_finder(base, SOURCE), []
    for clip in clips:
        for frame in range(0, len(clip.boxes), stride):
            path = _frame(clip, frame)
            joints = tuple((x, y) for x, y in clip.joints[frame].tolist())
            box = clip.box(frame) if is_cropped else None
            pictures.append((PartPicture(path, clip.number, mask_of(path), box, joints), clip.action))
    return paired(
        NAME,
        split,
        image_size,
        SOURCE,
        base,
        [picture for picture, _ in pictures],
        names=MERGED,
        read=iuv_mask,
        joint_names=JOINTS,
        margin=margin,
        flip=flip,
        avoid_identity=avoid_identity,
        labels={"action": [action for _, action in pictures]},
    )


def check(root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (half, what is counted, number found, number in the release or None), without decoding.

    The numbers of the release are from memory. Raises: BookError for another layout or a missing frame.
    """
    base, clips = _clips(root)
    frames = [_frame(clip, k) for clip in clips for k in range(len(clip.boxes))]
    SOURCE.require(base, frames)
    rows: list[tuple[str, str, int, int | None]] = [("all", "clips", len(clips), _N_CLIPS)]
    rows.append(("all", "actions", len({clip.action for clip in clips}), _N_ACTIONS))
    for half in ("train", "test"):
        rows.append((half, "clips", sum(clip.is_train == (half == "train") for clip in clips), None))
    return [*rows, ("all", "frames", len(frames), None)]
