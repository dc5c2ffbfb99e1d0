"""The page "taming" on images of one's own: few of them, without what the emoji have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from cvlib.errors import BookError
from cvlib.pages.running import run_page

PAGE = Path(__file__).parents[2] / "notebooks" / "taming.ipynb"


def images(root: Path, classes: dict[str, tuple[str, ...]]) -> str:
    """Write four noise images of every class of every split; return the folder."""
    generator = torch.Generator().manual_seed(0)
    for split, names in classes.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for k in range(4):
                pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / name / f"{k}.png")
    return str(root)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that runs the page on a folder, in a moment and with a few steps more."""
    monkeypatch.setenv("CVLIB_SMOKE", "1")
    monkeypatch.setenv("CVLIB_STATIC", "1")

    def run(root: str, **changes) -> Path:
        values = {"data": "image_folder", "data_root": root, "run_dir": str(tmp_path / "runs"), **changes}
        return run_page(str(PAGE), str(tmp_path / "out.ipynb"), values, log=False)

    return run


@pytest.mark.slow
def test_a_small_folder_runs_to_the_end_without_a_critic_too(asked, tmp_path):
    root = images(tmp_path / "mine", dict.fromkeys(("train", "validation", "test"), ("cats", "dogs")))
    assert asked(root, disc_start=1.0).is_file()


@pytest.mark.slow
def test_what_cannot_be_trained_on_is_told_at_once(asked, tmp_path):
    odd = images(
        tmp_path / "odd", {"train": ("cats", "dogs"), "validation": ("cats",), "test": ("cats", "dogs")}
    )
    with pytest.raises(
        BookError, match=r"class 'dogs' is not in every split; wanted the same in all; add images"
    ):
        asked(odd)


def test_the_books_weights_are_of_emoji(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("CVLIB_SMOKE", "0")
    with pytest.raises(BookError, match=r"record with data 'image_folder'; wanted emoji"):
        asked(str(tmp_path), record=True)
