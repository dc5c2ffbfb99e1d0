from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cvlib.cli import commands
from cvlib.data import load
from cvlib.data.animal_faces import cut
from cvlib.errors import BookError
from tests import layouts_photographs as layouts


@pytest.fixture(autouse=True)
def _own(own_cache):
    """Every test writes to a cache of its own."""


def test_cutting_gives_the_authors_files(tmp_path):
    """Pillow alone made those of the layout: the same names, the same pixels."""
    root, photographs, bare = tmp_path / "whole", tmp_path / "imagenet", tmp_path / "bare"
    layouts.animal_faces(root, photographs)
    layouts.animal_faces(bare, photographs, is_cut=False)
    assert cut(str(bare), str(photographs)) == 24
    wanted = {path.relative_to(root): path for path in root.rglob("*.jpg")}
    assert {path.relative_to(bare) for path in bare.rglob("*.jpg")} == set(wanted) and len(wanted) == 24
    for name, path in wanted.items():
        assert np.array_equal(np.asarray(Image.open(bare / name)), np.asarray(Image.open(path))), name
    sizes = {Image.open(path).size for path in wanted.values()}
    assert {(18, 18), (16, 15), (5, 5), (30, 30)} <= sizes  # edges, not sizes
    assert len({load("animal_faces", "test", 16, root=str(one)).hash for one in (bare, root)}) == 1


def test_cutting_goes_on_where_it_stopped(tmp_path):
    photographs, bare = tmp_path / "imagenet", tmp_path / "bare"
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
