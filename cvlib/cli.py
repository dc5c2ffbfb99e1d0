"""The command ``cvlib``: assets, pages, runs and the book."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cvlib import __version__
from cvlib.assets.cli import assets
from cvlib.errors import BookError

__all__ = ["commands", "main"]


@click.group(name="cvlib")
@click.version_option(__version__, prog_name="compvis-book")
def commands() -> None:
    """Read, run and test the chapters of the CompVis book."""


commands.add_command(assets)


@commands.group()
def data() -> None:
    """Data sets on your own disk."""


@data.command()
@click.argument("name")
@click.argument("root")
def check(name: str, root: str) -> None:
    """Count what ROOT holds of the data set NAME; exit 1 if it is not what the papers used.

    NAME is cub200, cars196, online_products, cub200_parts, deepfashion, penn_action, pair_list, imagenet or
    animal_faces. Pictures are looked up, not read.
    """
    from cvlib.data.cli import check_counts

    check_counts(name, root)


@data.command()
@click.argument("root")
@click.argument("imagenet")
def faces(root: str, imagenet: str) -> None:
    """Cut the pictures of AnimalFaces, listed in ROOT, out of the training pictures of IMAGENET.

    Faces that lie there already are left: call it again to go on.
    """
    from cvlib.data.animal_faces import cut

    click.echo(f"{cut(root, imagenet):,} faces cut")


@commands.command()
@click.option("--check", is_flag=True, help="Only tell which pairs are not current; exit 1 if any.")
@click.option("--adopt", metavar="PAGE", help="Take the notebook of PAGE, edited in Jupyter, as the source.")
@click.option("--folder", default="notebooks", show_default=True, type=click.Path(file_okay=False))
def sync(check: bool, adopt: str | None, folder: str) -> None:
    """Make every page's notebook from its percent script."""
    from cvlib.pages import pairing

    if adopt:
        click.echo(f"wrote {pairing.adopt(Path(folder) / f'{adopt}.ipynb')}")
        return
    if check:
        wrong = pairing.check(folder)
        for line in wrong:
            click.echo(line)
        if wrong:
            raise click.exceptions.Exit(1)
        return
    for path in pairing.sync(folder):
        click.echo(f"wrote {path}")


@commands.command()
def reword() -> None:
    """Bring the words of executed copies up to their pages, where the code is the one that was run."""
    from cvlib.pages import rewording

    notebooks, chapters = Path("notebooks"), Path("book/chapters")
    for path in rewording.reword(notebooks, chapters):
        click.echo(f"reworded {path}")
    for copy in rewording.copies(notebooks, chapters):
        if copy.changed:
            click.echo(
                f"{copy.path}: {copy.changed} of {copy.n_cells} cells of code have changed since it was run"
            )


def _value(text: str) -> Any:
    """Return a parameter's value by the rule of ``papermill -p``: a constant, an int, a float or the text."""
    constants = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@commands.command(context_settings={"ignore_unknown_options": True})
@click.argument("page")
@click.option("-p", "pairs", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the page.")
@click.option("-f", "file", type=click.Path(dir_okay=False), help="A YAML file of parameters.")
@click.option("-o", "--out", type=click.Path(dir_okay=False), help="Executed copy [runs/pages/PAGE.ipynb].")
@click.option("--processes", default=0, help="Run as a script on so many processes, all machines together.")
@click.option("--machines", default=1, show_default=True, help="Machines that take part.")
@click.argument("launcher", nargs=-1, type=click.UNPROCESSED)
def run(
    page: str,
    pairs: tuple[tuple[str, str], ...],
    file: str | None,
    out: str | None,
    processes: int,
    machines: int,
    launcher: tuple[str, ...],
) -> None:
    """Run PAGE with papermill, or with --processes as a script under accelerate launch.

    Options after the page that are not ours go to accelerate, such as --machine_rank 1.
    """
    from cvlib.pages import running

    values = {name: _value(text) for name, text in pairs}
    if processes or machines > 1:
        status = running.launch(
            page,
            values,
            parameter_file=file,
            processes=processes or machines,
            machines=machines,
            extra=launcher,
        )
        raise click.exceptions.Exit(status)
    if launcher:
        raise BookError(f"option {launcher[0]}", "--processes N with it", "see cvlib run --help")
    target = out or f"runs/pages/{Path(page).stem}.ipynb"
    click.echo(f"executed copy: {running.run_page(page, target, values, parameter_file=file)}")


@commands.command()
@click.argument("chapter")
def report(chapter: str) -> None:
    """Run CHAPTER's pages at report scale; refresh its executed copies and results."""
    from cvlib.pages import running

    for path in running.report(chapter):
        click.echo(f"refreshed {path}")


@commands.command()
@click.argument("chapter")
def verify(chapter: str) -> None:
    """Replay the first steps of CHAPTER's recorded runs whose code has changed; exit 1 if one differs."""
    from cvlib import claims
    from cvlib.pages import running

    page, ledgers = f"{chapter}_claims", [chapter, *claims.follow_ups(chapter)]
    changed = [name for name in ledgers if claims.stale(name)]
    if changed:
        running.run_page(page, f"runs/pages/{page}.replay.ipynb", {"replay": True})
    for name in changed:
        claims.aggregate(name)
    for name in ledgers:
        old = claims.stale(name)
        for arm, seed in old:
            click.echo(f"stale: {arm}, seed {seed}")
        fresh = len(claims.runs(name)) - len(old)
        click.echo(f"{name}: {fresh} runs rest on the code as it is, {len(old)} do not")
    if any(claims.stale(name) for name in ledgers):
        raise click.exceptions.Exit(1)


@commands.command()
@click.option("--out", default="book", show_default=True, type=click.Path(file_okay=False))
@click.option("--with", "extra", multiple=True, type=click.Path(exists=True), help="A fresher executed copy.")
def book(out: str, extra: tuple[str, ...]) -> None:
    """Build the book; executed copies given by --with stand in for the committed ones."""
    from cvlib.pages import book as builder

    click.echo(f"the book: {builder.build(out, [Path(path) for path in extra]).resolve()}")


def main() -> None:
    """Run the command; a mistake of the reader's, and a Ctrl-C, are told in one line."""
    try:
        sys.exit(commands(standalone_mode=False))
    except BookError as error:
        sys.exit(f"cvlib: {error}")
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.exit("cvlib: stopped; run the same command again to go on")
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
