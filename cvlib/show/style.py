"""One look for every figure: a grid of sizes, colours with a fixed meaning, lines that say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

from cvlib.errors import BookError

__all__ = ["COLOURS", "EMOJI_SETS", "LINES", "MARKERS", "STYLE", "WIDTHS", "figure", "look"]

STYLE = Path(__file__).with_name("book.mplstyle")

#: Width in inches; an inch is 100 CSS pixels, so "half" fills a phone and "full" a column of the book.
WIDTHS: dict[str, float] = {"full": 6.4, "half": 3.4}

#: What a colour means on every page: the roles after Okabe and Ito, the sets in Tol's "muted".
COLOURS: dict[str, str] = {
    "ours": "#0072B2",
    "paper": "#000000",
    "baseline": "#D55E00",
    "control": "#949494",
    "real": "#006B4A",
    "noto": "#332288",
    "noto-v1": "#88CCEE",
    "twemoji": "#117733",
    "openmoji": "#DDCC77",
    "fluent-emoji": "#CC6677",
    "fluent-emoji-flat": "#882255",
    "emojione": "#44AA99",
    "emojione-v1": "#999933",
    "fxemoji": "#AA4499",
}

#: The nine emoji sets, in the order of every figure and table.
EMOJI_SETS = tuple(COLOURS)[5:]

#: The line style repeats the colour's message, for print and for readers who see colours otherwise.
LINES: dict[str, Any] = {
    "ours": "-",
    "paper": "--",
    "baseline": "-.",
    "control": ":",
    "real": (0, (6, 1.5)),
    **dict.fromkeys(EMOJI_SETS, "-"),
}
MARKERS: dict[str, str] = dict(zip(COLOURS, "osD^voPsXD^v<*", strict=True))


def look(name: str, *, marker: bool = False) -> dict[str, Any]:
    """Return the keywords for ``ax.plot`` that give a role or an emoji set its colour and line.

    Args: name: one of :data:`COLOURS`; marker: add the marker that belongs to it.
    Raises: BookError for a name without a meaning.

    >>> look("paper")
    {'color': '#000000', 'linestyle': '--'}
    """
    if name not in COLOURS:
        raise BookError(f"{name!r} has no colour", f"one of {', '.join(COLOURS)}")
    keywords = {"color": COLOURS[name], "linestyle": LINES[name]}
    return {**keywords, "marker": MARKERS[name]} if marker else keywords


def figure(
    width: Literal["full", "half"] = "full",
    height: float | None = None,
    *,
    rows: int = 1,
    columns: int = 1,
    **subplots: Any,
) -> tuple[Figure, Any]:
    """Return ``(figure, axes)`` of the book's size and style; hand the figure to :func:`cvlib.show.show`.

    The figure is not registered with pyplot, so a notebook does not draw it a second time without alt text.

    Args: width: "full" (640 px) or "half" (340 px); height: inches, by default 0.62 of one panel's width;
        rows, columns: panels (then axes is an array); subplots: passed to ``Figure.subplots``.
    """
    if width not in WIDTHS:
        raise BookError(f"figure width {width!r}", " or ".join(map(repr, WIDTHS)))
    if matplotlib.rcParams["savefig.dpi"] != 200:
        matplotlib.style.use(STYLE)
    inches = WIDTHS[width]
    fig = Figure(figsize=(inches, height or 0.62 * inches * rows / columns))
    return fig, fig.subplots(rows, columns, **subplots)
