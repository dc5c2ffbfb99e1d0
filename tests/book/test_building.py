"""Staging and checking the book: every fault stops the build with one line, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import yaml

from cvlib.assets import ASSETS
from cvlib.errors import BookError
from cvlib.pages import book
from cvlib.pages.reference import package_page

ROOT = Path(__file__).parents[2]


def executed(path: Path, *outputs: nbformat.NotebookNode, count: int | None = 1) -> Path:
    cell = nbformat.v4.new_code_cell("1", outputs=list(outputs), execution_count=count)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page"), cell])
    page.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    nbformat.write(page, path)
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    """Return a tiny book with one chapter, and a stand-in for MathJax so that nothing is fetched."""
    folder = tmp_path / "book"
    executed(folder / "chapters" / "taming.ipynb")
    (folder / "index.md").write_text("# Front\n\n<!-- generated: changelog -->\n")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n  - file: chapters/taming\n")
    (folder / "results").mkdir()
    (folder / "results" / "taming.json").write_text("{}")
    stand_in(tmp_path / "stage")
    return folder


def stand_in(stage: Path) -> Path:
    """Put something that counts as the pinned MathJax into a staged source; return its folder."""
    place = stage / "vendor" / "mathjax"
    place.mkdir(parents=True)
    (place / "pinned").write_text(ASSETS["mathjax"].sha256)
    return place


def test_mathjax_is_brought_whole_and_anew_with_another_pin(source, tmp_path, monkeypatch):
    place = tmp_path / "stage" / "vendor" / "mathjax"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tex.js").write_text("new")
    monkeypatch.setattr("cvlib.assets.fetch", lambda name, quiet: tmp_path / "cache")
    book.stage(source, tmp_path / "stage")
    assert not (place / "tex.js").exists()  # the pinned one is there
    (place / "pinned").write_text("another")
    (place / "old.js").write_text("old")
    book.stage(source, tmp_path / "stage")
    assert sorted(path.name for path in place.iterdir()) == ["pinned", "tex.js"]
    (place / "pinned").unlink()  # what was interrupted does not count
    (place / "tex.js").write_text("ha")
    book.stage(source, tmp_path / "stage")
    assert (place / "tex.js").read_text() == "new"


def test_staging_fills_marks_and_leaves_the_source_alone(source, tmp_path):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    target = book.stage(source, tmp_path / "stage")
    text = (target / "index.md").read_text()
    assert "generated:" not in text
    assert "Unreleased" in text
    assert (target / "api" / "pages.md").is_file()
    assert not (target / "results").exists(), "evidence is read, not rendered"
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_staging_again_touches_only_what_changed(source, tmp_path):
    target = book.stage(source, tmp_path / "stage")
    kept = (target / "chapters" / "taming.ipynb").stat().st_mtime_ns
    (source / "index.md").write_text("# Other\n")
    (target / "old.md").write_text("# No longer in the source\n")
    book.stage(source, target)
    assert (target / "chapters" / "taming.ipynb").stat().st_mtime_ns == kept
    assert (target / "index.md").read_text() == "# Other\n"
    assert not (target / "old.md").exists()


def test_a_fresher_copy_stands_in_for_the_committed_one(source, tmp_path):
    fresh = executed(tmp_path / "quick" / "taming.ipynb", nbformat.v4.new_output("stream", text="quick run"))
    target = book.stage(source, tmp_path / "stage", [fresh])
    assert "quick run" in (target / "chapters" / "taming.ipynb").read_text()


def test_a_copy_that_shows_an_error_is_refused(source, tmp_path):
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["x"])
    executed(source / "chapters" / "taming.ipynb", error)
    with pytest.raises(BookError, match=r"taming.ipynb shows ValueError: no"):
        book.stage(source, tmp_path / "stage")


def test_a_page_that_never_ran_is_refused(source, tmp_path):
    executed(source / "chapters" / "taming.ipynb", count=None)
    with pytest.raises(BookError, match=r"taming.ipynb was never run"):
        book.stage(source, tmp_path / "stage")


def test_an_unknown_mark_is_refused(source, tmp_path):
    (source / "index.md").write_text("<!-- generated: score -->\n")
    with pytest.raises(
        BookError,
        match=r"generated: score in index.md; wanted one of assets, changelog, copies, gallery, scoreboard",
    ):
        book.stage(source, tmp_path / "stage")


def test_the_contents_name_pages_that_exist(source, tmp_path):
    target = book.stage(source, tmp_path / "stage")
    assert book.toc_pages(target) == ["index", "chapters/taming"]
    (target / "_toc.yml").write_text("root: index\nchapters:\n  - file: chapters/gone\n  - glob: api/*\n")
    with pytest.raises(BookError, match=r"_toc.yml names chapters/gone"):
        book.toc_pages(target)


def test_a_page_too_large_or_missing_is_refused(tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.png").write_bytes(b"0" * 200_000)
    (tmp_path / "index.html").write_text('<img src="_images/a.png"><img src="_images/a.png">' + "x" * 50_000)
    (tmp_path / "big.html").write_text("x" * (book.PAGE_LIMIT + 1))
    assert book.own_size(tmp_path / "index.html") == pytest.approx(250_000, abs=100)  # one picture, once
    book.check_built(tmp_path, ["index"])
    with pytest.raises(BookError, match=r"big.html has 1500 kB of its own; wanted at most 300 kB"):
        book.check_built(tmp_path, ["big", "index"])
    with pytest.raises(BookError, match=r"big.html has 1500 kB of its own; wanted at most 1500 kB"):
        book.check_built(tmp_path, ["index", "big"])
    with pytest.raises(BookError, match=r"gone.html was not built"):
        book.check_built(tmp_path, ["index", "gone"])


def test_every_page_of_the_project_is_in_the_contents():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))
    listed = yaml.safe_dump(contents)
    planned = (ROOT / "README.md").read_text("utf-8").partition("not yet in the book:")[2].split(".\n")[0]
    for page in (ROOT / "notebooks").glob("*.py"):
        is_executed = (ROOT / "book" / "chapters" / f"{page.stem}.ipynb").is_file()
        assert is_executed == (f"chapters/{page.stem}\n" in listed), page.stem
        assert is_executed != (f"`{page.stem}`" in planned), page.stem
    for page in (ROOT / "book").rglob("*.md"):
        name = page.relative_to(ROOT / "book").with_suffix("").as_posix()
        assert name.startswith(("_build/", "results/")) or f" {name}\n" in listed, name


PART = '''
"""Part."""
__all__ = ["f", "C"]

def f(a: int, *, b: float = 1.0) -> str:
    """Return *a* | $b$ in ``x_1``.

    >>> f(1)
    2
    """

def hidden():
    """Not public."""

class C:
    """A class."""
    n: int
    _m: int

    def go(self, k: int) -> None:
        """Go."""
'''


@pytest.mark.slow
def test_a_warning_of_the_renderer_stops_the_build(source, tmp_path, monkeypatch, capfd):
    """One reference to a page that does not exist: -W turns it into a failure, told with its line."""
    (source / "index.md").write_text("# Front\n\n{doc}`no_such_page`\n")
    (source / "references.bib").write_text("")
    root = tmp_path
    (source / "assets").mkdir()
    (source / "assets" / "book.css").write_text("p { color: red }")
    static = "sphinx:\n  config:\n    html_static_path: [assets]\n    html_css_files: [book.css]\n"
    (root / "_config.yml").write_text(f"title: T\nexecute:\n  execute_notebooks: 'off'\n{static}")
    (root / "CHANGELOG.md").write_text("# C\n\nx\n")
    (root / "cvlib").mkdir()
    monkeypatch.setattr(book, "ROOT", root)
    stand_in(root / "out" / "_build" / "source")
    for _ in range(2):  # a second call is no more lenient than the first
        with pytest.raises(BookError, match="jupyter-book refused the book"):
            book.build(root / "out")
    assert "no_such_page" in capfd.readouterr().err
    (source / "index.md").write_text("# Front\n\nNothing is wrong here.\n")
    assert book.build(root / "out").read_text().count("Nothing is wrong here") >= 1
    (source / "assets" / "book.css").write_text("p { color: teal }")  # no page changed, only its look
    book.build(root / "out")
    assert (root / "out" / "_build" / "html" / "_static" / "book.css").read_text() == "p { color: teal }"


def test_the_reference_survives_any_docstring(tmp_path):
    """Docstrings are prose for a terminal; stars, pipes and dollars in them must not become mark-up."""
    package = tmp_path / "lib"
    package.mkdir()
    (package / "__init__.py").write_text('"""A library."""\n')
    (package / "part.py").write_text(PART)
    page = package_page(package, "part")
    assert "{py:function} lib.part.f(a: int, *, b: float=1.0) -> str" in page
    assert r"Return \*a\* \| \$b\$ in ``x_1``." in page
    assert "```pycon\n>>> f(1)\n2\n```" in page
    assert "{py:method} go(k: int) -> None" in page
    assert "n: int" in page
    assert "_m" not in page
    assert "hidden" not in page
