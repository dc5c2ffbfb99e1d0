"""Pages as modules: a page's definitions know by import what another page defines."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

from cvlib.pages import definitions

PAGES = Path(__file__).parents[2] / "notebooks"

BASE = """# %%
from dataclasses import dataclass
SIDE = 3
@dataclass
class Square:
    side: int = SIDE
# %%
raise RuntimeError("an experiment ran")
"""
NEXT = """# %%
from cvlib.notebooks.base_page import SIDE, Square
def area(square: Square) -> int:
    return square.side**2
# %%
raise RuntimeError("an experiment ran")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The notebooks of a repository with two pages, the second of which builds on the first."""
    for name in ("book", "cvlib", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "notebooks" / "base_page.py").write_text(BASE)
    (tmp_path / "notebooks" / "next_page.py").write_text(NEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CVLIB_RESULTS", raising=False)
    yield tmp_path / "notebooks"
    for name in ("base_page", "next_page"):
        sys.modules.pop(f"cvlib.notebooks.{name}", None)


def test_definitions_know_what_they_import_from_another_page(folder):
    page = definitions(folder / "next_page.py")
    assert page.area(page.Square()) == page.SIDE**2 == 9


def test_a_page_is_a_module_that_is_read_once(folder):
    from cvlib.notebooks import next_page
    from cvlib.notebooks.base_page import Square

    assert next_page.Square is Square is definitions(folder / "next_page.py").Square
    assert next_page.__file__ == str(folder / "next_page.py")
    assert Square.__module__ == "cvlib.notebooks.base_page"


def test_a_page_or_a_name_that_does_not_exist_is_told(folder):
    with pytest.raises(ModuleNotFoundError, match=r"cvlib\.notebooks\.gone"):
        import cvlib.notebooks.gone  # noqa: F401  # the import is the test
    with pytest.raises(ImportError, match="cannot import name 'Circle'"):
        from cvlib.notebooks.base_page import Circle  # noqa: F401  # likewise


@pytest.mark.parametrize("path", sorted(PAGES.glob("*_claims.ipynb")), ids=lambda path: path.stem)
def test_long_code_of_evidence_is_folded_and_the_verdict_is_not(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    folded = {cell.source for cell in cells if "hide-input" in cell.metadata.get("tags", ())}
    long = {
        cell.source
        for cell in cells
        if cell.source.count("\n") >= 12 and "parameters" not in cell.metadata.get("tags", ())
    }
    assert long and long <= folded
    assert not any("claims_table(" in source and source.count("\n") < 5 for source in folded)
