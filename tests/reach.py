"""What a definition of a page rests on in the pages of the book, from name to name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PAGES = Path(__file__).resolve().parents[1] / "notebooks"
HOME = "cvlib.notebooks"


class Definitions:
    """Functions, classes and constants of a page by name, and what it imports from other pages."""

    def __init__(self, page: str) -> None:
        self.nodes: dict[str, ast.AST] = {}
        self.taken: dict[str, tuple[str, str]] = {}  # a name here: (page, name there)
        self.modules: dict[str, str] = {}  # a name here: page
        for node in ast.parse((PAGES / f"{page}.py").read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign) and (there := _asked_for(node.value)):
                self.modules |= {t.id: there for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name) and t.id.isupper()]
                self.nodes |= dict.fromkeys(names, node)
            elif isinstance(node, ast.ImportFrom) and node.module == HOME:
                self.modules |= {a.asname or a.name: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{HOME}."):
                there = node.module.removeprefix(f"{HOME}.")
                self.taken |= {a.asname or a.name: (there, a.name) for a in node.names}


def _asked_for(value: ast.expr) -> str | None:
    """The page that ``page.definitions("...")`` asks for."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "page.definitions":
        return ast.literal_eval(value.args[0])
    return None


def reach(*starts: tuple[str, str]) -> set[str]:
    """Return all that the (page, name) in ``starts`` reach, as rules list it: notebooks/<page>.py::<name>."""
    pages: dict[str, Definitions] = {}
    seen, ahead = set(), list(starts)

    def page(name: str) -> Definitions:
        return pages.setdefault(name, Definitions(name))

    def module(where: str, node: ast.expr) -> str | None:
        """The page that an expression stands for: ``experts``, or ``experts.taming``."""
        if isinstance(node, ast.Name):
            return page(where).modules.get(node.id)
        if isinstance(node, ast.Attribute) and (inner := module(where, node.value)):
            return page(inner).modules.get(node.attr)
        return None

    def used(where: str, node: ast.AST) -> Iterator[tuple[str, str]]:
        here = page(where)
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                yield (where, part.id) if part.id in here.nodes else here.taken.get(part.id, ("", ""))
            elif isinstance(part, ast.Attribute) and (there := module(where, part.value)):
                yield there, part.attr

    while ahead:
        where, name = ahead.pop()
        if (where, name) in seen or not where or name not in page(where).nodes:
            continue
        seen.add((where, name))
        ahead += used(where, page(where).nodes[name])
    return {f"notebooks/{where}.py::{name}" for where, name in seen}
