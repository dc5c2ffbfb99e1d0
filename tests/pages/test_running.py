"""Running a page: papermill, parameter files, errors in one line, two processes, report copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest

from cvlib.errors import BookError
from cvlib.pages import report, run_page
from cvlib.pages.running import chapter_pages, fold_progress, launch

FIXTURES = Path(__file__).parent / "fixtures"


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", ()))


def test_parameters_file_and_environment_reach_the_page(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("steps: 8\nrate: 2\n")
    out = run_page(
        "tiny", tmp_path / "out.ipynb", {"steps": 6}, parameter_file=file, env={"CVLIB_SMOKE": "1"},
        folder=FIXTURES, log=False,
    )  # fmt: skip
    assert "smoke False 6 3 12" in printed(out)  # -p wins over -f; the derived value follows


def test_the_error_of_a_cell_is_one_line_and_the_copy_stays(tmp_path):
    with pytest.raises(BookError, match=r"^AssertionError in cell \d of page tiny: broken$"):
        run_page("tiny", tmp_path / "out.ipynb", {"data": "broken"}, folder=FIXTURES, log=False)
    assert "full" in printed(tmp_path / "out.ipynb")


@pytest.mark.parametrize(
    ("page", "options", "wanted"),
    [
        ("tinny", {}, r"tinny.ipynb does not exist; wanted a page of .*: tiny"),
        ("tiny", {"parameter_file": "none.yaml"}, "parameter file none.yaml does not exist"),
        ("tiny", {"parameters": {"stepz": 1}}, "unknown parameter stepz"),
    ],
)
def test_bad_input_is_told_before_anything_runs(tmp_path, page, options, wanted):
    with pytest.raises(BookError, match=wanted):
        run_page(page, tmp_path / "out.ipynb", folder=FIXTURES, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_file_that_is_a_list_is_refused(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("- steps\n")
    with pytest.raises(BookError, match="holds a list"):
        run_page("tiny", tmp_path / "out.ipynb", parameter_file=file, folder=FIXTURES)


def test_a_source_is_never_overwritten(tmp_path):
    shutil.copy(FIXTURES / "tiny.ipynb", tmp_path)
    with pytest.raises(BookError, match="is the source of the page"):
        run_page("tiny", tmp_path / "tiny.ipynb", folder=tmp_path)


def test_two_processes_run_the_parametrised_script(tmp_path, capfd):
    script = tmp_path / "tiny.py"
    assert launch("tiny", {"steps": 6}, processes=2, folder=FIXTURES, script=script) == 0
    assert capfd.readouterr().out.count("full True 6 3 3.0") == 1  # only the first one prints
    assert "jupyter" not in script.read_text()


def test_report_refreshes_the_copy_without_traces_of_the_machine(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "params").mkdir(parents=True)
    shutil.copy(FIXTURES / "tiny.ipynb", tmp_path / "notebooks")
    (tmp_path / "notebooks" / "params" / "tiny.report.yaml").write_text("steps: 9\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (copy,) = report("tiny")
    assert copy == Path("book/chapters/tiny.ipynb")
    assert "full True 9 4 4.5" in printed(copy)
    assert str(tmp_path) not in copy.read_text()
    assert "papermill" not in nbformat.read(copy, as_version=4).metadata
    before = copy.read_bytes()
    (tmp_path / "notebooks" / "params" / "tiny.report.yaml").write_text("data: broken\n")
    with pytest.raises(BookError, match="AssertionError"):
        report("tiny")
    assert copy.read_bytes() == before, "a failed report leaves the copy of before"


def test_a_chapter_is_its_story_its_other_pages_and_its_evidence(tmp_path):
    for name in ("far", "tiny_claims", "tiny", "tiny_zoom", "tiny_close", "tinyest"):
        (tmp_path / f"{name}.ipynb").touch()
    assert chapter_pages("tiny", tmp_path) == ["tiny", "tiny_close", "tiny_zoom", "tiny_claims"]
    assert chapter_pages("far", tmp_path) == ["far"]
    with pytest.raises(BookError, match="near"):
        chapter_pages("near", tmp_path)


def test_progress_is_folded_run_by_run_and_nothing_else_is_lost():
    rows = [f"vqgan-1a  {k}/9  loss 0.{k}\n" for k in range(1, 10)] + [
        f"gpt-2b  {k}/3  nll {k}\n" for k in (1, 2, 3)
    ]
    text = "cpu\n" + "".join(rows[:9]) + "vqgan-1a  done: 9 steps\n" + "".join(rows[9:]) + "end"
    folded = fold_progress(text)
    assert folded.splitlines() == [
        "cpu", rows[0].rstrip(), "vqgan-1a  ... 7 more lines ...", rows[8].rstrip(),
        "vqgan-1a  done: 9 steps",
        *(row.rstrip() for row in rows[9:]), "end",
    ]  # fmt: skip
    assert fold_progress(folded) == folded and fold_progress("1/2 of it\n") == "1/2 of it\n"
    joined = fold_progress("".join(rows[:9] + rows[9:]))  # one run right after another
    assert joined.count("more lines") == 1 and joined.endswith("".join(rows[9:]))
