"""Data sets on the reader's disk: their files found and read, with errors that say where to get them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvlib.errors import BookError

__all__ = ["Source"]


def _is_sound(word: str, mark: str) -> bool:
    if mark == "#":
        return word.isdecimal()
    try:
        return mark != "~" or math.isfinite(float(word))
    except ValueError:
        return False


def _files(folder: Path) -> set[str]:
    """Return the names of the files right below ``folder``: for a million, quicker than to ask for each."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()


@dataclass(frozen=True)
class Source:
    """A data set's full name and the address where it is to be had."""

    title: str
    where: str

    def error(self, seen: str, wanted: str = "") -> BookError:
        """Return an error that says where the data set is to be had."""
        return BookError(seen, wanted, f"{self.title} is at {self.where}")

    def find(self, root: str, folders: Sequence[str], needed: Sequence[str], layout: str) -> Path:
        """Return the first of ``folders`` below ``root`` that holds all of ``needed``, files or folders.

        Raises: BookError that says how the data should lie: ``layout``.
        """
        folder = Path(root).expanduser()
        for name in folders:
            if all((folder / name / one).exists() for one in needed):
                return folder / name
        seen = f"{folder} has another layout" if folder.is_dir() else f"data root {root!r} is no folder"
        raise self.error(seen, layout)

    def require(self, folder: Path, paths: Iterable[str]) -> None:
        """Raise BookError, with their number, if files are missing below ``folder``."""
        paths, there = list(paths), dict[str, set[str]]()
        lacking = []
        for path in paths:
            parent, _, name = path.rpartition("/")
            if parent not in there:
                there[parent] = _files(folder / parent)
            # a file system that is blind to case finds more than the names as they are spelt
            if name not in there[parent] and not (folder / path).is_file():
                lacking.append(path)
        if lacking:
            seen = f"{folder / lacking[0]} is missing, one of {len(lacking):,} of {len(paths):,} pictures"
            raise self.error(seen, "every picture that is listed")

    def lines(self, path: Path) -> list[str]:
        """Return the lines of a text file. Raises: BookError if it is missing."""
        if not path.is_file():
            raise self.error(f"{path} is missing", "the file of the release")
        return path.read_text(encoding="utf-8", errors="replace").splitlines()

    def rows(
        self, path: Path, fields: str, *, header: bool = False, counted: bool = False
    ) -> list[list[str]]:
        """Return the rows of a text file, its columns split at spaces.

        ``fields`` names the columns: "#number" holds whole numbers, "~number" finite ones, a plain name text.
        ``counted``: the first line is the number of rows; ``header``: the next one names the columns.
        Raises: BookError naming file and line.
        """
        marks = [field[0] for field in fields.split()]
        names = [field.lstrip("#~") for field in fields.split()]
        rows = [line.split() for line in self.lines(path)]
        count = rows.pop(0) if counted and rows else []
        if header and (not rows or rows.pop(0) != names):
            raise self.error(f"{path} begins otherwise", f"the line '{' '.join(names)}'")
        if counted and count != [str(len(rows))]:
            seen = f"{path} says {' '.join(count)!r} in its first line and has {len(rows):,} rows"
            raise self.error(seen, "the number of rows")
        for at, row in enumerate(rows, 1 + header + counted):
            if len(row) != len(names) or not all(map(_is_sound, row, marks)):
                raise self.error(f"{path}, line {at}: {' '.join(row)!r}", f"'{' '.join(names)}'")
        return rows
