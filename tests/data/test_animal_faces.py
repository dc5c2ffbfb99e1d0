from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.animal_faces import cut
from cvlib.errors import BookError
from tests import layouts_photographs as layouts

SUBSETS = tuple(layouts.LISTS)


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


@pytest.fixture
def made(tmp_path):
    """The faces' folder, ImageNet's, and the rows of every list."""
    root, photographs = tmp_path / "AnimalFaces", tmp_path / "imagenet"
    return root, photographs, layouts.animal_faces(root, photographs)


def faces(root, split="test", size=16, **options):
    return load("animal_faces", split, size, root=str(root), **options)


def rgb(data, index):
    return ((data.images([index])[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def shown(path, size=16):
    """Pillow alone: enlarged or shrunk to the short side, the square in the middle."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    shape = [round(side * size / min(picture.size)) for side in picture.size]
    whole = np.asarray(picture.resize(shape, Image.Resampling.BICUBIC))
    top, left = (whole.shape[0] - size) // 2, (whole.shape[1] - size) // 2
    return whole[top : top + size, left : left + size]


def named(data):
    return [data.label_names["class"][k] for k in data.labels["class"]]


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("half", ["train", "test"])
def test_every_face_of_a_list_comes_with_the_animal_of_its_own_path(made, subset, half):
    """The original sorts its labels and not its paths: here no list is sorted, and neighbours differ."""
    root, _, rows = made
    data, own = faces(root, half, subset=subset, all_train=half == "train"), rows[subset, half]
    assert named(data) == [row.synset for row in own] and named(data) != sorted(named(data))
    for k, row in enumerate(own):
        assert np.array_equal(rgb(data, k), shown(root / row.path)), row.path


def test_subsets_number_their_animals(made):
    root, _, _ = made
    known = sorted(layouts.SYNSETS)[:4]
    for half in ("train", "test"):
        assert faces(root, half).label_names["class"] == known
        assert faces(root, half, subset="restricted").label_names["class"] == known[1::2]
    train, test = (faces(root, half, subset="disjoint").label_names["class"] for half in ("train", "test"))
    assert train == [known[0], known[3]] and test == known[1:3]
    data = faces(root, "train", subset="disjoint")
    assert data.labels["class"].unique().tolist() == [0, 1]
    (root / "synset_human.txt").write_text("".join(f"{one} {layouts.WORDS[one]}\n" for one in known))
    assert faces(root).label_names["class"] == [f"{one} {layouts.WORDS[one]}" for one in known]


def test_faces_of_one_photograph_are_not_in_two_splits(made):
    root, _, rows = made
    photograph = {row.path: row.path.split(".JPEG_")[0] for row in rows["shared", "train"]}
    aside = sorted(set(photograph.values()))[9::10]
    kept = [row for row in rows["shared", "train"] if photograph[row.path] not in aside]
    held = [row for row in rows["shared", "train"] if photograph[row.path] in aside]
    train, validation = faces(root, "train"), faces(root, "validation")
    assert named(train) == [row.synset for row in kept]
    assert named(validation) == [row.synset for row in held]
    for k, row in enumerate(held):
        assert np.array_equal(rgb(validation, k), shown(root / row.path))


def test_the_middle_is_taken_unmirrored_unless_asked(made):
    root, _, _ = made
    index = torch.zeros(40, dtype=torch.long)
    draws = faces(root, "train").draw(index, torch.Generator().manual_seed(0), True)
    assert len(draws.left.unique()) == 1 and not draws.flip.any()
    draws = faces(root, "train", crop="random", short_side=24, flip=True).draw(index, torch.Generator(), True)
    assert len(draws.top.unique()) > 3 and draws.flip.any()


# ---- cutting


def test_cutting_gives_the_authors_files(tmp_path, made):
    """Pillow alone made those of the layout: the same names, the same pixels."""
    root, photographs, _ = made
    bare = tmp_path / "bare"
    layouts.animal_faces(bare, photographs, is_cut=False)
    assert cut(str(bare), str(photographs)) == 24
    wanted = {path.relative_to(root): path for path in root.rglob("*.jpg")}
    assert {path.relative_to(bare) for path in bare.rglob("*.jpg")} == set(wanted) and len(wanted) == 24
    for name, path in wanted.items():
        assert np.array_equal(np.asarray(Image.open(bare / name)), np.asarray(Image.open(path))), name
    sizes = {Image.open(path).size for path in wanted.values()}
    assert {(18, 18), (16, 15), (5, 5), (30, 30)} <= sizes  # edges, not sizes
    assert faces(bare).hash == faces(root).hash


def test_cutting_goes_on_where_it_stopped(tmp_path, made):
    _, photographs, _ = made
    bare = tmp_path / "bare"
    layouts.animal_faces(bare, photographs, is_cut=False)
    cut(str(bare), str(photographs))
    made_then = sorted(bare.rglob("*.jpg"))
    times = {path: path.stat().st_mtime_ns for path in made_then}
    for path in made_then[:3]:
        path.unlink()
    assert cut(str(bare), str(photographs)) == 3 and sorted(bare.rglob("*.jpg")) == made_then
    assert all(path.stat().st_mtime_ns == times[path] for path in made_then[3:])
    assert not [path for path in bare.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("folder", ["", "train", "data", "ILSVRC2012_train/data"])
def test_photographs_are_found_in_every_layout(tmp_path, folder):
    photographs, root = tmp_path / "imagenet", tmp_path / "faces"
    layouts.animal_faces(root, photographs, is_cut=False)
    if folder != "train":
        (photographs / "train").rename(photographs / "moved")
        (photographs / folder).parent.mkdir(parents=True, exist_ok=True)
        target = tmp_path / "renamed" if folder == "" else photographs / folder
        (photographs / "moved").rename(target)
        photographs = target if folder == "" else photographs
    done = CliRunner().invoke(commands, ["data", "faces", str(root), str(photographs)])
    assert done.exit_code == 0 and done.output == "24 faces cut\n"


def test_faces_may_lie_in_animals(made):
    root, _, rows = made
    before = faces(root)
    (root / "data").rename(root / "animals")
    assert faces(root).hash == before.hash and len(before) == len(rows["shared", "test"])
    assert faces(root.parent).hash == before.hash


PLACES = "animalface_coordinates.txt"


def line(root: Path, k: int, new: str) -> None:
    lines = (root / PLACES).read_text().splitlines()
    lines[k] = new.format(lines[k].split()[0])
    (root / PLACES).write_text("\n".join(lines) + "\n")


CUTTING = {
    "no area": (
        lambda r, p: line(r, 2, "{} 20 14 20 30"),
        r"coordinates\.txt, line 3: 20 14 20 30 has no area",
    ),
    "sizes": (
        lambda r, p: line(r, 2, "{} 20 14 10 9"),
        r"line 3: 20 14 10 9 has no area; wanted left, upper, right and lower",
    ),
    "words": (
        lambda r, p: line(r, 2, "{} 20 14 thirty 9"),
        r"line 3: .*wanted 'picture left upper right lower'",
    ),
    "few": (lambda r, p: line(r, 2, "{} 20 14 30"), r"line 3: .*wanted 'picture left upper right lower'"),
    "outside": (
        lambda r, p: line(r, 0, "{} 70 14 90 30"),
        r"line 1: \(70, 14, 90, 30\) lies outside n01440764/n01440764_10026\.JPEG, 60 x 44",
    ),
    "far": (lambda r, p: line(r, 0, "{} 10 14 90000 90000"), r"line 1: .* lies outside n01440764"),
    "lost": (
        lambda r, p: (p / "train/n01440764/n01440764_2.JPEG").unlink(),
        r"n01440764_2\.JPEG is missing, which .*coordinates\.txt names in line 2; wanted all training pictu",
    ),
    "broken": (
        lambda r, p: (p / "train/n01440764/n01440764_2.JPEG").write_bytes(b"x"),
        r"n01440764_2\.JPEG cannot be read as a picture",
    ),
    "no ImageNet": (lambda r, p: p.rename(p.with_name("x")), r"imagenet has no folder of a synset"),
    "no places": (lambda r, p: (r / PLACES).unlink(), r"coordinates\.txt is missing"),
}


@pytest.mark.parametrize("case", CUTTING)
def test_mistakes_in_cutting_are_told(tmp_path, case):
    spoil, words = CUTTING[case]
    root, photographs = tmp_path / "faces", tmp_path / "imagenet"
    layouts.animal_faces(root, photographs, is_cut=False)
    spoil(root, photographs)
    with pytest.raises(BookError, match=words) as error:
        cut(str(root), str(photographs))
    assert " is at https://" in str(error.value) and "\n" not in str(error.value)


# ---- mistakes in reading


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text + "\n")


SHARED = "shared_animalfaces_test.txt"
READING = {
    "no folder": (
        lambda r: r.rename(r.with_name("gone")),
        r"data root .* is no folder; wanted animalface_coord",
    ),
    "no lists": (
        lambda r: [path.unlink() for path in r.glob("*.txt")],
        r"AnimalFaces has another layout; wanted .*shared_animalfaces_train\.txt beside data",
    ),
    "no list": (lambda r: (r / SHARED).unlink(), r"shared_animalfaces_test\.txt is missing"),
    "not cut": (
        lambda r: (r / "data").rename(r / "elsewhere"),
        r"is missing, one of \d+ of the shared-test half; wanted every picture .*`cvlib data faces",
    ),
    "a photograph": (
        lambda r: append(r / SHARED, "n01440764/n01440764_2.JPEG"),
        r"test\.txt, line 7: 'n01440764/n01440764_2\.JPEG'; wanted a path such as n02099601/",
    ),
    "no synset": (lambda r: append(r / SHARED, "cat/x.JPEG_1_2_3_4.jpg"), r"test\.txt, line 7: 'cat/x\.JPEG"),
    "lost": (
        lambda r: append(r / SHARED, "n01440764/n01440764_7.JPEG_1_2_3_4.jpg"),
        r"n01440764_7\.JPEG_1_2_3_4\.jpg is missing, one of 1 of the shared-test half",
    ),
    "broken": (
        lambda r: [path.write_bytes(path.read_bytes()[:200]) for path in (r / "data").rglob("*.jpg")],
        r"\.jpg cannot be read as a picture",
    ),
    "empty": (
        lambda r: (r / SHARED).write_text("\n"),
        r"test\.txt has no face for test; wanted a face a line",
    ),
}


@pytest.mark.parametrize("case", READING)
def test_mistakes_name_the_path_and_the_place_to_get_it(made, case):
    spoil, words = READING[case]
    root, _, _ = made
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        faces(root)
    assert "AnimalFaces is at https://" in str(error.value) and "\n" not in str(error.value)


def test_mistakes_with_options_are_told(made):
    root, _, _ = made
    for options, words in (
        ({"subset": "cats"}, r"subset 'cats'; wanted one of shared, disjoint, restricted"),
        ({"short_side": 8}, "short_side 8"),
        ({"crop": "corner"}, "crop 'corner'"),
    ):
        with pytest.raises(BookError, match=words):
            faces(root, **options)
    with pytest.raises(BookError, match="'validation' with all_train"):
        faces(root, "validation", all_train=True)


# ---- counting


def check(root):
    return CliRunner().invoke(commands, ["data", "check", "animal_faces", str(root)])


def test_check_counts_the_full_size(tmp_path):
    layouts.full_size(tmp_path, "animal_faces")
    done = check(tmp_path)
    assert done.exit_code == 0 and done.output.count("as in the papers") == 14
    for halves in layouts.FACES_FULL.values():
        for n, n_synsets in halves:
            assert f"{n:,}" in done.output and f" {n_synsets} " in done.output
    (tmp_path / "restricted_animalfaces_train.txt").unlink()
    done = check(tmp_path)
    assert done.exit_code == 0 and done.output.count("nothing to compare with") == 2
    (tmp_path / "data/n00000007/x.JPEG_0_0_9_9.jpg").unlink()
    assert "x.JPEG_0_0_9_9.jpg is missing, one of 7" in str(check(tmp_path).exception)


def test_check_tells_one_missing_face(tmp_path):
    layouts.full_size(tmp_path, "animal_faces", spare=1)
    done = check(tmp_path)
    assert done.exit_code == 1 and "has 897 restricted test faces of animal_faces; wanted 898; " in str(
        done.exception
    )


def test_check_reads_lines_of_ten_bytes(tmp_path):
    layouts.full_size(tmp_path, "animal_faces")
    path = tmp_path / "animal_synsets.txt"
    assert path.stat().st_size == 1_490
    path.write_bytes(path.read_bytes()[:-10])
    assert "has 148 all synsets of animal_faces; wanted 149" in str(check(tmp_path).exception)
    path.write_bytes(path.read_bytes() + b"n0000000\n")
    assert "animal_synsets.txt, line 149: 'n0000000'; wanted a synset" in str(check(tmp_path).exception)
