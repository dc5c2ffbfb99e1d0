"""CUB-200-2011 for part discovery: single birds, each paired with itself in another warp."""

from __future__ import annotations

from pathlib import Path

from cvlib.data.metric_listings import SETS
from cvlib.data.part_masks import BIRD, FIGURE, colour_mask, figure_mask
from cvlib.data.part_pairs import PairDataset, paired, rows_of
from cvlib.data.part_pictures import Box, PartPicture
from cvlib.data.sources import Source
from cvlib.data.warps import WarpRange
from cvlib.errors import BookError

__all__ = ["NAME", "SOURCE", "TRUTHS", "check", "load"]

NAME = "cub200_parts"
SOURCE = Source(SETS["cub200"].title, SETS["cub200"].where)
TRUTHS = ("auto", "figure", "parts")
WARPS = WarpRange()
_FOLDERS = ("", "CUB_200_2011")
_ANNOTATED = "cub_semantic/segmentation_mask"  # below the root
_N_JOINTS = 15
_HIDDEN = (float("nan"), float("nan"))
_COUNTS = {"train": 5_994, "test": 5_794}


def _base(root: str) -> Path:
    layout = "CUB_200_2011/images.txt beside images/ and parts/"
    return SOURCE.find(root, _FOLDERS, ["images.txt"], layout)


def _listed(base: Path) -> dict[str, tuple[str, bool]]:
    """Return path and whether it is for training, for each image id, as the release splits them."""
    paths = dict(SOURCE.rows(base / "images.txt", "#image_id path"))
    split = dict(SOURCE.rows(base / "train_test_split.txt", "#image_id #is_train"))
    if paths.keys() != split.keys():
        seen = f"{base / 'train_test_split.txt'} speaks of other images"
        raise SOURCE.error(seen, f"those of {base / 'images.txt'}")
    return {key: (path, split[key] == "1") for key, path in paths.items()}


def _boxes(base: Path) -> dict[str, Box]:
    """Return the bounding box of each image id. Raises: BookError for one without an area."""
    boxes: dict[str, Box] = {}
    for key, *words in SOURCE.rows(base / "bounding_boxes.txt", "#image_id ~x ~y ~width ~height"):
        x, y, w, h = map(float, words)
        if w <= 0 or h <= 0:
            raise SOURCE.error(f"{base / 'bounding_boxes.txt'}: image {key} is {w:g} x {h:g}", "an area")
        boxes[key] = (x, y, w, h)
    return boxes


def _joint_names(base: Path) -> tuple[str, ...]:
    """Return the names of the keypoints, such as "left eye", in the order of their numbers from 1 on."""
    lines = [line.split(maxsplit=1) for line in SOURCE.lines(base / "parts" / "parts.txt") if line.strip()]
    if [line[0] for line in lines] != [str(k) for k in range(1, _N_JOINTS + 1)]:
        raise SOURCE.error(f"{base / 'parts' / 'parts.txt'} has {len(lines)} parts", "1 to 15, with names")
    return tuple(line[-1].strip() for line in lines)


def _joints(base: Path) -> dict[str, list[tuple[float, float]]]:
    """Return 15 keypoints for each image id, NaN where ``visible`` is 0: there x and y say nothing."""
    found: dict[str, list[tuple[float, float]]] = {}
    path = base / "parts" / "part_locs.txt"
    for key, part, x, y, visible in SOURCE.rows(path, "#image_id #part_id ~x ~y #visible"):
        if not 1 <= int(part) <= _N_JOINTS:
            raise SOURCE.error(f"{path}: part {part} of image {key}", "1 to 15")
        places = found.setdefault(key, [_HIDDEN] * _N_JOINTS)
        if visible != "0":
            places[int(part) - 1] = (float(x), float(y))
    return found


def _segmentations(base: Path) -> str:
    """Return the folder of masks as a path below ``base``; it comes as an archive of its own."""
    return "segmentations" if (base / "segmentations").is_dir() else "../segmentations"


def _pictures(base: Path, split: str, is_cropped: bool, is_masked: bool) -> list[PartPicture]:
    """Return the pictures of ``split``: every tenth of the official training half is "validation"."""
    listed, joints, masks = _listed(base), _joints(base), _segmentations(base)
    boxes = _boxes(base) if is_cropped else {}
    keys = [key for key, (_, is_train) in listed.items() if is_train == (split != "test")]
    keys = rows_of(split, keys, lambda key: listed[key][0])
    if is_cropped and (lacking := [key for key in keys if key not in boxes]):
        raise SOURCE.error(f"{base / 'bounding_boxes.txt'} lacks image {lacking[0]}", "a box for every image")
    found = []
    for key in keys:
        path, places = listed[key][0], joints.get(key, [_HIDDEN] * _N_JOINTS)
        mask = f"{masks}/{Path(path).with_suffix('.png').as_posix()}" if is_masked else ""
        found.append(PartPicture(f"images/{path}", path, mask, boxes.get(key), tuple(places)))
    return found


def _annotated(root: Path, split: str) -> list[PartPicture]:
    """Return every second hand-annotated view, from the first on for validation, else from the second."""
    masks = root / _ANNOTATED / "SegmentationClass"
    if not masks.is_dir():
        seen = f"{masks} is missing"
        raise SOURCE.error(seen, "view_<i>.png of the paper's repository, for truth='parts'")
    found = []
    views = sorted(path for path in masks.glob("view_*.png") if not path.name.startswith("."))
    for path in views[0 if split == "validation" else 1 :: 2]:
        there = [f"{_ANNOTATED}/JPEGImages/{path.stem}{suffix}" for suffix in (".jpg", ".png")]
        picture = next((one for one in there if (root / one).is_file()), None)
        if picture is None:
            raise SOURCE.error(f"{root / there[0]} is missing", f"the picture that {path.name} annotates")
        found.append(PartPicture(picture, path.stem, f"{_ANNOTATED}/SegmentationClass/{path.name}"))
    return found


def load(
    split: str,
    image_size: int,
    *,
    root: str,
    truth: str = "auto",
    is_cropped: bool = True,
    margin: float = 0.1,
    warps: WarpRange | None = WARPS,
) -> PairDataset:
    """Return birds below ``root``, paired as in the paper: an image in one warp, and the same in another.

    The official split; of its training images, every tenth is "validation". A square around the bounding box
    is cut out, wider by ``margin`` of the box's longer side on each side; without ``is_cropped`` the whole
    picture, its edge repeated to a square. ``joints`` are the 15 keypoints, in pixels from the picture's
    corner, NaN where not visible. ``warps=None`` pairs each image with its equal.

    ``truth``: "figure" gives the masks of the release's archive of segmentations, ids of ``("background",
    "figure")``; "parts" gives the paper's few hand-annotated views as "validation" and "test", every second
    one each (the paper chooses and scores on all of them), and a training half without masks; "auto" is
    "parts" where these views are there. Their pictures come from a filtered list that the paper's repository
    lacks: put each beside its mask, as ``cub_semantic/segmentation_mask/JPEGImages/view_<i>.jpg``.

    Raises: BookError for a missing file, another layout, a broken picture or mask, or another ``truth``.
    """
    if truth not in TRUTHS:
        raise BookError(f"truth {truth!r}", f"one of {', '.join(TRUTHS)}")
    base, above = _base(root), Path(root).expanduser()
    if truth == "auto":
        truth = "parts" if (above / _ANNOTATED / "SegmentationClass").is_dir() else "figure"
    is_annotated = truth == "parts" and split != "train"
    if is_annotated:
        pictures = _annotated(above, split)
    else:
        pictures = _pictures(base, split, is_cropped, is_masked=truth == "figure")
    labels = {} if is_annotated else {"class": [Path(one.identity).parent.name for one in pictures]}
    return paired(
        NAME,
        split,
        image_size,
        SOURCE,
        above if is_annotated else base,
        pictures,
        names=FIGURE if truth == "figure" else BIRD,
        read=figure_mask if truth == "figure" else colour_mask,
        joint_names=() if is_annotated else _joint_names(base),
        margin=margin,
        flip=False,
        warps=warps,
        labels=labels,
    )


def check(root: str) -> list[tuple[str, str, int, int | None]]:
    """Return rows (half, what is counted, number found, number in the release), without decoding.

    Raises: BookError for another layout or a listed picture that is missing.
    """
    base = _base(root)
    listed = _listed(base)
    SOURCE.require(base / "images", [path for path, _ in listed.values()])
    rows: list[tuple[str, str, int, int | None]] = []
    for half, wanted in _COUNTS.items():
        found = sum(is_train == (half == "train") for _, is_train in listed.values())
        rows.append((half, "images", found, wanted))
    rows.append(("all", "images", len(listed), sum(_COUNTS.values())))
    masks = [base / _segmentations(base) / Path(path).with_suffix(".png") for path, _ in listed.values()]
    rows.append(("all", "masks", sum(path.is_file() for path in masks), None))
    return rows
