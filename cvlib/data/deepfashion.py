"""DeepFashion In-shop: photographs of people in clothes for sale, paired by the item that they wear."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from cvlib.data.bodies_figure import MERGED
from cvlib.data.pair_list import mask_finder
from cvlib.data.part_masks import iuv_mask
from cvlib.data.part_pairs import PairDataset, paired, rows_of
from cvlib.data.part_pictures import PartPicture
from cvlib.data.sources import Source

__all__ = ["NAME", "SOURCE", "check", "load"]

NAME = "deepfashion"
SOURCE = Source(
    "DeepFashion In-shop Clothes Retrieval",
    "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
)
_FOLDERS = ("", "In-shop", "In-shop Clothes Retrieval Benchmark")
_LIST = "Eval/list_eval_partition.txt"
_HALVES = {"train": "train", "query": "test", "gallery": "test"}
_N_IMAGES = 52_712  # from memory: the release's own documents were not at hand


def _listed(base: Path) -> list[tuple[str, str, str]]:
    """Return path below Img/, item and half of every picture; an item is in one half only."""
    path = base / _LIST
    found, halves = [], dict[str, str]()
    for at, row in enumerate(
        SOURCE.rows(path, "image_name item_id evaluation_status", header=True, counted=True), 3
    ):
        picture, item, status = row
        half = _HALVES.get(status, "")
        if not half or PurePosixPath(picture).parent.name != item:
            seen = f"{path}, line {at}: {' '.join(row)!r}"
            raise SOURCE.error(seen, "a picture in the folder of its item, and train, query or gallery")
        if halves.setdefault(item, half) != half:
            raise SOURCE.error(f"{path}, line {at}: {item} is in both halves", "an item in one")
        found.append((picture, item, half))
    return found


def _images(base: Path) -> str:
    """Return the folder that paths such as img/WOMEN/... count from: Img/, or the base itself."""
    return "Img/" if (base / "Img").is_dir() else ""


def load(
    split: str, image_size: int, *, root: str, flip: bool = True, avoid_identity: bool = False
) -> PairDataset:
    """Return the in-shop pictures below ``root``; the partner of one is any of the same item.

    "train" is the release's training list, less every tenth of its items, which are "validation"; "test" is
    query and gallery. An item with one picture pairs it with itself. Pictures are 256 pixels square, persons
    upright; others have their edge repeated. An item comes in several colours (the number NN of
    NN_k_view.jpg), so a pair may differ in colour. The authors train on a filtered list of upper bodies that
    their repository lacks: with one at hand, use :func:`cvlib.data.pair_list.load`.

    Masks: DensePose maps, if ``masks.csv`` lies in the base folder, a pair list whose relative_file_path_ is
    the picture's name in the release's list and whose relative_iuv_path_ counts from the base folder. The
    release has none, and maps for some pictures only are usual: the rest is -1 and not scored.

    Raises: BookError for a missing file, another layout, a broken picture or map.
    """
    base = SOURCE.find(root, _FOLDERS, [_LIST], f"{_LIST} beside Img/img/")
    listed = [row for row in _listed(base) if row[2] == ("test" if split == "test" else "train")]
    listed = rows_of(split, listed, lambda row: row[1])
    mask_of, images = mask_finder(base, SOURCE), _images(base)
    kinds = [PurePosixPath(path).parts for path, _, _ in listed]
    return paired(
        NAME,
        split,
        image_size,
        SOURCE,
        base,
        [PartPicture(images + path, item, mask_of(path)) for path, item, _ in listed],
        names=MERGED,
        read=iuv_mask,
        flip=flip,
        avoid_identity=avoid_identity,
        labels={"category": ["/".join(parts[1:-2]) for parts in kinds]},
    )


def check(root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (half, what is counted, number found, number in the release or None), without decoding.

    The number of pictures is from memory. Raises: BookError for another layout or a missing picture.
    """
    base = SOURCE.find(root, _FOLDERS, [_LIST], f"{_LIST} beside Img/img/")
    listed, images = _listed(base), _images(base)
    SOURCE.require(base, [images + path for path, _, _ in listed])
    rows: list[tuple[str, str, int, int | None]] = [("all", "images", len(listed), _N_IMAGES)]
    for half in ("train", "test"):
        own = {item for _, item, there in listed if there == half}
        rows.append((half, "items", len(own), None))
    return rows
