"""Running a page: by papermill as a notebook, or as a script under accelerate on several processes."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import jupytext
import nbformat
import papermill
import psutil
import yaml
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from cvlib.errors import BookError
from cvlib.files import atomic_path, atomic_write
from cvlib.pages.parameters import check_parameters, notebook_parameters

__all__ = ["chapter_pages", "fold_progress", "launch", "report", "run_page"]

_PROGRESS = re.compile(r"(\S+) +\d+/\d+  ")  # what a run prints at each interval


def _source(page: str | Path, folder: Path) -> Path:
    """Return the notebook of a page given by name or path. Raises: BookError listing what exists."""
    path = Path(page)
    source = path if path.suffix == ".ipynb" else folder / f"{page}.ipynb"
    if source.is_file():
        return source
    names = ", ".join(sorted(found.stem for found in folder.glob("*.ipynb"))) or "none"
    raise BookError(
        f"{source} does not exist", f"a page of {folder}: {names}", "run in the repository's root"
    )


def _parameters(file: str | Path | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the values of a parameter file with ``given`` over them."""
    values: Any = {}
    if file:
        if not Path(file).is_file():
            raise BookError(f"parameter file {file} does not exist", "a YAML file of name: value lines")
        values = yaml.safe_load(Path(file).read_text("utf-8")) or {}
        if not isinstance(values, dict):
            raise BookError(f"parameter file {file} holds a {type(values).__name__}", "name: value lines")
    return {**values, **(given or {})}


@contextmanager
def _environment(extra: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the kernel that starts inside the block."""
    before = {name: os.environ.get(name) for name in extra}
    os.environ.update(extra)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _interrupting() -> Iterator[None]:
    """Hand Ctrl-C to the kernel, where the training saves and stops; a second one is obeyed here.

    Raised here, in the midst of messages from the kernel, it would be lost now and then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def hand_on(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _told(error: PapermillExecutionError, page: str) -> BookError:
    """Return one line for an error in a cell: ours as it is, others with the cell that raised them."""
    if error.ename == "BookError":
        return BookError(error.evalue)
    return BookError(f"{error.ename} in cell {error.exec_count} of page {page}: {error.evalue}")


def run_page(
    page: str | Path,
    out: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    parameter_file: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    folder: str | Path = "notebooks",
    log: bool = True,
) -> Path:
    """Run a page with papermill and return the path of its executed copy.

    ``parameters`` go over those of ``parameter_file``; both are checked before a kernel starts. With ``log``
    the screen shows what the cells print. When a cell fails, the copy up to there is kept, since its outputs
    are the evidence.

    Raises: BookError in one line: an unknown page or parameter, or the error of the cell that failed;
    KeyboardInterrupt after Ctrl-C, when the cell has stopped.
    """
    source, target = _source(page, Path(folder)), Path(out)
    values = _parameters(parameter_file, parameters)
    check_parameters(values, notebook_parameters(nbformat.read(source, as_version=4))[0], source.stem)
    if target.resolve() == source.resolve():
        raise BookError(f"{target} is the source of the page", "another place for the executed copy")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _environment(env or {}), _interrupting():
            papermill.execute_notebook(
                source,
                target,
                values,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout
                if log
                else None,  # what cells print, so that one sees a training go on
                stderr_file=sys.stderr if log else None,
                extra_arguments=[f"--log-level={logging.CRITICAL}"],  # the kernel's; a page speaks for itself
            )
    except PapermillExecutionError as error:
        if error.ename in ("KeyboardInterrupt", "Interrupted"):
            raise KeyboardInterrupt(error.evalue) from None
        raise _told(error, source.stem) from None
    return target


def launch(
    page: str | Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    parameter_file: str | Path | None = None,
    processes: int = 1,
    machines: int = 1,
    folder: str | Path = "notebooks",
    script: str | Path | None = None,
    extra: tuple[str, ...] = (),
) -> int:
    """Run a page as a script under ``accelerate launch``; return the launcher's exit status.

    The script is written from the same notebook, parameters injected as papermill would. Training code in
    ``cvlib.train`` finds the processes by itself. ``extra`` goes to ``accelerate launch`` unchanged (a
    cluster's ``--machine_rank``, ``--main_process_ip`` and so on).
    """
    source = _source(page, Path(folder))
    notebook = load_notebook_node(str(source))
    values = _parameters(parameter_file, parameters)
    check_parameters(values, notebook_parameters(notebook)[0], source.stem)
    path = Path(script or Path("runs") / "scripts" / f"{source.stem}.py")
    atomic_write(path, _script(parameterize_notebook(notebook, values) if values else notebook))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    command += [f"--num_processes={processes}", f"--num_machines={machines}", *extra]
    environment = {**os.environ, "CVLIB_STATIC": "1", "MPLBACKEND": "agg"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    if processes > 1:
        command.append("--multi_gpu")  # accelerate's word for torch.distributed.run, on CPUs as well
        if not _has_cuda():
            environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.run([*command, str(path)], env=environment, check=False).returncode


def _script(notebook: Any) -> str:
    """Return a parametrised notebook as a percent script that keeps tags and drops all other metadata."""
    notebook.metadata = nbformat.from_dict({"jupytext": {"notebook_metadata_filter": "-all"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.tags else {})
    return str(jupytext.writes(notebook, fmt="py:percent"))


def _has_cuda() -> bool:
    import torch  # slow to import, and only this question needs it here

    return bool(torch.cuda.is_available())


def chapter_pages(chapter: str, folder: str | Path = "notebooks") -> list[str]:
    """Return the names of a chapter's pages, story first, evidence last. Raises: BookError if it has none."""
    _source(chapter, Path(folder))
    more = sorted(path.stem for path in Path(folder).glob(f"{chapter}_*.ipynb"))
    return [chapter, *sorted(more, key=lambda name: name == f"{chapter}_claims")]


def fold_progress(text: str) -> str:
    """Return printed lines with only the first and the last of each run's progress, and how many are between.

    >>> print(fold_progress("run  1/4  a\\nrun  2/4  b\\nrun  3/4  c\\nrun  4/4  d\\nrun  done"))
    run  1/4  a
    run  ... 2 more lines ...
    run  4/4  d
    run  done
    """
    folded: list[str] = []
    block: list[str] = []

    def close() -> None:
        if len(block) > 3:
            name = _PROGRESS.match(block[0])
            assert name is not None
            block[1:-1] = [f"{name[1]}  ... {len(block) - 2} more lines ...\n"]
        folded.extend(block)
        block.clear()

    for line in text.splitlines(keepends=True):
        found = _PROGRESS.match(line)
        if block and (found is None or not block[0].startswith(found[1] + " ")):
            close()
        (folded if found is None else block).append(line)
    close()
    return "".join(folded)


def _clean(executed: Path, target: Path) -> None:
    """Write an executed copy without what belongs to the machine (paths, timings) and walls of progress."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        outputs: list[Any] = []
        for output in cell.get("outputs", []):  # a kernel cuts what is printed into pieces at will
            before = outputs[-1] if outputs else None
            if output.output_type == "stream" and before is not None and before.get("name") == output.name:
                before.text += output.text
            else:
                outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                output.text = fold_progress(output.text)
        if outputs:
            cell.outputs = outputs
    with atomic_path(target) as aside:
        nbformat.write(notebook, aside)


def report(chapter: str, *, folder: str | Path = "notebooks", book: str | Path = "book") -> list[Path]:
    """Run a chapter's pages at report scale and refresh their executed copies in the book.

    Runs that were begun go on where they stopped, since the pages find their run folders; the claims page
    records what is missing and aggregates the chapter's results.

    Raises: BookError naming the page and what failed; the copies of before then stay.
    """
    done = []
    for page in chapter_pages(chapter, folder):
        file = Path(folder) / "params" / f"{page}.report.yaml"
        draft = Path("runs") / "report" / f"{page}.ipynb"
        known = file if file.is_file() else None
        run_page(page, draft, parameter_file=known, env={"CVLIB_STATIC": "1"}, folder=folder)
        target = Path(book) / "chapters" / f"{page}.ipynb"
        _clean(draft, target)
        done.append(target)
    return done
