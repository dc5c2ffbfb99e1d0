"""Building the book: sources and generated parts are staged, rendered by jupyter-book and checked.

The staged copy keeps the tree clean: what is generated (tables from results, the API reference, MathJax)
never lies beside what is written.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml

from cvlib.errors import BookError
from cvlib.files import atomic_folder
from cvlib.pages.gallery import cards
from cvlib.pages.reference import package_page, packages
from cvlib.pages.rewording import copies_table

__all__ = ["PAGE_LIMIT", "build", "check_built", "own_size", "stage", "toc_pages"]

PAGE_LIMIT = 1_500_000  # bytes of a page's own content; theme and MathJax are counted apart
FRONT_LIMIT = 300_000
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
ROOT = Path(__file__).parents[2]


def _scoreboard() -> str:
    """Return the scoreboard as HTML, each chapter's name a link to its page where there is one."""
    from cvlib.claims import scoreboard

    with contextlib.redirect_stdout(io.StringIO()):  # it shows itself, and here only the fragment is wanted
        text = scoreboard().html

    def link(match: re.Match[str]) -> str:
        there = (ROOT / "book" / "chapters" / f"{match[1]}.ipynb").is_file()
        return f'<a href="chapters/{match[1]}.html">{match[1]}</a>' if there else match[0]

    text = re.sub(r"<code>(\w+)</code>", link, text)
    text = re.sub(
        r"(?<=>)[^<]+(?=<)", lambda said: said[0].replace("; ", ";<br>"), text
    )  # one verdict a line
    return f'<div class="cv-scoreboard">{text}</div>'


def _generated() -> dict[str, Callable[[], str]]:
    """Return what a mark in a page may ask for, by name."""
    from cvlib.assets import table_markdown

    changes = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n", 1)[1]
    return {
        "scoreboard": _scoreboard,
        "gallery": lambda: cards(ROOT / "book"),
        "copies": lambda: copies_table(ROOT / "notebooks", ROOT / "book" / "chapters"),
        "assets": table_markdown,
        "changelog": lambda: changes,
    }


def _fill(text: str, page: str) -> str:
    """Return a page's text with its marks replaced by what they ask for."""
    if not MARK.search(text):
        return text
    known = _generated()

    def replace(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise BookError(f"mark generated: {match[1]} in {page}", "one of " + ", ".join(sorted(known)))
        return known[match[1]]()

    return MARK.sub(replace, text)


def _checked_copy(path: Path) -> bytes:
    """Return an executed copy's bytes. Raises: BookError if a cell of it shows an error or none was run."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                raise BookError(
                    f"{path} shows {output.ename}: {output.evalue}", "a page without errors", "run it"
                )
    if cells and not any(cell.execution_count for cell in cells):
        raise BookError(f"{path} was never run", "an executed copy", "make report CHAPTER=" + path.stem)
    return path.read_bytes()


def _files(book: Path, extra: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every file of the staged source."""
    for path in sorted(book.rglob("*")):
        name = path.relative_to(book).as_posix()
        if not path.is_file() or name.startswith(("_build/", "results/")):
            continue
        if path.suffix == ".md":
            yield name, _fill(path.read_text("utf-8"), name).encode()
        else:
            yield name, _checked_copy(path) if path.suffix == ".ipynb" else path.read_bytes()
    for path in extra:
        yield f"chapters/{path.name}", _checked_copy(path)
    for package in packages(ROOT / "cvlib"):
        yield f"api/{package}.md", package_page(ROOT / "cvlib", package).encode()


def _mathjax(place: Path) -> None:
    """Put MathJax from the asset cache at ``place``, whole, unless the pinned one is there."""
    from cvlib.assets import ASSETS, fetch

    mark, pin = place / "pinned", ASSETS["mathjax"].sha256
    if mark.is_file() and mark.read_text() == pin:
        return
    shutil.rmtree(place, ignore_errors=True)
    with atomic_folder(place) as aside:
        shutil.copytree(fetch("mathjax", quiet=True), aside, dirs_exist_ok=True)
        (aside / "pinned").write_text(pin)


def stage(book: Path, target: Path, extra: Iterable[Path] = ()) -> Path:
    """Bring ``target`` to hold the book's source with all generated parts; return it.

    Files that stay the same are not touched, so that the next build renders only what changed.
    """
    wanted = dict(_files(book, extra))
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_file() and name not in wanted and not name.startswith("vendor/"):
            path.unlink()
    stale = False
    for name, content in wanted.items():
        path = target / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if path.suffix not in (".md", ".ipynb"):  # Sphinx copies these only when it writes some page
                stale = True
    if stale and (target / "index.md").is_file():
        (target / "index.md").touch()
    _mathjax(target / "vendor" / "mathjax")
    return target


def toc_pages(source: Path) -> list[str]:
    """Return the pages that a staged source's table of contents names, globs resolved, without suffix.

    Raises: BookError naming a page that does not exist.
    """

    def walk(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (str(node[key]) for key in ("root", "file") if key in node)
            if "glob" in node:
                found = sorted(source.glob(f"{node['glob']}.*"))
                yield from (path.relative_to(source).with_suffix("").as_posix() for path in found)
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                yield from walk(item)

    pages = list(walk(yaml.safe_load((source / "_toc.yml").read_text("utf-8"))))
    for page in pages:
        if not any((source / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")):
            raise BookError(
                f"_toc.yml names {page}", "a page that exists", "make report, or take the line out"
            )
    return pages


def own_size(page: Path) -> int:
    """Return the bytes of a built page with the pictures and data of its own that it loads."""
    text = page.read_text("utf-8")
    size = len(text.encode())
    for link in sorted(
        set(re.findall(r'(?:src|data)="((?:\.\./)*(?:_images|_downloads|_static/data)/[^"]+)"', text))
    ):
        size += (page.parent / unquote(link)).stat().st_size
    return size


def check_built(html: Path, pages: list[str]) -> None:
    """Check that every page was built and is within its size. Raises: BookError naming the page."""
    for number, name in enumerate(pages):
        page = html / f"{name}.html"
        if not page.is_file():
            raise BookError(f"{page} was not built", "every page of _toc.yml")
        size, limit = own_size(page), FRONT_LIMIT if number == 0 else PAGE_LIMIT
        if size > limit:
            raise BookError(f"{page} has {size / 1e3:.0f} kB of its own", f"at most {limit / 1e3:.0f} kB")


def build(out: str | Path = "book", extra: Iterable[Path] = ()) -> Path:
    """Build the book into ``out/_build/html`` with warnings as errors; return its front page.

    ``extra`` executed copies stand in for the committed ones of the same name.

    Raises: BookError: a page missing, too large or showing an error; a warning of the renderer.
    """
    if not (ROOT / "_config.yml").is_file():
        raise BookError(f"no _config.yml in {ROOT}", "the repository", "the book is built in a clone of it")
    built = (Path(out) / "_build").resolve()
    source = stage(ROOT / "book", built / "source", extra)
    pages = toc_pages(source)
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(source)]
    places = {"--path-output": out, "--config": ROOT / "_config.yml", "--toc": source / "_toc.yml"}
    command = [*program, *(str(word) for pair in places.items() for word in pair)]
    command += ["-q", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(built / ".doctrees", ignore_errors=True)  # else the next call finds nothing to warn of
        print(done.stdout + done.stderr, file=sys.stderr)
        raise BookError("jupyter-book refused the book", "no warning", "see its lines above")
    check_built(built / "html", pages)
    (built / "pages.json").write_text(json.dumps(pages))
    return built / "html" / f"{pages[0]}.html"
