from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import animal_faces, load
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


def test_faces_may_lie_in_animals(made):
    root, _, rows = made
    before = faces(root)
    (root / "data").rename(root / "animals")
    assert faces(root).hash == before.hash and len(before) == len(rows["shared", "test"])
    assert faces(root.parent).hash == before.hash


# ---- mistakes


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


def test_check_reads_lines_of_ten_bytes(made):
    root, _, _ = made
    layouts.animal_synsets(root, [f"n{k:08d}" for k in range(149)])
    path = root / "animal_synsets.txt"
    assert path.stat().st_size == 1_490 and animal_faces.check(str(root))[-1] == ("all", "synsets", 149, 149)
    path.write_bytes(path.read_bytes()[:-10])
    assert animal_faces.check(str(root))[-1] == ("all", "synsets", 148, 149)
    path.write_bytes(path.read_bytes() + b"n0000000\n")
    assert "animal_synsets.txt, line 149: 'n0000000'; wanted a synset" in str(check(root).exception)
