"""Pictures listed in CSV files by whom they show: the authors' own format, in which Exercise comes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cvlib.data.bodies_figure import MERGED
from cvlib.data.part_masks import FIGURE, figure_mask, iuv_mask
from cvlib.data.part_pairs import PairDataset, paired, rows_of
from cvlib.data.part_pictures import PartPicture
from cvlib.data.sources import Source
from cvlib.errors import BookError

__all__ = ["MASKS", "NAME", "SOURCE", "Listed", "check", "load", "mask_finder", "read_list"]

NAME = "pair_list"
SOURCE = Source(
    "the format",
    "https://github.com/CompVis/unsupervised-part-segmentation (columns character_id, relative_file_path_)",
)
_ID, _FILE = "character_id", "relative_file_path_"
#: column of the masks, their labels and how they are read, by the name that the option ``masks`` has for them
MASKS = {
    "iuv": ("relative_iuv_path_", MERGED, iuv_mask),
    "figure": ("relative_mask_path_", FIGURE, figure_mask),
}


class Listed(NamedTuple):
    """A row of a list: whom the picture shows, its path and that of its mask, or nothing for the latter."""

    identity: str
    path: str
    mask: str


def read_list(path: Path, masks: str, source: Source = SOURCE) -> list[Listed]:
    """Return the rows of a pair list, with the masks that ``masks``, a name of :data:`MASKS`, stands for.

    The header may be missing: then the columns are character_id, relative_file_path_ and, if there is a
    third, the masks. Further columns are ignored; an empty cell, or "nan", is no mask.
    Raises: BookError for a missing file, column or cell.
    """
    if not path.is_file():
        raise source.error(f"{path} is missing", f"a list with the columns {_ID}, {_FILE}")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise source.error(f"{path}: {error}", "a list with commas") from error
    names = [_ID, _FILE, MASKS[masks][0]]
    is_named = bool(rows) and (_ID in rows[0] or _FILE in rows[0])
    if is_named:
        names = [name.strip() for name in rows.pop(0)]
    if not {_ID, _FILE} <= set(names):
        raise source.error(f"{path} has the columns {', '.join(names)}", f"{_ID} and {_FILE} among them")
    at = [names.index(name) for name in (_ID, _FILE)]
    mask_at = names.index(MASKS[masks][0]) if MASKS[masks][0] in names else len(names)
    found = []
    for number, row in enumerate(rows, 1 + is_named):
        cells = [cell.strip() for cell in row]
        if len(cells) <= max(at) or not all(cells[k] for k in at):
            raise source.error(f"{path}, line {number}: {','.join(row)!r}", f"{_ID} and {_FILE} in every row")
        mask = cells[mask_at] if mask_at < len(cells) else ""
        found.append(Listed(cells[at[0]], cells[at[1]], "" if mask.lower() == "nan" else mask))
    return found


def _folder(root: str) -> Path:
    return SOURCE.find(root, [""], ["train.csv"], "train.csv, test.csv and the pictures that they list")


def load(
    split: str,
    image_size: int,
    *,
    root: str,
    masks: str = "iuv",
    flip: bool = True,
    avoid_identity: bool = False,
) -> PairDataset:
    """Return the pictures that ``train.csv``, ``validation.csv`` and ``test.csv`` in ``root`` list.

    The partner of a picture is any of the same character_id: a person, or for Exercise a video. Paths count
    from ``root``. Without ``validation.csv``, every tenth identity of ``train.csv`` is put aside for it.
    Pictures that are not square have their edge repeated. ``masks``: "iuv" for DensePose maps in the column
    relative_iuv_path_, merged into the labels of the paper, see :func:`cvlib.data.part_masks.iuv_mask`;
    "figure" for masks of the figure in relative_mask_path_. Both may be missing, for all pictures or some.
    ``flip`` and ``avoid_identity`` are as the authors' configurations have them.

    Raises: BookError for a missing list, column or picture, a broken one, or another ``masks``.
    """
    if masks not in MASKS:
        raise BookError(f"masks {masks!r}", f"one of {', '.join(MASKS)}")
    folder = _folder(root)
    is_own = split == "test" or (folder / "validation.csv").is_file()
    rows = read_list(folder / f"{split if is_own else 'train'}.csv", masks)
    if not is_own:
        rows = rows_of(split, rows, lambda row: row.identity)
    _, names, read = MASKS[masks]
    return paired(
        NAME,
        split,
        image_size,
        SOURCE,
        folder,
        [PartPicture(row.path, row.identity, row.mask) for row in rows],
        names=names,
        read=read,
        flip=flip,
        avoid_identity=avoid_identity,
    )


def mask_finder(folder: Path, source: Source) -> Callable[[str], str]:
    """Return a function that gives the DensePose map of a picture by its path, or nothing.

    They are looked up in ``masks.csv`` of ``folder``, a pair list with the column relative_iuv_path_, if it
    is there. Raises: BookError as :func:`read_list` does.
    """
    path = folder / "masks.csv"
    found = {row.path: row.mask for row in read_list(path, "iuv", source)} if path.is_file() else {}
    return lambda picture: found.get(picture, "")


def check(root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (half, what is counted, number found, None): nobody says how many there should be.

    Raises: BookError for a missing list or a listed picture that is missing.
    """
    folder = _folder(root)
    counts: list[tuple[str, str, int, int | None]] = []
    for half in ("train", "validation", "test"):
        if half == "validation" and not (folder / "validation.csv").is_file():
            continue
        rows = read_list(folder / f"{half}.csv", "iuv")
        SOURCE.require(folder, [row.path for row in rows])
        counts += [(half, "images", len(rows), None)]
        counts += [(half, "identities", len({row.identity for row in rows}), None)]
    return counts
