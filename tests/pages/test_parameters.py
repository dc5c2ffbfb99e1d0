"""Parameters: unknown names and wrong types stop a run, in a kernel, in a script and before either."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from cvlib.errors import BookError
from cvlib.pages import Page, begin, run_page
from cvlib.pages.parameters import check_parameters, literals

FIXTURES = Path(__file__).parent / "fixtures"
KNOWN = {"steps": 4, "rate": 0.5, "data": "emoji", "record": False, "anything": None}


def shell(*cells: str) -> dict[str, object]:
    """Return the namespace of a kernel that ran ``cells``, with IPython's history."""
    namespace: dict[str, object] = {"In": ["", *cells, 'page = begin("tiny", globals())']}
    for cell in cells:
        exec(cell, namespace)
    return namespace


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", "many", "parameter steps is 'many' (str) on page p; wanted int"),
        ("steps", 2.0, "steps is 2.0 (float)"),
        ("steps", True, "steps is True (bool)"),  # bool is an int to Python, not to a reader
        ("rate", "fast", "wanted float, such as 0.5"),
        ("rate", False, "rate is False (bool)"),
        ("data", 3, "data is 3 (int)"),
        ("record", 1, "record is 1 (int)"),
        ("step", 3, "did you mean steps?"),
        ("zzz", 3, "wanted one of anything, data, rate, record, steps"),
    ],
)
def test_a_misfit_is_told_in_one_line(name, value, wanted):
    with pytest.raises(BookError) as error:
        check_parameters({name: value}, KNOWN, "p")
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_fit_pass():
    check_parameters({"steps": 7, "rate": 1, "data": "x", "record": True, "anything": [1]}, KNOWN, "p")


def test_a_computed_default_is_refused():
    with pytest.raises(BookError, match=r"parameter b = a \* 2"):
        literals("a = 1\nb = a * 2")


def test_begin_reads_the_kernel_history():
    page = begin("tiny", shell("steps = 4\nrate = 0.5", "# Parameters\nsteps = 9\n"))
    assert page == Page("tiny", {"steps": 9, "rate": 0.5}, started=page.started)
    with pytest.raises(BookError, match="unknown parameter stepz = 9"):
        begin("tiny", shell("steps = 4", "# Parameters\nstepz = 9\n"))


def test_begin_knows_the_parameters_of_a_run_without_overrides():
    assert begin("tiny", shell("import math", "steps = 4\nrate = 0.5")).parameters == {
        "steps": 4,
        "rate": 0.5,
    }
    assert begin("tiny", shell("steps = 4", "warmup = steps // 2")).parameters == {"steps": 4}
    assert begin("tiny", {}).parameters == {}


def test_begin_refuses_what_a_page_cannot_do():
    cells = ('data = "emoji"\nsteps = 4', '# Parameters\ndata = "photos"\n')
    with pytest.raises(BookError, match=r"data is 'photos' on tiny; wanted 'emoji', the only one it knows"):
        begin("tiny", shell(*cells), data="emoji", record=False)
    assert begin("tiny", shell(cells[0]), data="emoji", record=False).parameters["data"] == "emoji"


PAGES = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_parameter_is_read_or_refused(path):
    """What is passed on as a whole, as the photo pages do, is read where it arrives."""
    read, declared = set(), set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        if "parameters" in cell.metadata.get("tags", ()):
            declared = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            continue
        nodes = list(ast.walk(tree))
        read |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        read |= {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "begin"]
        read |= {word.arg for call in calls for word in call.keywords}
    read |= {"record"} & {name.removeprefix("page.") for name in read}
    assert declared and (declared <= read or "setting_of" in read), declared - read


def test_begin_reads_the_modes(monkeypatch):
    cells = "record = False", "# Parameters\nrecord = True\n"
    assert begin("tiny", shell(*cells)).record
    monkeypatch.setenv("CVLIB_SMOKE", "1")
    monkeypatch.setenv("CVLIB_STATIC", "1")
    page = begin("tiny", shell(*cells))
    assert (page.smoke, page.static, page.record) == (True, True, False)  # smoke never records


def test_a_plain_papermill_run_stops_at_a_typo(tmp_path):
    """Papermill itself only logs an unknown name; the page must stop. No machinery of ours in between."""
    with pytest.raises(PapermillExecutionError, match=r"unknown parameter stepz = 3 .* did you mean steps\?"):
        papermill.execute_notebook(
            FIXTURES / "tiny.ipynb", tmp_path / "out.ipynb", {"stepz": 3}, progress_bar=False
        )
    shown = [
        out for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for out in cell.get("outputs", ())
    ]
    (error,) = [out for out in shown if out.output_type == "error"]
    assert len(error.traceback) == 1, "the reader sees one line"


def test_a_script_stops_at_a_typo(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    script = tmp_path / "tiny.py"
    text = (FIXTURES / "tiny.py").read_text()
    script.write_text(
        text.replace("# %%\npage", '# %% tags=["injected-parameters"]\nstepz = 3\n\n# %%\npage')
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "BookError: unknown parameter stepz = 3 on page tiny" in done.stderr


def test_run_page_checks_before_it_starts_a_kernel(tmp_path):
    with pytest.raises(BookError, match="steps is 'many'"):
        run_page("tiny", tmp_path / "out.ipynb", {"steps": "many"}, folder=FIXTURES)
    assert list(tmp_path.iterdir()) == [], "nothing half-written"
