"""Pairing: the notebook follows from the script, byte for byte, and edits are never lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest

from cvlib.errors import BookError
from cvlib.pages import check, definitions, sync
from cvlib.pages.pairing import adopt, notebook_text

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def folder(tmp_path):
    for name in ("tiny.py", "tiny.ipynb"):
        shutil.copy(FIXTURES / name, tmp_path)
    return tmp_path


def change(folder: Path, alter) -> None:
    path = folder / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    alter(notebook)
    nbformat.write(notebook, path)


def test_the_fixture_is_current_and_sync_has_nothing_to_do(folder):
    assert check(folder) == []
    assert sync(folder) == []


def test_the_notebook_is_what_papermill_needs_and_no_more():
    made = json.loads(notebook_text(FIXTURES / "tiny.py"))
    assert made["metadata"]["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert set(made["metadata"]) == {"kernelspec", "language_info"}
    assert [cell["metadata"] for cell in made["cells"] if cell["metadata"]] == [{"tags": ["parameters"]}]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in made["cells"])


def test_ids_move_with_their_cells(folder):
    """A cell put on top leaves the other cells' ids alone, so the diff shows that cell only."""
    before = [cell["id"] for cell in json.loads(notebook_text(folder / "tiny.py"))["cells"]]
    script = folder / "tiny.py"
    script.write_text("# %%\n1 + 1\n\n# %%\n1 + 1\n\n" + script.read_text())
    after = [cell["id"] for cell in json.loads(notebook_text(script))["cells"]]
    assert after[2:] == before
    assert len(set(after)) == len(after), "equal cells still have different ids"


@pytest.mark.parametrize(
    "alter",
    [
        lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="x")),
        lambda nb: nb.cells[1].update(execution_count=3),
        lambda nb: nb.cells[0].metadata.update(collapsed=True),
        lambda nb: nb.metadata.update(widgets={}),
        lambda nb: nb.cells[0].update(id="mine"),
        lambda nb: nb.cells.pop(),
    ],
    ids=["output", "count", "cell-metadata", "metadata", "id", "cell-gone"],
)
def test_any_difference_is_found(folder, alter):
    change(folder, alter)
    assert len(check(folder)) == 1


def test_a_changed_script_is_found_and_repaired(folder):
    script = folder / "tiny.py"
    script.write_text(script.read_text().replace("steps = 4", "steps = 5"))
    assert "differs from what tiny.py makes" in check(folder)[0]
    assert sync(folder) == [folder / "tiny.ipynb"]
    assert check(folder) == []


def test_lonely_files_are_found(folder):
    shutil.copy(folder / "tiny.ipynb", folder / "alone.ipynb")
    shutil.copy(folder / "tiny.py", folder / "new.py")
    assert [line.split(": ")[1] for line in check(folder)] == [
        "missing, made from new.py",
        "has no percent script alone.py beside it",
    ]


def test_edits_in_jupyter_are_not_overwritten_and_can_be_adopted(folder):
    change(folder, lambda nb: nb.cells[1].update(source="import math"))
    with pytest.raises(BookError, match=r"was edited .*; keep its edits with `cvlib sync --adopt tiny`"):
        sync(folder)
    adopt(folder / "tiny.ipynb")
    assert "import math" in (folder / "tiny.py").read_text()
    assert '# %% tags=["parameters"]' in (folder / "tiny.py").read_text()
    assert check(folder) == []


def test_outputs_alone_are_no_edit(folder):
    change(folder, lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output("stream", text="x")))
    assert sync(folder) == [folder / "tiny.ipynb"]
    assert check(folder) == []


def test_definitions_run_no_experiment(folder):
    script = folder / "tiny.py"
    script.write_text(script.read_text() + "\nraise RuntimeError('an experiment ran')\n")
    page = definitions(script)
    assert page.total(20, 0.5) == page.Total(5.0)  # LIMIT is there
    assert not hasattr(page, "steps")
    assert not hasattr(page, "warmup")
