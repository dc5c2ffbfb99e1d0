"""Words of the executed copies: they follow the page as long as its code is the one that was run.

A page that took hours need not run again for a better sentence. Where the code itself has changed, nothing is
touched, and the book says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import nbformat

from cvlib.claims.code import meaning
from cvlib.files import atomic_path
from cvlib.pages.pairing import pages

__all__ = ["Copy", "copies", "copies_table", "reword"]

COMMIT = re.compile(r"commit\s*</t[hd]>\s*<t[hd][^>]*>\s*([0-9a-f]{7,40})")


@dataclass(frozen=True)
class Copy:
    """An executed copy beside its page as it is now."""

    page: str
    path: Path
    commit: str  #: at which it was run, "" if the copy does not say
    n_cells: int  #: cells of code that the page has now
    changed: int  #: those whose code is no longer the one that was run
    is_worded: bool  #: whether every comment, docstring, paragraph and tag is the page's


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _is_injected(cell: Any) -> bool:
    return "injected-parameters" in _tags(cell)  # papermill's own cell


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and not _is_injected(cell)]


def _compare(page: Any, copy: Any) -> tuple[int, bool]:
    """Return how many cells of code have changed, and whether all words are the same."""
    now, then = ([meaning(cell.source) for cell in _code(book)] for book in (page, copy))
    if len(now) != len(then):  # cells came or went: those count that have no like in the copy
        alike = SequenceMatcher(None, then, now, autojunk=False).get_matching_blocks()
        return max(1, len(now) - sum(block.size for block in alike)), False
    changed = sum(a != b for a, b in zip(now, then, strict=True))
    said = [[(c.source, _tags(c)) for c in book.cells if not _is_injected(c)] for book in (page, copy)]
    return changed, said[0] == said[1]


def _worded(page: Any, copy: Any) -> list[Any]:
    """Return the page's cells, with what the copy's have shown; papermill's cell stays behind the parameters.

    A paragraph may come or go: text has no part in what was run.
    """
    given = {k: cell for k, cell in enumerate(copy.cells) if _is_injected(cell)}
    after = {id(copy.cells[k - 1]): cell for k, cell in given.items()}
    cells, ran = [], iter(_code(copy))
    for now in page.cells:
        if now.cell_type == "code":
            then = next(ran)
            then.source, then["id"] = now.source, now["id"]
            then.metadata["tags"] = _tags(now)  # what is folded is how a page looks, not what was run
            now = then
        cells += [now, after[id(now)]] if id(now) in after else [now]
    return cells


def copies(notebooks: Path, chapters: Path) -> list[Copy]:
    """Return the executed copies in ``chapters`` of the pages in ``notebooks``, by name."""
    found = []
    for script in pages(notebooks):
        path = chapters / f"{script.stem}.ipynb"
        if not path.is_file():
            continue
        page, copy = (nbformat.read(p, as_version=4) for p in (script.with_suffix(".ipynb"), path))
        shown = " ".join(
            str(output.get("data", {}).get("text/html", ""))
            for cell in copy.cells
            for output in cell.get("outputs", [])
        )
        commit = COMMIT.findall(shown)
        changed, is_worded = _compare(page, copy)
        n_cells = sum(cell.cell_type == "code" for cell in page.cells)
        found.append(Copy(script.stem, path, commit[-1] if commit else "", n_cells, changed, is_worded))
    return found


def reword(notebooks: Path, chapters: Path) -> list[Path]:
    """Write the page's words into every executed copy whose code is the page's; return the copies written."""
    written = []
    for copy in copies(notebooks, chapters):
        if copy.changed or copy.is_worded:
            continue
        page = nbformat.read(notebooks / f"{copy.page}.ipynb", as_version=4)
        old = nbformat.read(copy.path, as_version=4)
        old.cells = _worded(page, old)
        with atomic_path(copy.path) as aside:
            nbformat.write(old, aside)
        written.append(copy.path)
    return written


def copies_table(notebooks: Path, chapters: Path) -> str:
    """Return a table in Markdown: each page, the commit it was run at, and what has changed since."""
    rows = ["| page | run at commit | cells of code that have changed since |", "|---|---|---|"]
    for copy in copies(notebooks, chapters):
        changed = f"{copy.changed} of {copy.n_cells}" if copy.changed else "none"
        rows.append(f"| {{doc}}`/chapters/{copy.page}` | `{copy.commit or 'unknown'}` | {changed} |")
    return "\n".join(rows)
