"""Each page is two files: a percent script, which is the source, and the notebook made from it.

The notebook carries no outputs, only the metadata that papermill needs, and cell ids that follow from the
cells' contents. So "is the pair current?" is a comparison of bytes, and a notebook that was edited by hand
shows it: its ids no longer fit its cells.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import nbformat

from cvlib.errors import BookError
from cvlib.files import atomic_write

__all__ = ["adopt", "cell_ids", "check", "define", "definitions", "notebook_text", "pages", "sync"]

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def pages(folder: Path) -> list[Path]:
    """Return the percent scripts of a folder of pages, sorted by name."""
    return sorted(folder.glob("*.py"))


def cell_ids(cells: list[Any]) -> list[str]:
    """Return one id per cell, from its content and its place among equal cells."""
    seen: Counter[str] = Counter()
    ids = []
    for cell in cells:
        content = f"{cell.cell_type}\n{cell.source}"
        seen[content] += 1
        ids.append(hashlib.sha256(f"{seen[content]}\n{content}".encode()).hexdigest()[:12])
    return ids


def notebook_text(script: Path) -> str:
    """Return the text of the notebook that belongs to a percent script."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell, name in zip(notebook.cells, cell_ids(notebook.cells), strict=True):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell["id"] = name
    nbformat.validate(notebook)
    return nbformat.writes(notebook, indent=1) + "\n"


def _edited(path: Path) -> bool:
    """Tell whether a notebook's cells were changed since it was made: its ids do not fit them."""
    notebook = nbformat.read(path, as_version=4)
    return [cell.get("id") for cell in notebook.cells] != cell_ids(notebook.cells)


def check(folder: str | Path) -> list[str]:
    """Return one line per pair in ``folder`` that is not current; an empty list is good."""
    root = Path(folder)
    wrong = []
    for script in pages(root):
        twin = script.with_suffix(".ipynb")
        if not twin.is_file():
            wrong.append(f"{twin}: missing, made from {script.name}")
        elif twin.read_text("utf-8") != notebook_text(script):
            wrong.append(f"{twin}: differs from what {script.name} makes")
    alone = (path for path in sorted(root.glob("*.ipynb")) if not path.with_suffix(".py").is_file())
    return wrong + [f"{path}: has no percent script {path.stem}.py beside it" for path in alone]


def sync(folder: str | Path) -> list[Path]:
    """Write the notebook of every script in ``folder`` that is not current; return those written.

    Raises: BookError if a notebook holds edits of its own, which writing would lose.
    """
    written = []
    for script in pages(Path(folder)):
        twin, text = script.with_suffix(".ipynb"), notebook_text(script)
        if twin.is_file() and twin.read_text("utf-8") == text:
            continue
        if twin.is_file() and _edited(twin):
            raise BookError(
                f"{twin} was edited and differs from {script.name}",
                do=f"keep its edits with `cvlib sync --adopt {script.stem}`, or delete it",
            )
        atomic_write(twin, text)
        written.append(twin)
    return written


def adopt(notebook: str | Path) -> Path:
    """Write the percent script from a notebook edited in Jupyter, then remake the notebook from it.

    Outputs and stray metadata are dropped on the way. Returns the script's path.
    """
    source = Path(notebook)
    if not source.is_file():
        raise BookError(f"{source} does not exist", "a notebook in notebooks/")
    cells = nbformat.read(source, as_version=4)
    cells.metadata = nbformat.from_dict({"jupytext": {"notebook_metadata_filter": "-all"}})
    for cell in cells.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
    script = source.with_suffix(".py")
    atomic_write(script, jupytext.writes(cells, fmt="py:percent"))
    atomic_write(source, notebook_text(script))
    return script


def _defines(node: ast.stmt) -> bool:
    """Tell whether a statement only defines: an import, a function, a class or a CONSTANT."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
        return True
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return isinstance(node, ast.Assign | ast.AnnAssign) and bool(names) and all(map(str.isupper, names))


def define(script: Path, module: ModuleType) -> None:
    """Run a page's imports, functions, classes and CONSTANTS, and nothing else of it, in ``module``."""
    tree = ast.parse(script.read_text("utf-8"), filename=str(script))
    tree.body = [node for node in tree.body if _defines(node)]
    exec(compile(tree, str(script), "exec"), module.__dict__)


def definitions(script: str | Path) -> ModuleType:
    """Return a page's imports, functions, classes and CONSTANTS as a module, running nothing else of it.

    This is how tests reach what a chapter defines: ``definitions("notebooks/taming.py").adaptive_weight``.
    A page whose definitions need names of another page imports them, see :mod:`cvlib.notebooks`.
    """
    path = Path(script)
    module = ModuleType(f"page_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    define(path, module)
    return module
