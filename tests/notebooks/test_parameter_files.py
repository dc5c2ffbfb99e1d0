"""Every file in notebooks/params names parameters that its page has, with values of their types."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
import yaml

from cvlib.errors import BookError
from cvlib.pages.parameters import check_parameters, notebook_parameters

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
FILES = sorted((NOTEBOOKS / "params").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parameters_are_known_to_the_page(file):
    page = file.name.split(".")[0]
    known, _ = notebook_parameters(jupytext.read(NOTEBOOKS / f"{page}.py", fmt="py:percent"))
    given = yaml.safe_load(file.read_text("utf-8"))
    check_parameters(given, known, page)
    with pytest.raises(BookError, match="step"):
        check_parameters({**given, "stepz": 1}, known, page)
