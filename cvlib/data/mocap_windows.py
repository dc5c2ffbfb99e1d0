"""Windows of the motion clips as a data set, split by time within every clip or by clip."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cvlib.assets import ASSETS
from cvlib.data.base import SPLITS, Dataset, Draws
from cvlib.data.mocap import CLIPS, RATE, clip
from cvlib.data.store import digest
from cvlib.errors import BookError

__all__ = ["CLIP_SPLITS", "GAP", "MotionWindows", "listing", "load", "time_blocks"]

GAP = 0.1  #: seconds between the blocks of two splits, which belong to neither
#: the split by clip: the motions of validation and test have no like in training
CLIP_SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "backflip",
        "cartwheel",
        "crawl",
        "dance_a",
        "getup_faceup",
        "jump",
        "punch",
        "roll",
        "spin",
        "walk",
    ),
    "validation": ("dance_b", "spinkick"),
    "test": ("getup_facedown", "kick", "run"),
}
_FORMAT = 1  # raise when the same options give other windows


def time_blocks(n: int, gap: int, *, is_reversed: bool) -> dict[str, slice]:
    """Return the frames of each split in a clip of ``n``: half for training, a quarter each for the others.

    The blocks follow each other in the order train, validation, test, or the other way round, with ``gap``
    frames left out between two of them.

    >>> time_blocks(46, 3, is_reversed=False)
    {'train': slice(0, 20, None), 'validation': slice(23, 33, None), 'test': slice(36, 46, None)}
    """
    quarter = max(0, n - 2 * gap) // 4
    sizes = {"train": max(0, n - 2 * gap) - 2 * quarter, "validation": quarter, "test": quarter}
    found, first = {}, 0
    for split in reversed(SPLITS) if is_reversed else SPLITS:
        found[split] = slice(first, first + sizes[split])
        first += sizes[split] + gap
    return {split: found[split] for split in SPLITS}


def listing(by: str = "time", rate: float = RATE) -> list[tuple[str, str, int, int]]:
    """Return (clip, split, first frame, frame after the last) of every block, clips in alphabetical order.

    ``by`` "time": every clip is cut into three blocks with :data:`GAP` seconds left out between them, every
    second clip from its end, so that test blocks are not always the end of a motion. ``by`` "clip": whole
    clips, as in :data:`CLIP_SPLITS`. Raises: BookError for another ``by``.
    """
    if by not in ("time", "clip"):
        raise BookError(f"a split by {by!r}", "'time' or 'clip'")
    if by == "clip":
        of = {name: split for split, names in CLIP_SPLITS.items() for name in names}
        return [(name, of[name], 0, len(clip(name, rate))) for name in CLIPS]
    gap = math.ceil(GAP * rate)
    rows = []
    for k, name in enumerate(CLIPS):
        blocks = time_blocks(len(clip(name, rate)), gap, is_reversed=k % 2 == 1)
        rows += [(name, split, block.start, block.stop) for split, block in blocks.items()]
    return rows


class MotionWindows(Dataset):
    """Windows of consecutive poses; a batch holds "joints" (B, length, 15, 3), float32 metres, and labels.

    Order of the joints: :data:`cvlib.data.mocap_skeleton.JOINTS`. With augmentation each window is turned by
    a random angle about the vertical axis; a batch then also holds "heading" (B,) in radians.
    ``joints`` is the tensor of all windows (N, length, 15, 3) as they are without augmentation. There are no
    images: use :meth:`batches`, or the tensor.
    """

    def __init__(
        self, split: str, joints: Tensor, labels: dict[str, Tensor], content: dict[str, object]
    ) -> None:
        self.name, self.split, self.image_size = "mocap", split, 0
        # under this name, so that a subset is taken as of every data set
        self._items: np.ndarray = joints.numpy()  # type: ignore[assignment]  # rows of poses, not of pictures
        self.labels, self.label_names = labels, {"clip": list(CLIPS)}
        self.hash = digest({"name": "mocap", "split": split, **content}, 16)

    def __len__(self) -> int:
        return len(self.joints)

    def __repr__(self) -> str:
        length = self.joints.shape[1]
        return f"<mocap/{self.split}: {len(self):,} windows of {length} frames, hash {self.hash}>"

    @property
    def joints(self) -> Tensor:
        """All windows (N, length, 15, 3), as they are without augmentation."""
        return torch.from_numpy(self._items)

    def images(self, index: Tensor, **_: object) -> Tensor:
        """There are none. Raises: BookError."""
        raise BookError(
            "images of mocap", "its tensor `joints`, or batches", "bodies draws people in these poses"
        )

    def draw(self, index: Tensor, generator: torch.Generator | None, augment: bool) -> Draws:
        """Return the headings as the draws' factors (B, 1), none without ``augment``."""
        no = torch.zeros(len(index), dtype=torch.long)
        if not augment:
            return Draws(no, no, no)
        if generator is None:
            raise ValueError("augment=True wants a torch.Generator, so that the draw can be repeated")
        heading = (2 * torch.rand(len(index), 1, generator=generator, dtype=torch.float64) - 1) * math.pi
        return Draws(no, no, no, heading.float())

    def render(self, index: Tensor, draws: Draws, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return {"joints": (B, length, 15, 3)}, and {"heading": (B,)} where the draws turn the windows."""
        joints = self.joints[index].to(device)
        if draws.factors is None:
            return {"joints": joints}
        heading = draws.factors[:, 0].to(device)
        c, s = heading.cos()[:, None, None], heading.sin()[:, None, None]
        x, y, z = joints.unbind(-1)
        return {"joints": torch.stack([c * x + s * z, y, c * z - s * x], -1), "heading": heading}


def _check(length: int, stride: int, lag: int) -> None:
    for name, value, least in (("length", length, 2), ("stride", stride, 1), ("lag", lag, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BookError(f"{name} {value!r}", f"a whole number of frames, at least {least}")


def load(
    split: str,
    length: int = 16,
    stride: int = 1,
    *,
    lag: int = 1,
    trajectory: str = "centred",
    by: str = "time",
    is_mirrored_too: bool = True,
    clips: Sequence[str] = CLIPS,
    rate: float = RATE,
) -> MotionWindows:
    """Return the windows of ``length`` poses in a split (train, validation, test), ``stride`` frames apart.

    A window takes every ``lag``-th frame of one block of :func:`listing`, so that no frame serves two splits;
    a block that is shorter than a window gives none. ``trajectory``: "centred", each pose relative to its
    root (which stays at 0), or "full", where the root moves, from above the origin on. ``is_mirrored_too``
    adds each window's mirror image; it stays in the window's split, although the halves of a symmetric
    motion (walk, run) are near mirror images of each other. Labels: clip, start (the first frame), mirrored.

    Raises: BookError for an option outside its values, or if no block is long enough.
    """
    _check(length, stride, lag)
    if split not in SPLITS:
        raise BookError(f"split {split!r} of mocap", f"one of {', '.join(SPLITS)}")
    if trajectory not in ("centred", "full"):
        raise BookError(f"trajectory {trajectory!r}", "'centred' or 'full'")
    if unknown := sorted(set(clips) - set(CLIPS)):
        raise BookError(f"no clip is called {unknown[0]!r}", f"some of {', '.join(CLIPS)}")
    span = (length - 1) * lag + 1
    windows, rows = [], []
    for name, of, first, last in listing(by, rate):
        if of != split or name not in clips:
            continue
        plain = clip(name, rate)
        for motion in (plain, plain.mirror()) if is_mirrored_too else (plain,):
            joints = motion.joints(centred=trajectory == "centred")
            for start in range(first, last - span + 1, stride):
                window = joints[start : start + span : lag]
                if trajectory == "full":
                    window = window - window[0, 0] * window.new_tensor([1.0, 0.0, 1.0])
                windows.append(window)
                rows.append((CLIPS.index(name), start, int(motion.is_mirrored)))
    if not windows:
        raise BookError(f"no block of {split} has {span} frames", "a shorter length", "or by='clip'")
    columns = torch.tensor(rows).T
    labels = {"clip": columns[0], "start": columns[1], "mirrored": columns[2]}
    content = {
        "length": length,
        "stride": stride,
        "lag": lag,
        "trajectory": trajectory,
        "by": by,
        "rate": rate,
    }
    content |= {"mirrored": is_mirrored_too, "clips": [name for name in CLIPS if name in clips]}
    content |= {"source": ASSETS["mocap"].sha256, "format": _FORMAT}
    return MotionWindows(split, torch.stack(windows).float(), labels, content)
