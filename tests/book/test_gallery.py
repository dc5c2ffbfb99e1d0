"""The cards of the front page, from tiny executed pages whose pictures are known."""

from __future__ import annotations

import io
import re

import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image

from cvlib.errors import BookError
from cvlib.pages import gallery
from cvlib.show import picture

ENTRY = {"page": "taming", "caption": "Two & two", "title": "A < B", "text": "Words."}


@pytest.fixture
def book(tmp_path):
    """Return a book with one page: two rows of two flat images each, and one more picture."""
    rows = [np.full((2, 8, 8, 3), value, np.uint8) for value in (10, 200)]
    shown = [
        picture(*rows, alt="A dark row, a light one.", caption="Two & two.", rows=["dark", "light"]),
        picture(rows[0], alt="Two dark squares.", caption="Dark only."),
    ]
    outputs = [nbformat.v4.new_output("display_data", {"text/html": found.html}) for found in shown]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, execution_count=1)
    folder = tmp_path / "book"
    (folder / "chapters").mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "chapters" / "taming.ipynb")
    return folder


def write(book, *entries):
    (book / "gallery.yml").write_text(yaml.safe_dump(list(entries)))


def test_rows_of_a_picture_are_put_together_again(book):
    data, alt = gallery.picture_of(book / "chapters" / "taming.ipynb", "Two & two")
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert whole[4, 4].tolist() == [10] * 3 and whole[-4, 4].tolist() == [200] * 3 and "a light one" in alt
    first, _ = gallery.picture_of(book / "chapters" / "taming.ipynb", "Two & two", rows=1)
    assert Image.open(io.BytesIO(first)).height == len(whole) // 2


def test_wide_pictures_are_made_narrower(book, monkeypatch):
    monkeypatch.setattr(gallery, "WIDTH", 10)
    data, _ = gallery.picture_of(book / "chapters" / "taming.ipynb", "Dark only")
    assert Image.open(io.BytesIO(data)).width == 10


def test_a_card_is_a_link_with_picture_and_escaped_words(book):
    write(book, ENTRY)
    text = gallery.cards(book)
    assert '<a class="cv-card" href="chapters/taming.html">' in text and "<b>A &lt; B</b> Words." in text
    assert (
        len(re.findall(r'<img src="data:image/webp;base64,[^"]+" alt="A dark row, a light one.">', text)) == 1
    )


def test_entries_that_point_nowhere_are_refused(book):
    for change, message in (
        ({"caption": "Three"}, "0 pictures with 'Three' in taming.ipynb; wanted one"),
        ({"caption": "only"}, None),
        ({"caption": "o"}, "2 pictures with 'o'"),
        ({"page": "gone"}, "make report CHAPTER=gone"),
        ({"colour": "red"}, "'colour'"),
    ):
        write(book, ENTRY | change)
        if message is None:
            assert "Two dark squares." in gallery.cards(book)
            continue
        with pytest.raises(BookError, match=re.escape(message)):
            gallery.cards(book)
