from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = [
    "import torch\nfrom cvlib.show import explorer, figure, picture, say, show, table",
    "fig, ax = figure()\nax.plot([0, 1], [1, 0])\nshow(fig, alt='A line that falls to zero.')",
    "table([['a', 1]], ['x', 'y'])\nsay('**{n}** codes', n=3)",
    "out = picture(torch.zeros(2, 3, 4, 4), alt='Two grey squares, side by side.');",
    "explorer(torch.zeros(2, 3, 4, 4), {'x': [1, 2]}, 'Two grey squares in a row.')",
]


@pytest.mark.slow
def test_a_notebook_shows_each_thing_once():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    root = Path(__file__).resolve().parents[2]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(root)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert [len(cell) for cell in outputs] == [0, 1, 2, 1, 1]
    assert all(out.output_type == "display_data" for cell in outputs for out in cell)
    figure, (rows, words) = outputs[1][0].data, outputs[2]
    assert set(figure) == {"text/html", "text/plain"} and "cv-figure" in figure["text/html"]
    assert figure["text/plain"] == "A line that falls to zero."
    assert "<table" in rows.data["text/html"] and words.data["text/markdown"] == "**3** codes"
