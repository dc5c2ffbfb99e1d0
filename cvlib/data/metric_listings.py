"""What lies where in CUB-200-2011, CARS196 and Stanford Online Products, without decoding a picture.

Two layouts each: the raw release, and the folders that the authors' code expects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvlib.data.pictures import SUFFIXES
from cvlib.data.sources import Source

__all__ = ["SETS", "Entry", "Listing", "MetricSet", "listing"]


@dataclass(frozen=True)
class Entry:
    """A picture: its path below the folder of pictures, and its class, numbered from 1 as in the release."""

    path: str
    number: int
    name: str
    super_class: int = 0


@dataclass(frozen=True)
class Listing:
    """The pictures of both halves, "train" and "test", by class and path; no class is in both."""

    folder: Path
    halves: dict[str, list[Entry]]
    super_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricSet(Source):
    """A data set: how its layouts are read, and the pictures and classes that each half must have."""

    layouts: str
    folders: tuple[str, ...]
    read: Callable[[Path, MetricSet], Listing | None]
    pictures: dict[str, int]
    classes: dict[str, int]


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures right below ``folder``; hidden ones are junk, such as ._x of macOS."""
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _class_folders(folder: Path, kind: MetricSet) -> list[Path]:
    """Return the folders below ``folder`` sorted by code point: capitals come before small letters."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise kind.error(f"{folder} has no subfolder", "one for each class")
    return sorted(found, key=lambda path: path.name)


def _halves(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Return the entries of the first half of the classes, and those of the second."""
    numbers = sorted({entry.number for entry in entries})
    first = set(numbers[: len(numbers) // 2])
    ordered = sorted(entries, key=lambda entry: (entry.number, entry.path))
    return {
        "train": [entry for entry in ordered if entry.number in first],
        "test": [entry for entry in ordered if entry.number not in first],
    }


def _cub200(base: Path, kind: MetricSet) -> Listing | None:
    """Folders NNN.Name, in the order of NNN; or images.txt and image_class_labels.txt, if they are there."""
    images = base / "images"
    if not images.is_dir():
        return None
    if (base / "images.txt").is_file():
        paths = {row[0]: row[1] for row in kind.rows(base / "images.txt", "#image_id path")}
        labels = base / "image_class_labels.txt"
        classes = {row[0]: int(row[1]) for row in kind.rows(labels, "#image_id #class_id")}
        if paths.keys() != classes.keys():
            raise kind.error(f"{labels} speaks of other images", f"those of {base / 'images.txt'}")
        return Listing(images, _halves([Entry(p, classes[k], Path(p).parent.name) for k, p in paths.items()]))
    entries = []
    for folder in _class_folders(images, kind):
        number = folder.name.split(".")[0]
        if not number.isdecimal():
            raise kind.error(f"{folder} has no number", "folders such as 001.Black_footed_Albatross")
        entries += [Entry(f"{folder.name}/{p.name}", int(number), folder.name) for p in _pictures(folder)]
    return Listing(images, _halves(entries))


def _annotations(path: Path, kind: MetricSet) -> tuple[list[str], list[int], list[str]]:
    """Return paths, classes from 1 on, and the names of the classes in cars_annos.mat."""
    from scipy.io import loadmat

    try:
        table = loadmat(path)
        rows: Any = table["annotations"].ravel()
        paths = [str(np.asarray(value).item()) for value in rows["relative_im_path"]]
        classes = [int(np.asarray(value).item()) for value in rows["class"]]
        names = [str(np.asarray(value).item()) for value in table["class_names"].ravel()]
    # what scipy raises on bytes that are no .mat file, or one of another layout or version (7.3)
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        seen = f"{path} cannot be used ({type(error).__name__}: {error})"
        raise kind.error(seen, "annotations with relative_im_path and class, and class_names") from error
    if not classes or not 1 <= min(classes) <= max(classes) <= len(names):
        raise kind.error(f"{path} has classes outside 1 to {len(names)}, or none", "a number for each name")
    return paths, classes, names


def _cars196(base: Path, kind: MetricSet) -> Listing | None:
    """cars_annos.mat beside car_ims (its flag "test" is another split), or a folder for each class."""
    if (base / "cars_annos.mat").is_file():
        paths, classes, names = _annotations(base / "cars_annos.mat", kind)
        return Listing(
            base, _halves([Entry(p, c, names[c - 1]) for p, c in zip(paths, classes, strict=True)])
        )
    if not (base / "images").is_dir():
        return None
    entries = []
    for number, folder in enumerate(_class_folders(base / "images", kind), 1):
        entries += [Entry(f"{folder.name}/{path.name}", number, folder.name) for path in _pictures(folder)]
    return Listing(base / "images", _halves(entries))


def _products(base: Path, kind: MetricSet) -> Listing | None:
    """Ebay_train.txt and Ebay_test.txt beside the folders of products, or Info_Files/ and images/."""
    columns = "#image_id #class_id #super_class_id path"
    texts, images = base, base
    if (base / "Info_Files").is_dir():
        texts, images = base / "Info_Files", base / "images"
    elif not (base / "Ebay_train.txt").is_file():
        return None
    halves: dict[str, list[Entry]] = {}
    supers: dict[int, str] = {}
    for half in ("train", "test"):
        rows = kind.rows(texts / f"Ebay_{half}.txt", columns, header=True)
        supers |= {int(row[2]): Path(row[3]).parent.name.removesuffix("_final") for row in rows}
        entries = [Entry(r[3], int(r[1]), Path(r[3]).stem.rsplit("_", 1)[0], int(r[2])) for r in rows]
        halves[half] = sorted(entries, key=lambda entry: (entry.number, entry.path))
    if both := {e.number for e in halves["train"]} & {e.number for e in halves["test"]}:
        raise kind.error(f"class {min(both)} is in both lists of {texts}", "no class in both")
    if sorted(supers) != list(range(1, len(supers) + 1)):
        raise kind.error(f"{texts} has super classes {sorted(supers)}", "numbers from 1 on without a gap")
    return Listing(images, halves, tuple(supers[number] for number in sorted(supers)))


SETS = {
    "cub200": MetricSet(
        "CUB-200-2011",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "CUB_200_2011/images/NNN.Name/ or cub200/images/NNN.Name/",
        ("", "CUB_200_2011", "cub200"),
        _cub200,
        {"train": 5_864, "test": 5_924},
        {"train": 100, "test": 100},
    ),
    "cars196": MetricSet(
        "CARS196",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        "cars_annos.mat beside car_ims/, or cars196/images/ with one folder a class "
        "(not cars_train/ and cars_test/ of the later release)",
        ("", "cars196"),
        _cars196,
        {"train": 8_054, "test": 8_131},
        {"train": 98, "test": 98},
    ),
    "online_products": MetricSet(
        "Stanford Online Products",
        "https://cvgl.stanford.edu/projects/lifted_struct/",
        "Stanford_Online_Products/Ebay_train.txt, or online_products/Info_Files/ and images/",
        ("", "Stanford_Online_Products", "online_products"),
        _products,
        {"train": 59_551, "test": 60_502},
        {"train": 11_318, "test": 11_316},
    ),
}


def listing(name: str, root: str) -> Listing:
    """Return what ``root``, or the data set's own folder in it, holds of the data set ``name`` of ``SETS``.

    Raises: BookError that names the path, what was expected there and where the data set is to be had.
    """
    kind = SETS[name]
    base = Path(root).expanduser()
    if not root or not base.is_dir():
        raise kind.error(f"data root {root!r} is no folder", f"one with {kind.layouts}")
    for folder in kind.folders:
        if (found := kind.read(base / folder, kind)) is not None:
            for half, entries in found.halves.items():
                if not entries:
                    raise kind.error(
                        f"no picture for {half} in {found.folder}", "several classes of pictures"
                    )
            return found
    raise kind.error(f"{base} has another layout", kind.layouts)
