"""Small copies of the data sets of part discovery as they lie on disk, traps included.

Written apart from the loaders, like tests/layouts.py: each function returns what a loader must find, one
:class:`Row` for each picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.layouts import BIRDS, junk, picture

Place = tuple[float, float]


@dataclass
class Row:
    """A picture: half of the release, path below the root, what pairs share, and all that is known of it."""

    half: str
    path: str
    identity: str
    mask: str = ""  # path below the root; "" for none
    box: tuple[float, ...] = ()
    joints: dict[str, Place] = field(default_factory=dict)  # visible ones only


# the 25 indices of a DensePose map, and what each is a part of
DENSEPOSE = ["background", "torso", "torso", "arms", "arms", "feet", "feet"] + 8 * ["legs"] + 8 * ["arms"]
DENSEPOSE += 2 * ["head"]
BIRD_JOINTS = "back,beak,belly,breast,crown,forehead,left eye,left leg,left wing,nape,right eye,right leg"
BIRD_JOINTS = [*BIRD_JOINTS.split(","), "right wing", "tail", "throat"]
# blue, green, red, as OpenCV reads them
BIRD_COLOURS = {
    "background": (0, 0, 0),
    "head": (128, 0, 0),
    "chest": (0, 128, 0),
    "wing": (0, 128, 128),
    "tail": (0, 0, 128),
    "feet": (128, 0, 128),
}
SIDES = ["shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
PENN_JOINTS = ["head"] + [f"{side} {joint}" for joint in SIDES for side in ("left", "right")]


def text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def figure(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a grey mask: a rectangle of 255 within 204, 102 and 51, as several people drew it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    grey = np.zeros((height, width), dtype=np.uint8)
    for k, level in enumerate((51, 102, 204, 255)):
        grey[3 + k : height - 4 - k, 2 + k + seed % 3 : width - 4 - k] = level
    Image.fromarray(grey).save(path)


def cub200(root: Path, *, masks_inside: bool = False) -> list[Row]:
    """Six birds, 24 pictures, with the lists of the release; .JPG, grey, tall and junk among them.

    The masks come as an archive of their own, unpacked beside CUB_200_2011 or in it; that of the fourth
    picture is missing. Every third keypoint is hidden, with 0.0 0.0 for its place.
    """
    base = root / "CUB_200_2011"
    masks = base if masks_inside else root
    rows, lists = [], {"images": [], "train_test_split": [], "image_class_labels": [], "bounding_boxes": []}
    locations = []
    for k in range(24):
        name = BIRDS[k // 4]
        file = f"{name.split('.')[1]}_{k % 4 + 1:04d}_{7000 + k}{'.JPG' if k == 5 else '.jpg'}"
        size = (20, 44) if k == 6 else (40, 30)
        picture(base / "images" / name / file, k, kind="L" if k in (1, 9) else "RGB", size=size)
        mask = masks / "segmentations" / name / f"{file.rsplit('.')[0]}.png"
        if k != 3:
            figure(mask, size, k)
        half = "test" if k % 3 == 2 else "train"
        box = (4.0 + k % 5, 5.0, 10.0 + k % 3, 12.0)
        seen = {joint: (6.0 + j, 7.5 + k / 4) for j, joint in enumerate(BIRD_JOINTS) if j % 3}
        lists["images"].append(f"{k + 1} {name}/{file}")
        lists["train_test_split"].append(f"{k + 1} {int(half == 'train')}")
        lists["image_class_labels"].append(f"{k + 1} {k // 4 + 1}")
        lists["bounding_boxes"].append(" ".join([str(k + 1), *(f"{value:.1f}" for value in box)]))
        for j, joint in enumerate(BIRD_JOINTS, 1):
            x, y = seen.get(joint, (0.0, 0.0))
            locations.append(f"{k + 1} {j} {x:.1f} {y:.2f} {int(joint in seen)}")
        path = (base / "images" / name / file).relative_to(root).as_posix()
        where = "" if k == 3 else mask.relative_to(root).as_posix()
        rows.append(Row(half, path, f"{name}/{file}", where, box, seen))
    for name, lines in lists.items():
        text(base / f"{name}.txt", lines)
    text(base / "classes.txt", [f"{k} {name}" for k, name in enumerate(BIRDS, 1)])
    text(base / "parts" / "parts.txt", [f"{k} {name}" for k, name in enumerate(BIRD_JOINTS, 1)])
    text(base / "parts" / "part_locs.txt", locations)
    junk(base / "images" / BIRDS[0], rows[0].path.rsplit("/", 1)[1])
    (masks / "segmentations" / ".DS_Store").write_bytes(b"stray")
    return rows


def annotated_birds(root: Path, n: int = 8) -> list[np.ndarray]:
    """Write the paper's part masks view_<i>.png, with palettes, and pictures; return ids (30, 40) each."""
    base, found = root / "cub_semantic" / "segmentation_mask", []
    (base / "SegmentationClass").mkdir(parents=True)
    colours = np.array(list(BIRD_COLOURS.values()), dtype=np.uint8)[:, ::-1]  # as Pillow has them
    for k in range(n):
        ids = np.zeros((30, 40), dtype=np.uint8)
        for part in range(1, 6):
            ids[5 + k : 20, 4 + 6 * part : 8 + 6 * part] = part
        flat = Image.fromarray(colours[ids]).quantize(16)
        flat.save(base / "SegmentationClass" / f"view_{k}.png")
        picture(base / "JPEGImages" / f"view_{k}.jpg", 50 + k, size=(40, 30))
        found.append(ids)
    (base / "SegmentationClass" / "._view_0.png").write_bytes(b"stray")
    return found


def iuv(path: Path, size: tuple[int, int], seed: int) -> np.ndarray:
    """Write a DensePose map: bands of all indices in blue, else noise; return the indices (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    index = ((np.arange(width) + seed) % 25).astype(np.uint8)[None].repeat(height, 0)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 2), dtype=np.uint8)
    Image.fromarray(np.dstack([noise, index])).save(path)
    return index


def deepfashion(root: Path, *, masked: bool = True) -> list[Row]:
    """Fourteen items of three kinds, one picture in item 2, with list, annotations and junk.

    The list has its count line and header, and is not in the order of items. With ``masked``, masks.csv
    names a map for two pictures of item 13: one of the files is lost.
    """
    kinds = ["WOMEN/Dresses", "WOMEN/Blouses_Shirts", "MEN/Jackets_Vests"]
    rows = []
    for k in range(1, 15):
        item = f"id_{k:08d}"
        for view in range(1 if k == 2 else 3):
            file = f"{1 + view // 2:02d}_{view + 1}_{('front', 'side', 'back')[view]}.jpg"
            name = f"img/{kinds[k % 3]}/{item}/{file}"
            picture(
                root / "Img" / name, 10 * k + view, kind="L" if (k, view) == (4, 1) else "RGB", size=(32, 32)
            )
            status = "train" if k <= 11 else "query" if view == 0 else "gallery"
            rows.append((Row("train" if k <= 11 else "test", f"Img/{name}", item), name, status))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    header = "image_name item_id evaluation_status"
    listed = [f"{name}  {row.identity}  {status}" for row, name, status in shuffled]
    text(root / "Eval" / "list_eval_partition.txt", [str(len(rows)), header, *listed])
    text(root / "Anno" / "list_bbox_inshop.txt", ["0", "image_name clothes_type pose_type x_1 y_1 x_2 y_2"])
    junk((root / rows[0][0].path).parent, "01_1_front.jpg")
    if masked:
        own = [(row, name) for row, name, _ in rows if row.identity == "id_00000013"][:2]
        lines = ["character_id,relative_file_path_,relative_iuv_path_"]
        for at, (row, name) in enumerate(own):
            lines.append(f"{row.identity},{name},iuv/{at}_IUV.png")
        text(root / "masks.csv", lines)
        iuv(root / "iuv" / "0_IUV.png", (32, 32), 3)
        own[0][0].mask = "iuv/0_IUV.png"
    return [row for row, _, _ in shuffled]


def penn_action(root: Path) -> list[Row]:
    """Fourteen clips of three frames: eleven for training; labels as MATLAB writes them, and junk.

    Frame 2 of clip 3 has a box without area, and clip 4 one box too few; the knees are hidden.
    """
    base, rows = root / "Penn_Action", []
    for k in range(1, 15):
        clip, n = f"{k:04d}", 3
        x = np.array([[8.0 + j + f + k / 2 for j in range(13)] for f in range(n)])
        y = np.array([[5.0 + 1.5 * j + f for j in range(13)] for f in range(n)])
        boxes = np.array([[6.0 + f + k / 2, 4.0, 24.0 + f, 28.0] for f in range(n)])
        visible = np.ones((n, 13))
        visible[:, [9, 10]] = 0
        given = boxes.copy()
        if k == 3:
            given[1] = 0
        fields = {
            "action": ["jumping_jacks", "pullup", "tennis_serve"][k % 3],
            "pose": "front",
            "train": 1 if k <= 11 else -1,
            "nframes": n,
            "dimensions": [30, 40, n],
            "bbox": given[: n - (k == 4)],
            "x": x,
            "y": y,
            "visibility": visible,
        }
        (base / "labels").mkdir(parents=True, exist_ok=True)
        savemat(base / "labels" / f"{clip}.mat", fields)
        for f in range(n):
            path = base / "frames" / clip / f"{f + 1:06d}.jpg"
            picture(path, 10 * k + f, size=(40, 30))
            seen = {j: (x[f, i], y[f, i]) for i, j in enumerate(PENN_JOINTS) if visible[f, i]}
            left, top, right, bottom = boxes[f]
            box = (left, top, right - left, bottom - top)
            if (k, f) in ((3, 1), (4, 2)):
                places = np.array(list(seen.values()))
                (left, top), (right, bottom) = places.min(0), places.max(0)
                box = (left, top, right - left, bottom - top)
            half = "train" if k <= 11 else "test"
            rows.append(Row(half, path.relative_to(root).as_posix(), clip, "", box, seen))
    junk(base / "labels", "0001.mat")
    junk(base / "frames" / "0001", "000001.jpg")
    return rows


def exercise(root: Path) -> list[Row]:
    """Videos of frames with pair lists: train.csv without header, test.csv with one, and one more column.

    Video 2 has one frame. The map of frames/03/00000.png is lost, the cell of frames/04/00001.png is empty;
    test.csv was saved on Windows.
    """
    rows, lines = [], {"train": [], "test": ["relative_file_path_,fps,character_id,relative_iuv_path_"]}
    for video in range(1, 15):
        for k in range(1 if video == 2 else 3):
            path, cell = f"frames/{video:02d}/{k:05d}.png", f"iuv/{video:02d}/{k:05d}.png"
            picture(root / path, 10 * video + k, size=(32, 32))
            is_lost, is_empty = (video, k) == (3, 0), (video, k) == (4, 1)
            if not is_lost and not is_empty:
                iuv(root / cell, (32, 32), video + k)
            half, cell = "train" if video <= 11 else "test", "" if is_empty else cell
            rows.append(Row(half, path, f"v{video}", "" if is_lost else cell))
            columns = [f"v{video}", path, cell] if half == "train" else [path, "25", f"v{video}", cell]
            lines[half].append(",".join(columns))
    text(root / "train.csv", [*lines["train"], ""])
    (root / "test.csv").write_bytes("\r\n".join(lines["test"]).encode("utf-8-sig"))
    junk(root / "frames" / "01", "00000.png")
    return rows


WRITERS = {
    "cub200_parts": cub200,
    "deepfashion": deepfashion,
    "penn_action": penn_action,
    "pair_list": exercise,
}


def is_hidden(place: Iterable[float]) -> bool:
    return all(math.isnan(value) for value in place)


def full_size(root: Path, name: str, spare: int = 0) -> None:
    """Write the lists of a release in full size, less ``spare``; all pictures are one empty file."""
    if name == "cub200_parts":
        base, n = root / "CUB_200_2011", 11_788 - spare
        text(base / "images.txt", [f"{k} 001.X/x.jpg" for k in range(1, n + 1)])
        text(base / "train_test_split.txt", [f"{k} {int(k <= 5_994)}" for k in range(1, n + 1)])
        text(base / "images" / "001.X" / "x.jpg", [])
    elif name == "deepfashion":
        n, item = 52_712 - spare, "id_00000001"
        rows = [f"img/MEN/Pants/{item}/01_1_front.jpg {item} train"] * n
        header = "image_name item_id evaluation_status"
        text(root / "Eval" / "list_eval_partition.txt", [str(n), header, *rows])
        text(root / f"Img/img/MEN/Pants/{item}/01_1_front.jpg", [])
    elif name == "penn_action":
        (root / "Penn_Action" / "labels").mkdir(parents=True)
        for k in range(1, 2_326 + 1 - spare):
            fields = {"action": f"sport {k % 15}", "train": 1, "nframes": 1, "bbox": np.ones((1, 4))}
            fields |= dict.fromkeys(("x", "y", "visibility"), np.ones((1, 13)))
            savemat(root / f"Penn_Action/labels/{k:04d}.mat", fields)
            text(root / f"Penn_Action/frames/{k:04d}/000001.jpg", [])
