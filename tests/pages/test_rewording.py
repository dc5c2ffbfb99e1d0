"""Executed copies follow the words of their pages, never the code."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from cvlib.claims.code import meaning
from cvlib.pages import pairing, rewording

ROOT = Path(__file__).parents[2]
PAGE = """# %% [markdown]
# # A title

# %% tags=["parameters"]
steps = 4  # of training

# %%
def double(x):
    \"\"\"Return x twice.\"\"\"
    return 2 * x


print(double(steps))
"""


@pytest.fixture
def book(tmp_path):
    """Return folders of one page and of its executed copy, with papermill's cell and an output."""
    notebooks, chapters = tmp_path / "notebooks", tmp_path / "chapters"
    notebooks.mkdir()
    chapters.mkdir()
    (notebooks / "demo.py").write_text(PAGE)
    pairing.sync(notebooks)
    copy = nbformat.read(notebooks / "demo.ipynb", as_version=4)
    given = nbformat.v4.new_code_cell(
        "steps = 9", metadata={"tags": ["injected-parameters"]}, execution_count=2
    )
    copy.cells.insert(2, given)
    ran = "<table><tr><td style='x'>commit</td><td style='y'>0123456789ab</td></tr></table>"
    copy.cells[-1].outputs = [
        nbformat.v4.new_output("stream", text="18\n"),
        nbformat.v4.new_output("display_data", {"text/html": ran}),
    ]
    nbformat.write(copy, chapters / "demo.ipynb")
    return notebooks, chapters


def change(notebooks, old, new):
    script = notebooks / "demo.py"
    assert old in script.read_text()
    script.write_text(script.read_text().replace(old, new))
    pairing.sync(notebooks)


def test_words_are_mended_and_outputs_stay(book):
    notebooks, chapters = book
    assert rewording.reword(notebooks, chapters) == []
    change(notebooks, "# # A title", "# # A better title")
    change(notebooks, "of training", "of a training")
    change(notebooks, "Return x twice.", "Return 2 x.")
    assert rewording.reword(notebooks, chapters) == [chapters / "demo.ipynb"]
    copy = nbformat.read(chapters / "demo.ipynb", as_version=4)
    page = nbformat.read(notebooks / "demo.ipynb", as_version=4)
    assert [cell.source for cell in copy.cells if cell.source != "steps = 9"] == [
        c.source for c in page.cells
    ]
    assert copy.cells[2].source == "steps = 9" and copy.cells[-1].outputs[0].text == "18\n"
    nbformat.validate(copy)
    assert rewording.reword(notebooks, chapters) == []


def test_paragraphs_come_and_go(book):
    notebooks, chapters = book
    change(notebooks, "# %%\ndef", "# %% [markdown]\n# Twice.\n\n# %%\ndef")
    assert rewording.reword(notebooks, chapters) == [chapters / "demo.ipynb"]
    copy = nbformat.read(chapters / "demo.ipynb", as_version=4)
    assert [cell.source[:8] for cell in copy.cells] == [
        "# A titl",
        "steps = ",
        "steps = ",
        "Twice.",
        "def doub",
    ]
    assert copy.cells[2].source == "steps = 9" and copy.cells[-1].outputs[0].text == "18\n"
    nbformat.validate(copy)
    change(notebooks, "# %% [markdown]\n# Twice.\n\n", "")
    assert rewording.reword(notebooks, chapters) == [chapters / "demo.ipynb"]
    copy = nbformat.read(chapters / "demo.ipynb", as_version=4)
    assert [cell.source[:8] for cell in copy.cells] == ["# A titl", "steps = ", "steps = ", "def doub"]
    assert rewording.reword(notebooks, chapters) == []


def test_a_cell_is_folded_without_another_run(book):
    notebooks, chapters = book
    change(notebooks, "# %%\ndef", '# %% tags=["hide-input"]\ndef')
    assert rewording.reword(notebooks, chapters) == [chapters / "demo.ipynb"]
    copy = nbformat.read(chapters / "demo.ipynb", as_version=4)
    assert copy.cells[-1].metadata["tags"] == ["hide-input"] and copy.cells[-1].outputs[0].text == "18\n"
    assert rewording.reword(notebooks, chapters) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2 * x", "3 * x"),
        ("steps = 4", "steps = 5"),
        ("print(double(steps))", "print(double(steps))\n\n# %%\nprint(1)"),
    ],
)
def test_a_copy_of_other_code_is_left_alone_and_counted(book, old, new):
    notebooks, chapters = book
    before = (chapters / "demo.ipynb").read_bytes()
    change(notebooks, "# # A title", "# # A better title")
    change(notebooks, old, new)
    assert rewording.reword(notebooks, chapters) == []
    assert (chapters / "demo.ipynb").read_bytes() == before
    (copy,) = rewording.copies(notebooks, chapters)
    assert copy.commit == "0123456789ab" and copy.changed == 1 and not copy.is_worded
    table = rewording.copies_table(notebooks, chapters)
    assert f"| {{doc}}`/chapters/demo` | `0123456789ab` | {copy.changed} of {copy.n_cells} |" in table


def test_meaning_is_blind_to_words_only():
    assert meaning("x = 1  # one") == meaning("x = (1)")
    assert meaning("x = 1") != meaning("x = 2")
    assert meaning('say("a")') != meaning('say("b")')
    assert meaning("%matplotlib inline") == "%matplotlib inline"


def test_the_books_copies_have_the_words_of_their_pages():
    found = rewording.copies(ROOT / "notebooks", ROOT / "book" / "chapters")
    late = [copy.page for copy in found if not copy.changed and not copy.is_worded]
    assert not late, f"run `cvlib reword`: {late}"
    assert all(len(copy.commit) >= 12 for copy in found)
