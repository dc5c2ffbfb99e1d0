"""Small copies of ImageNet and AnimalFaces as they lie on disk, traps included.

Written apart from the loaders, like tests/layouts.py: each function returns what a loader must find.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.layouts import junk, picture

# not in the order of their numbers; the last is no animal
SYNSETS = ["n02099601", "n01440764", "n02105855", "n02086240", "n04550184"]
WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02086240": "Shih-Tzu",
    "n02099601": "golden retriever",
    "n02105855": "Shetland sheepdog, Shetland sheep dog, Shetland",
    "n04550184": "wardrobe, closet, press",
    "n15300051": "of another synset, which no picture shows",
}
NUMBERS = [10026, 2, 304, 31, 4, 5, 60, 7, 800, 9, 11, 12]  # as text, 10026 comes before 2


@dataclass(frozen=True)
class Row:
    """A picture: half of the release, its class, its path below the root."""

    half: str
    synset: str
    path: str


def kind_of(k: int) -> dict:
    """What is odd about the k-th picture: grey, four inks, tall, or hardly there."""
    odd = {1: {"kind": "L"}, 14: {"kind": "CMYK"}, 27: {"size": (14, 40)}, 40: {"size": (5, 6)}}
    return odd.get(k, {"size": (24, 20)})


def disguised(path: Path) -> None:
    """A PNG under a JPEG's name, as the release has one."""
    rng = np.random.default_rng(99)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path, format="PNG")


def lists(base: Path, paths: list[str], *, is_validation: dict[str, str] | None) -> None:
    """Write what the authors' code leaves beside data/."""
    (base / "filelist.txt").write_text("".join(f"{path}\n" for path in sorted(paths)))
    (base / "synset_human.txt").write_text("".join(f"{synset} {words}\n" for synset, words in WORDS.items()))
    (base / ".ready").touch()
    if is_validation is not None:
        text = "".join(f"{file} {synset}\n" for file, synset in is_validation.items())
        (base / "validation_synset.txt").write_text(text)


def imagenet(root: Path, layout: str = "authors") -> list[Row]:
    """Sixty training pictures of five synsets, ten for validation; grey, CMYK, tall, tiny, a PNG, and junk.

    ``layout``: "authors" (ILSVRC2012_train and ILSVRC2012_validation, each with data/ and lists), "one" (both
    in one folder), "plain" (train/ and val/ with a folder for each synset) or "archive" (val/ flat, as its
    archive has it, beside validation_synset.txt). With lists, a picture that they leave out lies there too.
    """
    train = {"authors": "ILSVRC2012_train/data", "one": "data"}.get(layout, "train")
    validation = {"authors": "ILSVRC2012_validation/data", "one": "data"}.get(layout, "val")
    rows = []
    for k in range(60):
        synset, number = SYNSETS[k % 5], NUMBERS[k // 5]
        path = root / train / synset / f"{synset}_{number}.JPEG"
        disguised(path) if k == 33 else picture(path, k, **kind_of(k))
        rows.append(Row("train", synset, path.relative_to(root).as_posix()))
    named = {}
    for k in range(10):
        file, synset = f"ILSVRC2012_val_{k + 1:08d}.JPEG", SYNSETS[(3 * k + 1) % 5]
        named[file] = synset
        path = root / validation / ("" if layout == "archive" else synset) / file
        picture(path, 100 + k, kind="L" if k == 4 else "RGB", size=(24, 20))
        rows.append(Row("validation", synset, path.relative_to(root).as_posix()))
    if layout in ("authors", "one"):
        for folder, half, listed in ((train, "train", None), (validation, "validation", named)):
            own = [row.path for row in rows if layout == "one" or row.half == half]
            lists((root / folder).parent, [path.split("data/")[1] for path in own], is_validation=listed)
            picture(root / folder / SYNSETS[0] / f"{SYNSETS[0]}_99999.JPEG", 999)
    if layout == "archive":
        (root / "validation_synset.txt").write_text("".join(f"{f} {s}\n" for f, s in named.items()))
    junk(root / train / SYNSETS[0], f"{SYNSETS[0]}_2.JPEG")
    (root / train / "__MACOSX").mkdir()
    return sorted(rows, key=lambda row: (row.half, row.path))


def animal_synsets(root: Path, synsets: list[str]) -> None:
    """Write animal_synsets.txt: ten bytes a line."""
    (root / "animal_synsets.txt").write_bytes(b"".join(f"{synset}\n".encode() for synset in synsets))


# how many faces of how large a side; the second picture of each animal has two
FACES = [(1, 18), (2, 16), (1, 5), (1, 30), (1, 17)]
LISTS = {
    "shared": ("shared_animalfaces_train.txt", "shared_animalfaces_test.txt"),
    "disjoint": ("animals_list_train.txt", "animals_list_test.txt"),
    "restricted": ("restricted_animalfaces_train.txt", "restricted_animalfaces_test.txt"),
}


def animal_faces(root: Path, imagenet_root: Path, *, is_cut: bool = True) -> dict[tuple[str, str], list[Row]]:
    """Four animals of five pictures, six faces each; returns the rows of each list, by subset and half.

    Left, upper, right and lower edge; several would leave the picture were the last two a size. One picture
    is grey, one CMYK, one a phone's, which should be shown turned but is cut as it is stored; one face is
    5 pixels wide, another reaches beyond its picture. No list is in the order of its paths, and the classes
    of neighbours differ. Without ``is_cut`` the crops are not there, only the photographs of ImageNet.
    """
    coordinates, crops = [], []
    for a, synset in enumerate(sorted(SYNSETS)[:4]):
        for k, (n, side) in enumerate(FACES):
            name = f"{synset}/{synset}_{NUMBERS[k]}.JPEG"
            path = imagenet_root / "train" / name
            kind = {(0, 0): "L", (1, 1): "CMYK"}.get((a, k), "RGB")
            picture(path, 10 * a + k, kind=kind, size=(60, 44))
            if (a, k) == (2, 0):
                exif = Image.Exif()
                exif[0x0112] = 6  # a quarter turn, for whoever looks at it
                Image.open(path).save(path, exif=exif, quality=95)
            for face in range(n):
                left, top = 20 + 10 * face + a, 14 + face
                if (a, k) == (3, 3):
                    left, top = 40, 20  # to 70 and 50 of 60 x 44
                box = (left, top, left + side, top + side - (side == 16))
                coordinates.append(" ".join(map(str, (name, *box))))
                crop = f"{name}_{'_'.join(map(str, box))}.jpg"
                crops.append((synset, crop))
                if is_cut:
                    cut(path, box, root / "data" / crop)
    root.mkdir(parents=True, exist_ok=True)
    (root / "animalface_coordinates.txt").write_text("".join(f"{line}\n" for line in coordinates))
    animal_synsets(root, sorted(SYNSETS)[:4])
    shuffled = [crops[i] for i in np.random.default_rng(5).permutation(len(crops))]
    known = sorted({synset for synset, _ in crops})
    in_test = {
        "shared": lambda synset, at: at % 4 == 1,
        "disjoint": lambda synset, at: synset in known[1:3],
        "restricted": lambda synset, at: at % 4 == 1,
    }
    found = {}
    for subset, names in LISTS.items():
        kept = [one for one in shuffled if subset != "restricted" or one[0] in known[1::2]]
        for half, name in zip(("train", "test"), names, strict=True):
            own = [one for at, one in enumerate(kept) if in_test[subset](one[0], at) == (half == "test")]
            (root / name).write_text("".join(f"{path}\n" for _, path in own))
            found[subset, half] = [Row(half, synset, f"data/{path}") for synset, path in own]
    return found


def cut(path: Path, box: tuple[int, ...], target: Path) -> None:
    """Cut as the authors do: bytes as stored, Pillow's own quality, black beyond the picture."""
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.open(path).convert("RGB").crop(box).save(target)


# of each subset: crops and animals of its halves
FACES_FULL = {
    "shared": ((105_653, 149), (11_831, 149)),
    "disjoint": ((93_404, 119), (24_080, 30)),
    "restricted": ((8_036, 10), (898, 10)),
}
IMAGENET_FULL = {"train": (1_281_167, 1_000), "validation": (50_000, 1_000)}


def full_size(root: Path, name: str, spare: int = 0) -> None:
    """Write the lists of a release in full size, a class has one file, empty; ``spare`` faces are lost."""
    if name == "imagenet":
        for half, (n, n_classes) in IMAGENET_FULL.items():
            base = root / f"ILSVRC2012_{half}"
            own = [
                f"n{k:08d}/x.JPEG" if half == "train" else f"n{k:08d}/ILSVRC2012_val_1.JPEG"
                for k in range(1_000)
            ]
            for path in own[:n_classes]:
                (base / "data" / path).parent.mkdir(parents=True)
                (base / "data" / path).touch()
            lines = sorted(own[k % n_classes] for k in range(n))
            (base / "filelist.txt").write_text("\n".join(lines) + "\n")
        return
    crops = [f"n{k:08d}/x.JPEG_0_0_9_9.jpg" for k in range(149)]
    for path in crops:
        (root / "data" / path).parent.mkdir(parents=True)
        (root / "data" / path).touch()
    for subset, halves in FACES_FULL.items():
        first = 0
        for file, (n, n_classes) in zip(LISTS[subset], halves, strict=True):
            own = crops[first : first + n_classes]
            first = 119 if subset == "disjoint" else 0
            n -= spare * (file == LISTS["restricted"][1])
            (root / file).write_text("".join(f"{own[k % n_classes]}\n" for k in range(n)))
    (root / "animalface_coordinates.txt").write_text("n00000000/x.JPEG 0 0 9 9\n" * 117_484)
    animal_synsets(root, [f"n{k:08d}" for k in range(149)])
