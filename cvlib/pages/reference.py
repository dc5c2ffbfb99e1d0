"""The API reference: signatures and docstrings read from the source, without importing it.

Docstrings are prose for a terminal, so they are shown as such: double backticks become code, doctests become
sessions, and characters that Markdown would take as mark-up are escaped.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

__all__ = ["package_page", "packages"]


def packages(root: Path) -> list[str]:
    """Return the parts of the library that get a page: subpackages and modules of ``root``, sorted."""
    found = [path.parent.name for path in root.glob("*/__init__.py")]
    found += [path.stem for path in root.glob("*.py") if path.stem != "__init__"]
    return sorted(name for name in found if not name.startswith("_"))


def _escape(text: str) -> str:
    """Return prose with Markdown's special characters escaped outside code spans."""
    text = re.sub(r":[a-z:]+:`~?([^`]+)`", r"``\1``", text)
    pieces = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    return "".join(
        piece if place % 2 else re.sub(r"([\\*_|<>$#\[\]{}])", r"\\\1", piece)
        for place, piece in enumerate(pieces)
    )


def _prose(docstring: str) -> str:
    """Return a docstring as Markdown: paragraphs, indented blocks and doctests each in their own form."""
    blocks = []
    for block in re.split(r"\n\s*\n", textwrap.dedent(docstring).strip()):
        lines = block.splitlines()
        if block.lstrip().startswith(">>>"):
            blocks.append("```pycon\n" + textwrap.dedent(block) + "\n```")
        elif any(line.startswith((" ", "- ", "* ", "| ")) for line in lines):
            blocks.append("```text\n" + block.rstrip() + "\n```")
        else:
            blocks.append(_escape(" ".join(line.removesuffix("::") for line in lines)))
    return "\n\n".join(blocks)


def _fence(kind: str, name: str, body: str) -> str:
    """Return a directive of Sphinx's Python domain, fenced deeper than anything inside it."""
    longest = max([3, *(len(mark) for mark in re.findall(r":{3,}", body))])
    return f"{':' * (longest + 1)}{{py:{kind}}} {name}\n{body.strip()}\n{':' * (longest + 1)}"


def _signature(node: ast.FunctionDef, *, method: bool = False) -> str:
    """Return ``name(arguments) -> result`` as written, without the first argument of a method."""
    arguments = node.args
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in node.decorator_list)
    if method and not static and arguments.args:
        dropped = arguments.args[1:]
        arguments = ast.arguments(**{**vars(arguments), "args": dropped})
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(arguments)}){result}"


def _fields(node: ast.ClassDef) -> str:
    """Return a class's annotated fields as one listing, or nothing."""
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    lines = [ast.unparse(item) for item in fields if not ast.unparse(item.target).startswith("_")]
    return "```python\n" + "\n".join(lines) + "\n```" if lines else ""


def _entry(node: ast.stmt, module: str) -> str:
    """Return the entry of one public function or class."""
    if isinstance(node, ast.FunctionDef):
        return _fence("function", f"{module}.{_signature(node)}", _prose(ast.get_docstring(node) or ""))
    assert isinstance(node, ast.ClassDef)
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    start = next((_signature(item, method=True) for item in methods if item.name == "__init__"), "")
    parts = [_prose(ast.get_docstring(node) or ""), _fields(node)]
    for item in methods:
        if not item.name.startswith("_") and (text := ast.get_docstring(item)):
            parts.append(_fence("method", _signature(item, method=True), _prose(text)))
    arguments = start.removeprefix("__init__").split(" -> ")[0]
    return _fence("class", f"{module}.{node.name}{arguments}", "\n\n".join(filter(None, parts)))


def _public(tree: ast.Module) -> list[str]:
    """Return the names in a module's ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _module(path: Path, name: str) -> str:
    """Return a module's section: its own docstring, then what it makes public, in the order of the file."""
    tree = ast.parse(path.read_text("utf-8"))
    public = _public(tree)
    found = [node for node in tree.body if getattr(node, "name", None) in public]
    if not found:
        return ""
    parts = [f"## {name}", _prose(ast.get_docstring(tree) or "")]
    return "\n\n".join([*parts, *(_entry(node, name) for node in found)])


def package_page(root: Path, name: str) -> str:
    """Return the Markdown page of one subpackage or module of ``root``, such as ``nn`` of ``cvlib``."""
    folder = root / name
    start = folder / "__init__.py" if folder.is_dir() else root / f"{name}.py"
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [start]
    opening = _prose(ast.get_docstring(ast.parse(start.read_text("utf-8"))) or "")
    sections = []
    for path in files:
        dotted = ".".join((root.name, *path.relative_to(root).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        sections.append(_module(path, dotted))
    if start.stem != "__init__":
        opening = ""  # the module's own section opens with it
    return "\n\n".join(filter(None, [f"# {root.name}.{name}", opening, *sections])) + "\n"
