from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.imagenet import SOURCE
from cvlib.errors import BookError
from tests import layouts_photographs as layouts

LAYOUTS = ("authors", "one", "plain", "archive")
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def photographs(root, split="test", size=20, **options):
    return load("imagenet", split, size, root=str(root), **options)


def rgb(data, index):
    return ((data.images([index])[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def decoded(path, size=20):
    """Pillow alone: the short side resized where it is not ``size``, the square in the middle."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    short = min(picture.size)
    if short != size:
        shape = [round(side * size / short) for side in picture.size]
        picture = picture.resize(shape, Image.Resampling.BICUBIC)
    whole = np.asarray(picture)
    top, left = (whole.shape[0] - size) // 2, (whole.shape[1] - size) // 2
    return whole[top : top + size, left : left + size]


def synsets_of(data):
    return [data.label_names["class"][k].split()[0] for k in data.labels["class"]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_picture_comes_once_with_its_synset(tmp_path, layout):
    rows = layouts.imagenet(tmp_path, layout)
    for split, half, options in (("train", "train", {"all_train": True}), ("test", "validation", {})):
        data, own = photographs(tmp_path, split, **options), [row for row in rows if row.half == half]
        assert synsets_of(data) == [row.synset for row in own]
        for k, row in enumerate(own):
            assert np.array_equal(rgb(data, k), decoded(tmp_path / row.path)), row.path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_fiftieth_training_picture_is_for_validation(tmp_path, layout):
    rows = [row for row in layouts.imagenet(tmp_path, layout) if row.half == "train"]
    whole = photographs(tmp_path, "train", all_train=True)
    train, validation = photographs(tmp_path, "train"), photographs(tmp_path, "validation")
    assert (len(train), len(validation), len(whole)) == (59, 1, 60)
    assert synsets_of(validation) == [rows[49].synset]
    assert np.array_equal(rgb(validation, 0), decoded(tmp_path / rows[49].path))
    assert torch.equal(train.images([49]), whole.images([50]))


def test_a_list_in_any_order_keeps_labels_and_pictures_together(tmp_path):
    layouts.imagenet(tmp_path, "one")
    listing = tmp_path / "filelist.txt"
    lines = listing.read_text().splitlines()
    shuffled = [lines[k] for k in np.random.default_rng(0).permutation(len(lines))]
    listing.write_text("\r\n".join(shuffled) + "\r\n")
    data = photographs(tmp_path, "train", all_train=True)
    own = [path for path in shuffled if "_val_" not in path]
    assert synsets_of(data) == [path.split("/")[0] for path in own]
    for k, path in enumerate(own):
        assert np.array_equal(rgb(data, k), decoded(tmp_path / "data" / path)), path


def test_without_a_list_all_pictures_come(tmp_path):
    layouts.imagenet(tmp_path, "authors")
    listed = photographs(tmp_path, "train", all_train=True)
    (tmp_path / "ILSVRC2012_train/filelist.txt").unlink()
    assert len(photographs(tmp_path, "train", all_train=True)) == len(listed) + 1


def test_numbers_are_ranks_and_names_have_words(tmp_path):
    layouts.imagenet(tmp_path, "authors")
    for split in SPLITS:
        names = photographs(tmp_path, split).label_names["class"]
        assert names == [f"{synset} {layouts.WORDS[synset]}" for synset in sorted(layouts.SYNSETS)]
    human = tmp_path / "ILSVRC2012_train/synset_human.txt"
    human.write_text("\n" + human.read_text().replace("n02086240 ", "n02086240\t"))
    assert photographs(tmp_path).label_names["class"] == names
    (tmp_path / "plain").mkdir()
    layouts.imagenet(tmp_path / "plain", "plain")
    assert photographs(tmp_path / "plain").label_names["class"] == sorted(layouts.SYNSETS)


def test_animals_alone_keep_their_numbers(tmp_path):
    rows = layouts.imagenet(tmp_path, "authors")
    animals = sorted(layouts.SYNSETS)[:4]
    layouts.animal_synsets(tmp_path, animals)
    assert (tmp_path / "animal_synsets.txt").stat().st_size == 40
    whole = photographs(tmp_path)
    data = photographs(tmp_path, subset="animal_synsets.txt")
    assert synsets_of(data) == [
        row.synset for row in rows if row.half == "validation" and row.synset in animals
    ]
    assert data.label_names == whole.label_names and 0 < len(data) < len(whole)
    layouts.animal_synsets(tmp_path, animals[2:3])
    assert photographs(tmp_path, subset="animal_synsets.txt").labels["class"].unique().tolist() == [2]


def test_one_half_is_enough_for_its_splits(tmp_path):
    layouts.imagenet(tmp_path, "authors")
    train = tmp_path / "ILSVRC2012_train"
    assert len(photographs(train, "train")) == 59
    with pytest.raises(BookError, match=r"ILSVRC2012_train has no validation pictures; wanted .*https://"):
        photographs(train, "test")
    assert len(photographs(tmp_path / "ILSVRC2012_validation")) == 10


def test_training_crops_lie_anywhere_unmirrored(tmp_path):
    layouts.imagenet(tmp_path, "plain")
    index = torch.zeros(64, dtype=torch.long)
    kinds = {crop: photographs(tmp_path, "train", crop=crop) for crop in ("random", "centre", "resized")}
    draws = {crop: data.draw(index, torch.Generator().manual_seed(0), True) for crop, data in kinds.items()}
    assert draws["random"].left.unique().tolist() == list(range(11))  # 30 x 20
    assert not draws["random"].flip.any() and draws["centre"].left.unique().tolist() == [5]
    assert len(draws["resized"].factors.unique(dim=0)) > 20
    assert len({data.hash for data in kinds.values()}) == 3
    assert photographs(tmp_path, "train", flip=True).draw(index, torch.Generator(), True).flip.any()


BASE = "ILSVRC2012_train"


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def first(root: Path) -> Path:
    return root / BASE / "data/n01440764/n01440764_2.JPEG"


MISTAKES = {
    "no folder": (
        lambda r: r.rename(r.with_name("gone")),
        r"data root .* is no folder; wanted ILSVRC2012_tr",
    ),
    "layout": (lambda r: [p.rename(r / p.name.lower()) for p in r.iterdir()], r"data has another layout"),
    "lost": (lambda r: first(r).unlink(), r"n01440764_2\.JPEG is missing, one of 1 of the train half"),
    "broken": (lambda r: first(r).write_bytes(b"hello"), r"n01440764_2\.JPEG cannot be read as a picture"),
    "cut off": (
        lambda r: first(r).write_bytes(first(r).read_bytes()[:400]),
        r"n01440764_2\.JPEG cannot be read as a picture",
    ),
    "odd line": (
        lambda r: append(r / BASE / "filelist.txt", "n01440764_18.JPEG"),
        r"filelist\.txt, line 61: 'n01440764_18\.JPEG'; wanted a path such as",
    ),
    "deep line": (
        lambda r: append(r / BASE / "filelist.txt", "n01440764/x/1.JPEG"),
        r"filelist\.txt, line 61: 'n01440764/x/1\.JPEG'",
    ),
    "no words": (
        lambda r: (r / BASE / "synset_human.txt").write_text("n01440764 tench\n"),
        r"synset_human\.txt lacks n02086240; wanted a line of words",
    ),
    "two synsets": (
        lambda r: append(
            r / "ILSVRC2012_validation/validation_synset.txt", "ILSVRC2012_val_00000001.JPEG n1"
        ),
        r"validation_synset\.txt says n1 of ILSVRC2012_val_00000001\.JPEG, its folder n01440764",
    ),
    "odd list": (
        lambda r: append(r / "ILSVRC2012_validation/validation_synset.txt", "ILSVRC2012_val_1.JPEG"),
        r"validation_synset\.txt, line 11: 'ILSVRC2012_val_1\.JPEG'; wanted 'file synset'",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_path_and_the_place_to_get_it(tmp_path, case):
    spoil, words = MISTAKES[case]
    root = tmp_path / "data"
    root.mkdir()
    layouts.imagenet(root)
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        photographs(root, "train")
    assert " is at https://image-net.org/" in str(error.value) and "\n" not in str(error.value)


def test_mistakes_with_flat_validation_pictures(tmp_path):
    layouts.imagenet(tmp_path, "archive")
    append(tmp_path / "validation_synset.txt", "")
    lines = (tmp_path / "validation_synset.txt").read_text().splitlines()
    (tmp_path / "validation_synset.txt").write_text("\n".join(lines[1:-1]) + "\n")
    with pytest.raises(BookError, match=r"validation_synset\.txt has no synset for ILSVRC2012_val_00000001"):
        photographs(tmp_path)
    (tmp_path / "validation_synset.txt").unlink()
    with pytest.raises(BookError, match=r"val holds pictures without folders, and .*synset\.txt is missing"):
        photographs(tmp_path)


def test_mistakes_with_options_are_told(tmp_path):
    layouts.imagenet(tmp_path)
    (tmp_path / "birds.txt").write_text("n01440764\ntench\n")
    (tmp_path / "none.txt").write_text("n15300051\n")
    for options, words in (
        ({"subset": "cats.txt"}, r"cats\.txt is missing"),
        ({"subset": "birds.txt"}, r"birds\.txt, line 2: 'tench'; wanted a synset such as n01440764"),
        ({"subset": "none.txt"}, r"no validation picture in .* is of none\.txt"),
        ({"short_side": 8}, "short_side 8"),
        ({"crop": "corner"}, r"crop 'corner'; wanted .* resized, random, centre"),
        ({"synsets": "x"}, "option synsets of imagenet"),
    ):
        with pytest.raises(BookError, match=words):
            photographs(tmp_path, **options)
    with pytest.raises(BookError, match="'validation' with all_train"):
        photographs(tmp_path, "validation", all_train=True)
    layouts.animal_synsets(tmp_path, ["n01440764"])
    with pytest.raises(BookError, match=r"12 training pictures in .* wanted at least 50"):
        photographs(tmp_path, "validation", subset="animal_synsets.txt")


def check(root):
    return CliRunner().invoke(commands, ["data", "check", "imagenet", str(root)])


def test_check_tells_what_a_small_copy_lacks(tmp_path):
    layouts.imagenet(tmp_path)
    done = check(tmp_path)
    assert done.exit_code == 1 and "has 60 train images of imagenet; wanted 1,281,167; " in str(
        done.exception
    )
    assert "10  wanted 50,000" in done.output and done.output.count("5  wanted 1,000") == 2
    first(tmp_path).unlink()
    assert "n01440764_2.JPEG is missing, one of 1 of 60 pictures" in str(check(tmp_path).exception)


def test_check_asks_for_each_picture_where_a_folder_cannot_be_listed(tmp_path, monkeypatch):
    layouts.imagenet(tmp_path)

    def refuse(folder):
        raise PermissionError(folder)

    monkeypatch.setattr("cvlib.data.sources.os.scandir", refuse)
    SOURCE.require(tmp_path, [first(tmp_path).relative_to(tmp_path).as_posix()])
    with pytest.raises(BookError, match=r"none\.JPEG is missing, one of 1 of 2 pictures"):
        SOURCE.require(first(tmp_path).parent, ["n01440764_2.JPEG", "none.JPEG"])


def test_check_counts_the_full_size(tmp_path):
    layouts.full_size(tmp_path, "imagenet")
    layouts.animal_synsets(tmp_path, [f"n{k:08d}" for k in range(149)])
    done = check(tmp_path)
    assert done.exit_code == 0 and done.output.count("as in the papers") == 5
    assert all(number in done.output for number in ("1,281,167", "50,000", "1,000", "149"))
