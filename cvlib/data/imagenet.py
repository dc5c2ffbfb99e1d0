"""ImageNet (ILSVRC 2012): photographs of a thousand synsets, and what lies where on the disk.

Written from descriptions of the layouts; it has not been run on the release itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from cvlib.data.base import Dataset
from cvlib.data.listed_pictures import ListedPictures, check_crop
from cvlib.data.part_pairs import rows_of
from cvlib.data.pictures import SUFFIXES
from cvlib.data.sources import Source
from cvlib.errors import BookError

__all__ = [
    "NAME",
    "SOURCE",
    "Half",
    "check",
    "class_names",
    "find",
    "load",
    "read_synsets",
    "training_folder",
]

NAME = "imagenet"
SOURCE = Source("ImageNet (ILSVRC 2012)", "https://image-net.org/challenges/LSVRC/2012/")
LAYOUT = (
    "ILSVRC2012_train/data/<synset>/ and ILSVRC2012_validation/data/<synset>/ with their filelist.txt, "
    "or train/<synset>/ and val/"
)
_PREPARED = ("", "ILSVRC2012_train", "ILSVRC2012_validation")  # folders that may hold data/
_PLAIN = {"train": "train", "val": "validation"}
_FLAT = "validation_synset.txt"
_HUMAN = "synset_human.txt"
_ANIMALS = ("animal_synsets.txt", "ImageNetAnimals/animal_synsets.txt")
_IMAGES = {"train": 1_281_167, "validation": 50_000}
_N_SYNSETS, _N_ANIMALS = 1_000, 149


class Half(NamedTuple):
    """Pictures of one half: the folder that paths count from, and path and synset of each."""

    folder: Path
    rows: list[tuple[str, str]]


def _is_synset(name: str) -> bool:
    """Return whether ``name`` is a synset's, such as n01440764."""
    return bool(re.fullmatch(r"n\d{8}", name))


def find(root: str) -> dict[str, Half]:
    """Return what lies below ``root`` of "train" and "validation", in the order of the lists.

    Either as the authors' code leaves it, in data/ beside filelist.txt, one folder for each half or one for
    both; or as plain folders train/ and val/, the latter flat if validation_synset.txt lies beside it.
    Without filelist.txt all pictures of data/ count. Their marker .ready is not looked at: :func:`check`
    counts.

    Raises: BookError for another layout, a file list or a list of synsets at odds with it.
    """
    base = Path(root).expanduser()
    found: dict[str, Half] = {}
    for name in _PREPARED:
        if (base / name / "data").is_dir():
            for half, rows in _prepared(base / name).items():
                found.setdefault(half, Half(base / name / "data", rows))
    for name, half in _PLAIN.items():
        if half not in found and (base / name).is_dir() and (rows := _plain(base / name)):
            found[half] = Half(base / name, rows)
    if not found:
        seen = f"{base} has another layout" if base.is_dir() else f"data root {root!r} is no folder"
        raise SOURCE.error(seen, LAYOUT)
    return found


def training_folder(root: str) -> Path:
    """Return the folder below ``root`` that holds those of the training pictures' synsets.

    Raises: BookError if there is none.
    """
    base = Path(root).expanduser()
    for folder in (base / "ILSVRC2012_train/data", base / "data", base / "train", base):
        if folder.is_dir() and any(_is_synset(path.name) for path in folder.iterdir()):
            return folder
    raise SOURCE.error(f"{base} has no folder of a synset", LAYOUT)


def _prepared(base: Path) -> dict[str, list[tuple[str, str]]]:
    """Return the pictures of data/ by half: those that filelist.txt names, or else all of them."""
    listing = base / "filelist.txt"
    if listing.is_file():
        paths = [line for line in SOURCE.lines(listing) if line]
    else:
        paths = [path for path, _ in _walk(base / "data")]
    synset_of = dict(SOURCE.rows(base / _FLAT, "file synset")) if (base / _FLAT).is_file() else {}
    halves: dict[str, list[tuple[str, str]]] = {}
    for at, path in enumerate(paths, 1):
        synset, _, file = path.partition("/")
        if not _is_synset(synset) or not file or "/" in file:
            raise SOURCE.error(
                f"{listing}, line {at}: {path!r}", "a path such as n01440764/n01440764_18.JPEG"
            )
        if synset_of.get(file, synset) != synset:
            seen = f"{base / _FLAT} says {synset_of[file]} of {file}, its folder {synset}"
            raise SOURCE.error(seen, "one synset for a picture")
        half = "validation" if file.startswith("ILSVRC2012_val_") else "train"
        halves.setdefault(half, []).append((path, synset))
    return halves


def _plain(folder: Path) -> list[tuple[str, str]]:
    """Return the pictures of folders named by synsets, or of ``folder`` itself with the list beside it."""
    if rows := _walk(folder):
        return rows
    files = _files(folder)
    lists = [base / _FLAT for base in (folder, folder.parent) if (base / _FLAT).is_file()]
    if not files:
        return []
    if not lists:
        seen = f"{folder} holds pictures without folders, and {folder.parent / _FLAT} is missing"
        raise SOURCE.error(seen, "folders named by synsets, or lines such as 'file.JPEG n01440764'")
    synset_of = dict(SOURCE.rows(lists[0], "file synset"))
    if lacking := [file for file in files if not _is_synset(synset_of.get(file, ""))]:
        raise SOURCE.error(f"{lists[0]} has no synset for {lacking[0]}", "one for every picture")
    return [(file, synset_of[file]) for file in files]


def _files(folder: Path) -> list[str]:
    """Return the names of the pictures right below ``folder``, sorted, without hidden ones."""
    names = (path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(name for name in names if not name.startswith("."))


def _walk(folder: Path) -> list[tuple[str, str]]:
    """Return path and synset of the pictures in folders named by synsets, by synset and name."""
    synsets = sorted(path.name for path in folder.iterdir() if _is_synset(path.name) and path.is_dir())
    return [(f"{synset}/{file}", synset) for synset in synsets for file in _files(folder / synset)]


def read_synsets(path: Path) -> list[str]:
    """Return the synsets of a text file, one a line. Raises: BookError for a line that is none."""
    found = [row[0] for row in SOURCE.rows(path, "synset")]
    for at, synset in enumerate(found, 1):
        if not _is_synset(synset):
            raise SOURCE.error(f"{path}, line {at}: {synset!r}", "a synset such as n01440764")
    return found


def class_names(synsets: Iterable[str], folders: Sequence[Path]) -> list[str]:
    """Return "n01440764 tench, Tinca tinca" for each synset if synset_human.txt lies in one of ``folders``,
    else the synset. Raises: BookError if the file lacks one."""
    path = next((folder / _HUMAN for folder in folders if (folder / _HUMAN).is_file()), None)
    if path is None:
        return list(synsets)
    words = {parts[0]: " ".join(parts) for parts in map(str.split, SOURCE.lines(path)) if parts}
    names = []
    for synset in synsets:
        if synset not in words:
            raise SOURCE.error(f"{path} lacks {synset}", "a line of words for every synset")
        names.append(words[synset])
    return names


def load(
    split: str,
    image_size: int,
    *,
    root: str,
    subset: str = "",
    short_side: int = 0,
    crop: str = "random",
    flip: bool = False,
    all_train: bool = False,
) -> Dataset:
    """Return photographs of ImageNet below ``root``, in any of the layouts of :func:`find`.

    "test" is the official validation half, on which papers report; "validation" is every fiftieth picture of
    the training half and "train" the rest, or all of it with ``all_train``, as in the papers. Label "class"
    is the rank of the synset among all that lie there: with the whole release the output's number of a
    classifier of a thousand classes. ``subset`` names a text file below ``root`` with the synsets to keep,
    one a line, such as the 149 of animal_synsets.txt; it does not change the numbers.

    ``short_side`` 0 means ``image_size``: Making Sense of CNNs resizes to 128 and crops 128 from it, anywhere
    in training, the middle else. Pictures are stored so, at 128 pixels about 65 kB each: 84 GB for all,
    13 GB for the animals. ``crop`` as in :meth:`cvlib.data.listed_pictures.ListedPictures.crops`.

    Raises: BookError for a missing file, another layout, a broken picture, or options at odds.
    """
    short_side = short_side or image_size
    check_crop(short_side, image_size, crop)
    if split == "validation" and all_train:
        seen = "split 'validation' with all_train"
        raise BookError(seen, "one of the two", "train already holds its pictures")
    found, half = find(root), "validation" if split == "test" else "train"
    if half not in found:
        raise SOURCE.error(f"{root} has no {half} pictures", LAYOUT)
    kept = set(read_synsets(Path(root).expanduser() / subset)) if subset else None
    rows = [row for row in found[half].rows if kept is None or row[1] in kept]
    if not rows:
        raise SOURCE.error(f"no {half} picture in {found[half].folder} is of {subset or 'a synset'}", LAYOUT)
    pictures = ListedPictures(SOURCE, NAME, half, found[half].folder, [path for path, _ in rows], short_side)
    at = list(range(len(rows)))
    if half == "train" and not all_train:
        at = rows_of(split, at, lambda k: rows[k][0], every=50)
    if not at:
        raise BookError(f"{len(rows)} training pictures in {root}", "at least 50, to put some aside")
    synsets = sorted({synset for one in found.values() for _, synset in one.rows})
    number = {synset: k for k, synset in enumerate(synsets)}
    folders = [Path(root).expanduser(), *(one.folder.parent for one in found.values())]
    return pictures.crops(
        split,
        image_size,
        at,
        files=[[*rows[k], pictures.sha256[k]] for k in at],
        labels={"class": torch.tensor([number[rows[k][1]] for k in at])},
        label_names={"class": class_names(synsets, folders)},
        crop=crop,
        flip=flip,
    )


def check(root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (half, what is counted, number found, number in the release or None), without decoding.

    The numbers are those that the authors' code expects.
    Raises: BookError for another layout or a listed picture that is missing.
    """
    found = find(root)
    rows: list[tuple[str, str, int, int | None]] = []
    for name, wanted in _IMAGES.items():
        half = found.get(name, Half(Path(root), []))
        SOURCE.require(half.folder, [path for path, _ in half.rows])
        rows.append((name, "images", len(half.rows), wanted))
        rows.append((name, "synsets", len({synset for _, synset in half.rows}), _N_SYNSETS))
    for path in _ANIMALS:
        if (animals := Path(root).expanduser() / path).is_file():
            rows.append(("animals", "synsets", len(set(read_synsets(animals))), _N_ANIMALS))
    return rows
