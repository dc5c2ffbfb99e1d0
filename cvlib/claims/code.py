"""Which code a number rests on: a digest of the syntax, blind to comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from cvlib.claims.store import repository
from cvlib.errors import BookError

__all__ = ["code_hash", "meaning"]


def code_hash(paths: Iterable[str], root: Path | None = None) -> str:
    """Return 16 hexadecimal digits over the syntax trees of the given code.

    Comments, docstrings, line breaks and markdown cells do not count; every name, number and string does.

    Args: paths: files, folders (all .py below them) or "file.py::name" for one function, class or constant,
        relative to ``root`` (the repository). Raises: BookError for a path or name that does not exist.
    """
    digest = hashlib.sha256()
    for entry in sorted(set(paths)):
        for label, text in _sources(entry, root or repository()):
            digest.update(f"{label}\n{text}\n".encode())
    return digest.hexdigest()[:16]


def meaning(source: str) -> str:
    r"""Return a text that two pieces of Python share if they differ in comments, docstrings and layout only.

    What is no Python, such as a cell with a magic, means itself.

    >>> meaning("def f(x):\n    'Twice.'\n    return 2 * x  # fast") == meaning("def f(x): return (2 * x)")
    True
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    return "\n".join(map(_plain, _without_docstring(tree.body)))


def _sources(entry: str, root: Path) -> Iterable[tuple[str, str]]:
    name, _, wanted = entry.partition("::")
    path = root / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise BookError(
            f"code {entry!r} is not in {root}", "a file, a folder with .py files, or file.py::name"
        )
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        nodes: list[ast.stmt] = [node for node in tree.body if not wanted or wanted in _names(node)]
        if wanted and not nodes:
            raise BookError(f"{name} defines no {wanted!r}", "a function, class or constant of that file")
        yield file.relative_to(root).as_posix(), "\n".join(map(_plain, _without_docstring(nodes)))


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    # a bare string anywhere has no effect; a docstring is the usual one
    return [
        n for n in body if not (isinstance(n, ast.Expr) and isinstance(getattr(n.value, "value", 0), str))
    ]


def _plain(node: object) -> str:
    """Like ast.dump without empty fields, which differ between versions of Python."""
    if isinstance(node, list):
        return "[" + ",".join(map(_plain, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list):
            value = _without_docstring(value)
        if value is not None and value != [] and name not in ("type_comment", "kind", "ctx"):
            parts.append(f"{name}={_plain(value)}")
    return f"{type(node).__name__}({','.join(parts)})"
