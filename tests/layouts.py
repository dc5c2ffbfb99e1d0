"""Small copies of real data sets as they lie on disk, traps included, transcribed from their descriptions.

Written apart from the loaders: each function returns what a loader must find, as rows
(half, class name, path of the picture below the root), in the order of class and file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Row = tuple[str, str, str]

# the first six of the release; its numbers, not its names, give the order
BIRDS = [
    "001.Black_footed_Albatross",
    "002.Laysan_Albatross",
    "003.Sooty_Albatross",
    "004.Groove_billed_Ani",
    "005.Crested_Auklet",
    "006.Least_Auklet",
]
# capitals sort before small letters, in the list of names and in folders: AM before Acura, smart last
CARS = [
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Acura TL Sedan 2012",
    "Ram C/V Cargo Van Minivan 2012",  # a folder cannot be called so
    "Volvo XC90 SUV 2007",
    "smart fortwo Convertible 2012",
]
SUPERS = ["bicycle", "cabinet", "chair"]


def picture(path: Path, seed: int, *, kind: str = "RGB", size: tuple[int, int] = (30, 20)) -> None:
    """Write noise of its own colour; ``kind`` is a mode of Pillow, ``size`` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    flat = rng.integers(40, 215, 3)
    noise = (flat + rng.integers(-40, 41, (size[1], size[0], 3))).astype(np.uint8)
    options = {"quality": 95} if path.suffix.lower() == ".jpg" else {}
    Image.fromarray(noise).convert(kind).save(path, **options)


def junk(folder: Path, of: str) -> None:
    """Write the resource fork that macOS leaves beside a file, and other strays."""
    (folder / f"._{of}").write_bytes(b"\x00\x05\x16\x07 not a picture")
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (folder / "Thumbs.db").write_bytes(b"stray")


def half(number: int, n: int = 6) -> str:
    return "train" if number <= n // 2 else "test"


def cub200(root: Path, layout: str = "raw") -> list[Row]:
    """Six birds, three pictures each but one of class 2; grey, upper-case, palette, tall and junk among them.

    ``layout``: "raw" (CUB_200_2011 with its lists) or "authors" (cub200/images alone).
    """
    base = root / {"raw": "CUB_200_2011", "authors": "cub200"}[layout]
    rows: list[Row] = []
    for number, name in enumerate(BIRDS, 1):
        for k in range(1 if number == 2 else 3):
            suffix = ".JPG" if (number, k) == (3, 1) else ".png" if (number, k) == (5, 0) else ".jpg"
            file = f"{name.split('.')[1]}_{k:04d}_{number * 1000 + k}{suffix}"
            kind = {(1, 0): "L", (4, 2): "CMYK", (5, 0): "P"}.get((number, k), "RGB")
            size = (18, 40) if (number, k) == (6, 1) else (30, 20)
            picture(base / "images" / name / file, 10 * number + k, kind=kind, size=size)
            rows.append((half(number), name, (base / "images" / name / file).relative_to(root).as_posix()))
    junk(base / "images" / BIRDS[0], Path(rows[0][2]).name)
    (base / "images" / f"._{BIRDS[0]}").mkdir()
    (base / "images" / "README.txt").write_text("stray")
    if layout == "raw":
        listed = [(k, Path(row[2]).relative_to("CUB_200_2011/images")) for k, row in enumerate(rows, 1)]
        (base / "images.txt").write_text("".join(f"{k} {path.as_posix()}\n" for k, path in listed))
        labels = "".join(f"{k} {BIRDS.index(path.parent.name) + 1}\n" for k, path in listed)
        (base / "image_class_labels.txt").write_text(labels)
        split = "".join(f"{k} {k % 2}\n" for k, _ in listed)  # the release's own split is another one
        (base / "train_test_split.txt").write_text(split)
    return rows


def annotations(
    path: Path, entries: list[tuple[str, int, int, int, int, int, int]], names: list[str]
) -> None:
    """Write cars_annos.mat: a 1 x N struct, its fields in the release's order, and a 1 x C cell of names."""
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    table = np.zeros((1, len(entries)), dtype=[(field, object) for field in fields])
    table[0] = entries
    cell = np.empty((1, len(names)), dtype=object)
    cell[0] = names
    savemat(path, {"annotations": table, "class_names": cell})


def cars196(root: Path, layout: str = "raw") -> list[Row]:
    """Six cars, three pictures each but one of class 5; files are not numbered in the order of classes.

    ``layout``: "raw" (car_ims and cars_annos.mat, whose ``test`` marks the last picture of each class) or
    "authors" (cars196/images/<class>). The same files have the same names in both.
    """
    numbers = [number for k in range(3) for number in range(6, 0, -1) if number != 5 or k == 1]
    entries, rows = [], []
    for image, number in enumerate(numbers, 1):
        file, name = f"{image:06d}.jpg", CARS[number - 1]
        folder = Path("cars196/images") / name.replace("/", "-") if layout == "authors" else Path("car_ims")
        picture(root / folder / file, image, kind="L" if image == 4 else "RGB")
        entries.append((f"car_ims/{file}", 1, 2, 29, 19, number, int(image > 2 * len(numbers) // 3)))
        rows.append(
            (number, (half(number), folder.name if layout == "authors" else name, str(folder / file)))
        )
    if layout == "authors":
        junk(root / "cars196/images" / CARS[0], "000006.jpg")
    else:
        junk(root / "car_ims", "000001.jpg")
        annotations(root / "cars_annos.mat", entries, CARS)
    return [row for _, row in sorted(rows)]


def online_products(root: Path, layout: str = "raw") -> list[Row]:
    """Six products of three kinds; the one of class 2 has one picture, the names end in .JPG.

    ``layout``: "raw" (Stanford_Online_Products, lists beside folders) or "authors" (online_products/images
    and online_products/Info_Files). Classes 3 and 4 are of one kind and in different halves.
    """
    base = root / {"raw": "Stanford_Online_Products", "authors": "online_products"}[layout]
    images = base / "images" if layout == "authors" else base
    texts = base / "Info_Files" if layout == "authors" else base
    texts.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    rows, image = [], 0
    for number in range(1, 7):
        super_id = (number + 1) // 2
        item = f"{111085122870 + 7 * number}"
        for k in range(1 if number == 2 else 3):
            image += 1
            file = f"{SUPERS[super_id - 1]}_final/{item}_{k}.JPG"
            picture(images / file, image, kind="L" if image == 5 else "RGB", size=(20, 20 + 3 * k))
            lists[half(number)].append(f"{image} {number} {super_id} {file}\n")
            rows.append((half(number), item, (images / file).relative_to(root).as_posix()))
    for name, lines in lists.items():
        (texts / f"Ebay_{name}.txt").write_text("image_id class_id super_class_id path\n" + "".join(lines))
    everything = "image_id class_id super_class_id path\n" + "".join(lists["train"] + lists["test"])
    (texts / "Ebay_info.txt").write_text(everything)
    junk(images / "bicycle_final", "111085122877_0.JPG")
    return rows


WRITERS = {"cub200": cub200, "cars196": cars196, "online_products": online_products}
# pictures and classes of the two halves, in full size
FULL = {
    "cub200": ((5_864, 100), (5_924, 100)),
    "cars196": ((8_054, 98), (8_131, 98)),
    "online_products": ((59_551, 11_318), (60_502, 11_316)),
}


def full_size(root: Path, name: str, spare: int = 0) -> None:
    """Write the lists of a raw release in full size, less ``spare`` test pictures; all are one empty file."""
    classes, first = [], 1
    for n, c in (FULL[name][0], (FULL[name][1][0] - spare, FULL[name][1][1])):
        classes += [first + k % c for k in range(n)]
        first += c
    rows = list(enumerate(classes, 1))
    file = {
        "cub200": "CUB_200_2011/images/001.X/x.jpg",
        "cars196": "car_ims/x.jpg",
        "online_products": "Stanford_Online_Products/bicycle_final/1_0.JPG",
    }[name]
    (root / file).parent.mkdir(parents=True)
    (root / file).touch()
    if name == "cub200":
        base = root / "CUB_200_2011"
        (base / "images.txt").write_text("".join(f"{k} 001.X/x.jpg\n" for k, _ in rows))
        (base / "image_class_labels.txt").write_text("".join(f"{k} {c}\n" for k, c in rows))
    elif name == "cars196":
        entries = [(file, 1, 1, 2, 2, c, k % 2) for k, c in rows]
        annotations(root / "cars_annos.mat", entries, [f"car {k}" for k in range(196)])
    else:
        cut = FULL[name][0][0]
        for part, lines in (("train", rows[:cut]), ("test", rows[cut:])):
            body = "".join(f"{k} {c} 1 bicycle_final/1_0.JPG\n" for k, c in lines)
            text = "image_id class_id super_class_id path\n" + body
            (root / f"Stanford_Online_Products/Ebay_{part}.txt").write_text(text)
