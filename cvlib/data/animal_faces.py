"""AnimalFaces: the faces of 149 animals, cut out of ImageNet's training pictures at given places.

Written from descriptions of the layout; it has not been run on the release itself.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from cvlib.data import imagenet
from cvlib.data.base import Dataset
from cvlib.data.listed_pictures import ListedPictures, check_crop
from cvlib.data.part_pairs import rows_of
from cvlib.data.pictures import read_picture
from cvlib.data.sources import Source
from cvlib.errors import BookError
from cvlib.files import atomic_path

__all__ = ["NAME", "SOURCE", "SUBSETS", "check", "cut", "load"]

NAME = "animal_faces"
SOURCE = Source(
    "AnimalFaces",
    "https://github.com/NVlabs/FUNIT (coordinates and animals_list_*.txt; the other lists at "
    "https://github.com/edflow/autoencoders; `cvlib data faces ROOT IMAGENET` cuts the pictures)",
)
#: the lists of the training and the test half
SUBSETS = {
    "shared": ("shared_animalfaces_train.txt", "shared_animalfaces_test.txt"),
    "disjoint": ("animals_list_train.txt", "animals_list_test.txt"),
    "restricted": ("restricted_animalfaces_train.txt", "restricted_animalfaces_test.txt"),
}
#: faces and synsets of both halves
_COUNTS = {
    "shared": ((105_653, 149), (11_831, 149)),
    "disjoint": ((93_404, 119), (24_080, 30)),
    "restricted": ((8_036, 10), (898, 10)),
}
_COORDINATES = "animalface_coordinates.txt"
_N_FACES = 117_484  # both halves of a subset that leaves none out
Box = tuple[int, int, int, int]  #: left, upper, right and lower edge in pixels
_FOLDERS = ("data", "animals")  # the authors' name, and that of the coordinates' own release


def _base(root: str) -> Path:
    """Return the folder with any of the lists: ``root``, or AnimalFaces/ in it."""
    folder = Path(root).expanduser()
    names = [_COORDINATES, *(name for lists in SUBSETS.values() for name in lists)]
    for base in (folder, folder / "AnimalFaces"):
        if any((base / name).is_file() for name in names):
            return base
    seen = f"{folder} has another layout" if folder.is_dir() else f"data root {root!r} is no folder"
    raise SOURCE.error(seen, f"{_COORDINATES} and lists such as {SUBSETS['shared'][0]} beside data/<synset>/")


def _pictures(base: Path) -> Path:
    """Return the folder that the paths of the lists count from."""
    return next((base / name for name in _FOLDERS if (base / name).is_dir()), base / _FOLDERS[0])


def _listed(path: Path) -> list[tuple[str, str]]:
    """Return path and synset of every face of a list, in its order; each synset is its own path's folder."""
    rows = []
    for at, line in enumerate(SOURCE.lines(path), 1):
        if not line.strip():
            continue
        if not re.fullmatch(r"n\d{8}/[^/\s]+\.JPEG(_\d+){4}\.jpg", line.strip()):
            wanted = "a path such as n02099601/n02099601_14.JPEG_165_83_345_255.jpg"
            raise SOURCE.error(f"{path}, line {at}: {line!r}", wanted)
        rows.append((line.strip(), line.split("/")[0].strip()))
    return rows


def load(
    split: str,
    image_size: int,
    *,
    root: str,
    subset: str = "shared",
    short_side: int = 0,
    crop: str = "centre",
    flip: bool = False,
    all_train: bool = False,
) -> Dataset:
    """Return faces below ``root``, listed by text files of paths below data/ or animals/.

    ``subset``: "shared" has all 149 animals in both halves, "disjoint" 119 to train on and 30 others to test,
    "restricted" ten in both. Of the training list the faces of every tenth photograph are "validation" and
    the rest "train", or all with ``all_train``, as in the papers. Label "class" numbers the synsets of both
    lists, of "disjoint" those of its own, in sorted order.

    ``short_side`` 0 means ``image_size``. Faces of 20 pixels occur; they are enlarged to the short side,
    bicubically, and the middle is cut out. Stored pictures take a little more than 3 ``image_size``² bytes:
    at 128 pixels about 6 GB for all. ``crop`` as in
    :meth:`cvlib.data.listed_pictures.ListedPictures.crops`.

    Raises: BookError for a missing list or face, another layout, a broken picture, or options at odds.
    """
    short_side = short_side or image_size
    check_crop(short_side, image_size, crop)
    if subset not in SUBSETS:
        raise BookError(f"subset {subset!r}", f"one of {', '.join(SUBSETS)}")
    if split == "validation" and all_train:
        seen = "split 'validation' with all_train"
        raise BookError(seen, "one of the two", "train already holds its faces")
    half, base = "test" if split == "test" else "train", _base(root)
    listing = base / SUBSETS[subset][half == "test"]
    rows = _listed(listing)
    known = [rows] if subset == "disjoint" else [_listed(base / name) for name in SUBSETS[subset]]
    synsets = sorted({synset for listed in known for _, synset in listed})
    at = list(range(len(rows)))
    if half == "train" and not all_train:  # faces of one photograph stay together
        at = rows_of(split, at, lambda k: rows[k][0].split(".JPEG_")[0])
    if not at:
        raise SOURCE.error(f"{listing} has no face for {split}", "a face a line, of several photographs")
    paths = [path for path, _ in rows]
    pictures = ListedPictures(SOURCE, NAME, f"{subset}-{half}", _pictures(base), paths, short_side)
    number = {synset: k for k, synset in enumerate(synsets)}
    return pictures.crops(
        split,
        image_size,
        at,
        files=[[*rows[k], pictures.sha256[k]] for k in at],
        labels={"class": torch.tensor([number[rows[k][1]] for k in at])},
        label_names={"class": imagenet.class_names(synsets, [base])},
        crop=crop,
        flip=flip,
    )


def _faces(path: Path) -> Iterator[tuple[int, str, Box]]:
    """Yield line, picture and place of every face; the last two numbers are edges, not a size."""
    for at, (picture, *words) in enumerate(SOURCE.rows(path, "picture #left #upper #right #lower"), 1):
        left, upper, right, lower = map(int, words)
        if right <= left or lower <= upper:
            seen = f"{path}, line {at}: {' '.join(words)} has no area"
            raise SOURCE.error(seen, "left, upper, right and lower edge")
        yield at, picture, (left, upper, right, lower)


def cut(root: str, image_net: str) -> int:
    """Cut the faces that animalface_coordinates.txt lists out of ImageNet, and return how many were new.

    They lie in the folder data of ``root`` then, each named by its picture and its four edges, of Pillow's
    quality 75 as the authors' are; ``image_net`` is any root of :mod:`cvlib.data.imagenet`, or a folder with
    folders named by synsets. Pictures are cut as they are stored, whatever their EXIF says, since the places
    were measured so; beyond a picture it is black. Faces that lie there already are left: call it again to
    go on.

    Raises: BookError for a missing or broken picture, or a place without an area or outside its picture.
    """
    base = _base(root)
    target, source, listing = _pictures(base), imagenet.training_folder(image_net), base / _COORDINATES
    faces, n_new, told = list(_faces(listing)), 0, time.monotonic()
    for name, group in groupby(faces, key=lambda face: face[1]):
        wanted = [(at, box, target / f"{name}_{'_'.join(map(str, box))}.jpg") for at, _, box in group]
        if all(path.is_file() for _, _, path in wanted):
            continue
        if not (source / name).is_file():
            seen = f"{source / name} is missing, which {listing} names in line {wanted[0][0]}"
            raise imagenet.SOURCE.error(seen, "all training pictures")
        try:
            picture = Image.fromarray(read_picture(source / name, turn=False))
        except BookError as error:
            raise imagenet.SOURCE.error(str(error)) from error
        for at, box, path in wanted:
            right, lower = 2 * picture.width, 2 * picture.height  # what is farther out is a slip
            if not (box[0] < picture.width and box[1] < picture.height and box[2] < right and box[3] < lower):
                seen = f"{listing}, line {at}: {box} lies outside {name}, {picture.width} x {picture.height}"
                raise SOURCE.error(seen, "a place within it")
            if not path.is_file():
                with atomic_path(path) as aside:
                    picture.crop(box).save(aside, format="JPEG")
                n_new += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"AnimalFaces: line {wanted[-1][0]:,} of {len(faces):,}", file=sys.stderr, flush=True)
    return n_new


def check(root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (subset, what is counted, number found, number in the papers), without decoding.

    The numbers are those that the authors' code expects; a list that is not there counts nothing and is not
    compared. Raises: BookError for another layout, or a
    listed face that is missing.
    """
    base = _base(root)
    rows: list[tuple[str, str, int, int | None]] = []
    for subset, names in SUBSETS.items():
        for half, name, wanted in zip(("train", "test"), names, _COUNTS[subset], strict=True):
            listed = _listed(base / name) if (base / name).is_file() else []
            SOURCE.require(_pictures(base), [path for path, _ in listed])
            found = len(listed), len({synset for _, synset in listed})
            for what, n, full in zip(("faces", "synsets"), found, wanted, strict=True):
                rows.append((subset, f"{half} {what}", n, full if listed else None))
    if (base / _COORDINATES).is_file():
        rows.append(("all", "places", sum(1 for _ in _faces(base / _COORDINATES)), _N_FACES))
    if (base / "animal_synsets.txt").is_file():
        synsets = imagenet.read_synsets(base / "animal_synsets.txt")
        rows.append(("all", "synsets", len(set(synsets)), _COUNTS["shared"][0][1]))
    return rows
