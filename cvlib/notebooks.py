"""The pages of ``notebooks/`` as modules, so that one page can use by name what another one defines.

``from cvlib.notebooks.parts_model import PartsConfig`` imports from ``notebooks/parts_model.py`` what
:func:`cvlib.pages.definitions` returns: its imports, functions, classes and CONSTANTS. Nothing else of the
page is run, and a page is read once in a process. An import is itself a definition, so the name is known
where the page runs, and where a test or another page takes the page's definitions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from cvlib.claims.store import repository
from cvlib.pages.pairing import define

__all__ = ["PageImporter"]

__path__: list[str] = []  # makes a package of this module: its submodules are the pages


class PageImporter(MetaPathFinder, Loader):
    """Finds ``cvlib.notebooks.<page>`` in the repository's ``notebooks/`` and runs what the page defines."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a page lies, or None for other modules and for pages that do not exist."""
        package, _, page = fullname.rpartition(".")
        if package != __name__:
            return None
        script = repository() / "notebooks" / f"{page}.py"
        return spec_from_file_location(fullname, script, loader=self) if script.is_file() else None

    def exec_module(self, module: ModuleType) -> None:
        """Run a page's definitions in ``module``."""
        assert module.__file__ is not None
        define(Path(module.__file__), module)


sys.meta_path.append(PageImporter())
