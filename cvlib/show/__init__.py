"""One look for every figure, table and slider of the book; all of it readable by eye and by ear.

Each function puts its output on the page when called and returns it as an :class:`Output`.
"""

from __future__ import annotations

from cvlib.show.figures import grid, picture, show, to_uint8
from cvlib.show.interactive import animation, explorer
from cvlib.show.output import LIMIT, Output
from cvlib.show.searching import search
from cvlib.show.style import COLOURS, EMOJI_SETS, LINES, MARKERS, STYLE, WIDTHS, figure, look
from cvlib.show.text import cell_text, credits, folded, say, table, table_html

__all__ = [
    "COLOURS",
    "EMOJI_SETS",
    "LIMIT",
    "LINES",
    "MARKERS",
    "STYLE",
    "WIDTHS",
    "Output",
    "animation",
    "cell_text",
    "credits",
    "explorer",
    "figure",
    "folded",
    "grid",
    "look",
    "picture",
    "say",
    "search",
    "show",
    "table",
    "table_html",
    "to_uint8",
]
