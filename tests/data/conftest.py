from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of its own, so that a test may break what lies in it."""
    monkeypatch.setenv("CVLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path):
    """Write pictures of given sizes below a folder; returns the folder."""

    def write(names: dict[str, tuple[int, int]], folder: str = "pictures") -> Path:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        for k, (name, (width, height)) in enumerate(names.items()):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        return root

    return write


@pytest.fixture
def iconify():
    """Make a small set in Iconify's format; a plain square where no body is given."""

    def make(icons: dict, **extra) -> dict:
        square = '<path fill="#f00" d="M0 0h16v16H0z"/>'
        named = {name: {"body": square, **(entry or {})} for name, entry in icons.items()}
        return {"icons": named, "aliases": {}, "categories": {}, **extra}

    return make
