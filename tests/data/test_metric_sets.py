from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.io import savemat

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.metric_listings import listing
from cvlib.errors import BookError
from tests import layouts

BOTH = [(name, layout) for name in layouts.WRITERS for layout in ("raw", "authors")]


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def parts(name, root, size=20, **options):
    options = {"short_side": size, "root": str(root)} | options
    return {split: load(name, split, size, **options) for split in ("train", "validation", "test")}


def rgb(data, index):
    return ((data.images([index])[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def decoded(path):
    """What Pillow alone makes of a file whose short side is 20: the square in the middle."""
    with Image.open(path) as file:
        whole = np.asarray(file.convert("RGB"))
    top, left = (whole.shape[0] - 20) // 2, (whole.shape[1] - 20) // 2
    return whole[top : top + 20, left : left + 20]


@pytest.mark.parametrize(("name", "layout"), BOTH)
def test_every_picture_comes_once_with_its_class(tmp_path, name, layout):
    rows = layouts.WRITERS[name](tmp_path, layout)
    data = parts(name, tmp_path)
    everything = load(name, "train", 20, root=str(tmp_path), short_side=20, all_train=True)
    for half, held in (("train", everything), ("test", data["test"])):
        wanted = [row for row in rows if row[0] == half]
        assert [held.label_names["class"][k] for k in held.labels["class"]] == [row[1] for row in wanted]
        for k, (_, _, path) in enumerate(wanted):
            if min(Image.open(tmp_path / path).size) == 20:
                assert np.array_equal(rgb(held, k), decoded(tmp_path / path)), path
    # of three training classes, int(0.8 x 3) = 2 stay; the third is validation
    n = [sum(row[:2] == ("train", c) for row in rows) for c in everything.label_names["class"]]
    assert (len(data["train"]), len(data["validation"])) == (n[0] + n[1], n[2])
    names = [data[split].label_names["class"] for split in ("train", "validation", "test")]
    assert [len(some) for some in names] == [2, 1, 3] and names[0] + names[1] == everything.label_names[
        "class"
    ]
    assert not set(names[0] + names[1]) & set(names[2])
    for held in data.values():
        assert held.labels["class"].unique().tolist() == list(range(len(held.label_names["class"])))


@pytest.mark.parametrize("name", layouts.WRITERS)
def test_a_singleton_class_stays(tmp_path, name):
    layouts.WRITERS[name](tmp_path)
    held = parts(name, tmp_path, all_train=False)
    counts = torch.cat([torch.bincount(held[split].labels["class"]) for split in held])
    assert sorted(counts.tolist()) == [1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("name", layouts.WRITERS)
def test_grey_pictures_become_rgb(tmp_path, name):
    rows = layouts.WRITERS[name](tmp_path)
    grey = [row for row in rows if Image.open(tmp_path / row[2]).mode == "L"]
    assert grey
    for half, label, path in grey:
        data = load(name, half, 20, root=str(tmp_path), short_side=20, all_train=True)
        own = [row for row in rows if row[0] == half].index((half, label, path))
        image = rgb(data, own)
        assert np.array_equal(image[..., 0], image[..., 2]) and image.std() > 1


@pytest.mark.parametrize("name", ["cub200", "online_products"])
def test_the_hash_tells_data_not_layout(tmp_path, name):
    held = []
    for layout in ("raw", "authors"):
        (tmp_path / layout).mkdir()
        layouts.WRITERS[name](tmp_path / layout, layout)
        held.append(parts(name, tmp_path / layout)["test"])
    assert held[0].hash == held[1].hash
    others = ({"crop": "random"}, {"crop": "centre"}, {"flip": False}, {"short_side": 21}, {"size": 19})
    hashes = {parts(name, tmp_path / "raw", **other)["test"].hash for other in others}
    assert len(hashes) == len(others) and held[0].hash not in hashes


def test_a_changed_picture_is_seen(tmp_path):
    rows = layouts.cub200(tmp_path)
    before = load("cub200", "train", 20, root=str(tmp_path), short_side=20)
    Image.new("RGB", (30, 20), (1, 2, 3)).save(tmp_path / rows[1][2], quality=100)
    after = load("cub200", "train", 20, root=str(tmp_path), short_side=20)
    assert np.abs(rgb(after, 1).astype(int) - (1, 2, 3)).max() <= 2 and before.hash != after.hash


def test_numbers_of_cars_are_the_order_of_their_folders(tmp_path):
    held = []
    for layout in ("raw", "authors"):
        (tmp_path / layout).mkdir()
        layouts.cars196(tmp_path / layout, layout)
        held.append(parts("cars196", tmp_path / layout))
    for split in held[0]:
        raw, authors = held[0][split], held[1][split]
        assert torch.equal(raw.labels["class"], authors.labels["class"])
        assert torch.equal(raw.images(range(len(raw))), authors.images(range(len(raw))))
        names = [name.replace("/", "-") for name in raw.label_names["class"]]
        assert names == authors.label_names["class"]
    assert held[0]["train"].label_names["class"] == layouts.CARS[:2]


def test_a_fifth_of_the_training_classes_is_validation(tmp_path):
    for k in range(196):
        layouts.picture(tmp_path / f"cars196/images/{k:03d}/x.png", k, size=(8, 8))
    held = parts("cars196", tmp_path, 8)
    assert [len(data) for data in held.values()] == [78, 20, 98]  # the authors take int(0.8 x 98) classes


def test_birds_are_ordered_by_number_not_by_name(tmp_path):
    for k, number in enumerate((9, 10, 100, 11)):
        layouts.picture(tmp_path / f"images/{number}.B/x.jpg", k)
    held = load("cub200", "train", 16, root=str(tmp_path), all_train=True)
    assert held.label_names["class"] == ["9.B", "10.B"]


def test_products_have_super_classes(tmp_path):
    layouts.online_products(tmp_path)
    held = parts("online_products", tmp_path)
    assert held["test"].label_names["super_class"] == ["bicycle", "cabinet", "chair"]
    assert held["train"].labels["super_class"].tolist() == [0, 0, 0, 0]
    assert held["validation"].labels["super_class"].tolist() == [1, 1, 1]
    assert held["test"].labels["super_class"].tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(("name", "layout"), BOTH)
def test_the_folder_itself_or_the_one_above_may_be_named(tmp_path, name, layout):
    rows = layouts.WRITERS[name](tmp_path, layout)
    above, own = listing(name, str(tmp_path)), tmp_path / Path(rows[0][2]).parts[0]
    if own.name != "car_ims":
        assert listing(name, str(own)).halves == above.halves
    with pytest.raises(BookError, match=r"has another layout; wanted .*; .* is at https://"):
        listing(name, str(tmp_path / rows[0][2]).rsplit("/", 1)[0])


def test_the_short_side_is_resized_as_in_the_papers(tmp_path):
    rows = layouts.cub200(tmp_path)
    held = load("cub200", "test", 224, root=str(tmp_path))
    tall = [row[2] for row in rows if row[0] == "test"].index(rows[-2][2])  # 18 x 40
    with Image.open(tmp_path / rows[-2][2]) as file:
        whole = np.asarray(file.resize((256, round(40 * 256 / 18)), Image.Resampling.BICUBIC))
    top = (len(whole) - 224) // 2
    assert np.array_equal(rgb(held, tall), whole[top : top + 224, 16:240])


def test_training_crops_are_resized_ones_unless_asked(tmp_path):
    layouts.cub200(tmp_path)
    held = {crop: parts("cub200", tmp_path, crop=crop)["test"] for crop in ("resized", "random", "centre")}
    index = torch.zeros(40, dtype=torch.long)
    drawn = {crop: data.draw(index, torch.Generator().manual_seed(0), True) for crop, data in held.items()}
    assert len(drawn["resized"].factors.unique(dim=0)) > 20
    assert drawn["random"].factors is None and len(drawn["random"].left.unique()) > 5
    assert drawn["centre"].left.unique().tolist() == [5]
    assert all(0 < int(draws.flip.sum()) < 40 for draws in drawn.values())
    for data in held.values():
        assert torch.equal(data.images(range(9)), held["centre"].images(range(9)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"short_side": 8}, "short_side 8"),
        ({"crop": "corner"}, r"crop 'corner'; wanted .* resized, random, centre"),
        ({"crops": "x"}, "option crops of cub200"),
    ],
)
def test_bad_options_are_told(tmp_path, options, words):
    layouts.cub200(tmp_path)
    with pytest.raises(BookError, match=words):
        load("cub200", "train", 16, root=str(tmp_path), **options)


def test_there_is_no_validation_split_when_all_classes_train(tmp_path):
    layouts.cub200(tmp_path)
    with pytest.raises(BookError, match="'validation' with all_train"):
        load("cub200", "validation", 16, root=str(tmp_path), all_train=True)


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line)


def classes_of(mat: Path, **changed) -> None:
    table = {"annotations": np.zeros((1, 1), dtype=[("relative_im_path", object), ("class", object)])}
    table["annotations"][0, 0] = ("car_ims/000001.jpg", 3)
    savemat(mat, {**table, "class_names": np.array([["one", "two"]], dtype=object), **changed})


BIRD, PRODUCTS = "CUB_200_2011", "Stanford_Online_Products"
MISTAKES = {
    "no folder": ("cub200", lambda r: r.rename(r.with_name("gone")), r"data root .* is no folder"),
    "lost bird": (
        "cub200",
        lambda r: next((r / BIRD / "images" / layouts.BIRDS[1]).iterdir()).unlink(),
        r"Laysan_Albatross_0000_2000\.jpg is missing, one of 1 of the train half",
    ),
    "no labels": (
        "cub200",
        lambda r: (r / BIRD / "image_class_labels.txt").unlink(),
        r"image_class_labels\.txt is missing",
    ),
    "odd line": (
        "cub200",
        lambda r: append(r / BIRD / "images.txt", "x y z\n"),
        r"images\.txt, line 17: 'x y z'",
    ),
    "label alone": (
        "cub200",
        lambda r: append(r / BIRD / "image_class_labels.txt", "99 1\n"),
        r"image_class_labels\.txt speaks of other images",
    ),
    "no number": (
        "cub200",
        lambda r: [(r / BIRD / "images.txt").unlink(), (r / BIRD / "images/Crow").mkdir()],
        r"images/Crow has no number; wanted folders such as",
    ),
    "broken": (
        "cub200",
        lambda r: next((r / BIRD / "images" / layouts.BIRDS[1]).iterdir()).write_bytes(b"hello"),
        r"Laysan_Albatross_0000_2000\.jpg cannot be read as a picture",
    ),
    "foreign mat": (
        "cars196",
        lambda r: (r / "cars_annos.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(400)),
        r"cars_annos\.mat cannot be used \(",
    ),
    "no names": ("cars196", lambda r: savemat(r / "cars_annos.mat", {"a": 1}), r"KeyError: 'annotations'"),
    "class 3 of 2": ("cars196", lambda r: classes_of(r / "cars_annos.mat"), r"classes outside 1 to 2"),
    "later release": (
        "cars196",
        lambda r: [(r / "cars_annos.mat").unlink(), (r / "car_ims").rename(r / "cars_train")],
        r"another layout; wanted cars_annos\.mat beside car_ims/.*not cars_train/",
    ),
    "no test list": (
        "online_products",
        lambda r: (r / PRODUCTS / "Ebay_test.txt").unlink(),
        r"Ebay_test\.txt is missing",
    ),
    "no header": (
        "online_products",
        lambda r: (r / PRODUCTS / "Ebay_train.txt").write_text("1 1 1 bicycle_final/1_0.JPG\n"),
        r"Ebay_train\.txt begins otherwise; wanted the line 'image_id class_id super_class_id path'",
    ),
    "class in both": (
        "online_products",
        lambda r: append(r / PRODUCTS / "Ebay_test.txt", "99 1 1 bicycle_final/111085122877_0.JPG\n"),
        r"class 1 is in both lists",
    ),
    "words for numbers": (
        "online_products",
        lambda r: append(r / PRODUCTS / "Ebay_train.txt", "99 one 1 bicycle_final/1_0.JPG\n"),
        r"Ebay_train\.txt, line 9: '99 one 1",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_name_the_path_and_the_place_to_get_it(tmp_path, case):
    name, spoil, words = MISTAKES[case]
    root = tmp_path / "data"
    root.mkdir()
    layouts.WRITERS[name](root)
    spoil(root)
    with pytest.raises(BookError, match=words) as error:
        load(name, "train", 16, root=str(root))
    assert " is at https://" in str(error.value) and "\n" not in str(error.value)


def test_one_training_class_cannot_be_divided(tmp_path):
    for k in range(2):
        layouts.picture(tmp_path / f"images/{k}.B/x.jpg", k)
    with pytest.raises(BookError, match=r"1 training classes in .* wanted at least two"):
        load("cub200", "train", 16, root=str(tmp_path))
    assert len(load("cub200", "train", 16, root=str(tmp_path), all_train=True)) == 1


@pytest.mark.parametrize("name", layouts.WRITERS)
def test_check_counts_the_full_size(tmp_path, name):
    layouts.full_size(tmp_path, name)
    done = CliRunner().invoke(commands, ["data", "check", name, str(tmp_path)])
    assert done.exit_code == 0 and done.output.count("as in the papers") == 4
    for n, classes in layouts.FULL[name]:
        assert f"{n:,}" in done.output and f"{classes:,}" in done.output


@pytest.mark.parametrize("name", layouts.WRITERS)
def test_check_tells_one_missing_picture(tmp_path, name):
    layouts.full_size(tmp_path, name, spare=1)
    done = CliRunner().invoke(commands, ["data", "check", name, str(tmp_path)])
    (n, _) = layouts.FULL[name][1]
    assert done.exit_code == 1 and isinstance(done.exception, BookError)
    assert f"has {n - 1:,} test images of {name}; wanted {n:,}; " in str(done.exception)
    assert f"wanted {n:,}" in done.output and done.output.count("as in the papers") == 3


def test_check_looks_pictures_up(tmp_path):
    layouts.full_size(tmp_path, "cub200")
    (tmp_path / "CUB_200_2011/images/001.X/x.jpg").unlink()
    for name, words in (
        ("cub200", "x.jpg is missing, one of 5,864"),
        ("cub", "data 'cub'; wanted one of cub200"),
    ):
        done = CliRunner().invoke(commands, ["data", "check", name, str(tmp_path)])
        assert done.exit_code == 1 and words in str(done.exception)
