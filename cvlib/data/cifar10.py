"""CIFAR-10 as its authors distribute it: Python batches, read without running pickles, or binary ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cvlib.data.base import Dataset, Items
from cvlib.data.pickles import Call, read_pickle
from cvlib.errors import BookError

__all__ = ["CLASSES", "load"]

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_PLANE = 3 * 32 * 32
_WHERE = "the CIFAR-10 archive of Krizhevsky (python or binary version), unpacked"


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.fromfile(path, dtype=np.uint8)
    if not data.size or data.size % (_PLANE + 1):
        raise BookError(f"{path} has {data.size} bytes", f"a multiple of {_PLANE + 1}", "fetch it again")
    table = data.reshape(-1, _PLANE + 1)
    return table[:, 1:], table[:, 0].astype(np.int64)


def _read_python(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        fields = read_pickle(path.read_bytes())
        found = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in fields.items()}
        images = found["data"].value() if isinstance(found["data"], Call) else None
        labels = found["labels"]
        labels = labels.value() if isinstance(labels, Call) else labels
        labels = np.array(labels, dtype=np.int64)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BookError(
            f"{path} holds {error}", "a batch of CIFAR-10 as plain arrays", "fetch it again"
        ) from error
    if images is None or images.dtype != np.uint8 or images.shape != (len(labels), _PLANE):
        raise BookError(f"{path} holds other data", f"uint8 images of {_PLANE} values and a label for each")
    return images, labels


def _read(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 3072) uint8 and labels (N,) of one batch, wherever below ``root`` it lies."""
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        for path, read in ((folder / name, _read_python), (folder / f"{name}.bin", _read_binary)):
            if path.is_file():
                images, labels = read(path)
                if not len(labels) or labels.min() < 0 or labels.max() >= len(CLASSES):
                    raise BookError(f"{path} has labels outside 0 to 9, or none", "a batch of CIFAR-10")
                return images, labels
    raise BookError(f"no {name} or {name}.bin in {root}", _WHERE, "pass its folder as data_root")


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Return (N, 3, 32, 32) bytes as (N, 3, size, size), bicubic with antialiasing."""
    if size == 32:
        return images
    parts = [
        F.interpolate(torch.from_numpy(part).float(), size=(size, size), mode="bicubic", antialias=True)
        for part in np.array_split(images, -(-len(images) // 1000))
    ]
    return torch.cat([part.round_().clamp_(0, 255).byte() for part in parts]).numpy()


def load(split: str, image_size: int = 32, *, root: str, pad: int = 0, flip: bool = True) -> Dataset:
    """Return CIFAR-10 from the folder ``root``: 45,000 / 5,000 / 10,000 images, label "class".

    The validation split is the last tenth of each of the five training batches. ``pad`` > 0 mirrors that many
    pixels at the rim and crops at random when augmenting. Sizes other than 32 are resized.
    Raises: BookError for a missing, truncated or foreign file; pickles that would call anything are refused.
    """
    names = ["test_batch"] if split == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    parts = [_read(Path(root).expanduser(), name) for name in names]
    if split != "test":
        kept = [(x, y, len(y) - len(y) // 10) for x, y in parts]
        parts = [(x[:n], y[:n]) if split == "train" else (x[n:], y[n:]) for x, y, n in kept]
    images = np.ascontiguousarray(np.concatenate([x for x, _ in parts])).reshape(-1, 3, 32, 32)
    labels = np.concatenate([y for _, y in parts])
    if not len(labels):
        raise BookError(f"{root}: no images in {split}", "batches of at least ten images")
    content = {"images": hashlib.sha256(images.data).hexdigest(), "labels": labels.tolist(), "pad": pad}
    images = _resized(images, image_size)
    if pad:
        images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="reflect")
    return Dataset(
        "cifar10",
        split,
        image_size,
        np.ascontiguousarray(images).reshape(-1),
        Items.uniform(len(labels), 3, image_size + 2 * pad, pad),
        content=content,
        labels={"class": torch.from_numpy(labels)},
        label_names={"class": list(CLASSES)},
        flip=flip,
    )
