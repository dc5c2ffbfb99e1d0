"""A search box that needs neither a kernel nor a network: queries, their answers, one sprite."""

from __future__ import annotations

import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from cvlib.errors import BookError
from cvlib.show.figures import grid, to_uint8
from cvlib.show.output import Output, card, checked_alt, data_uri, framed

__all__ = ["search"]

_TILE = 56  # CSS pixels


def search(
    images: Any,
    queries: Sequence[tuple[str, int]],
    answers: Mapping[str, Sequence[Sequence[tuple[int, bool]]]],
    alt: str,
    caption: str = "",
    *,
    quality: int | None = 80,
) -> Output:
    """Show a box in which the reader types a query's name, and rows of precomputed answers.

    Args: images: square pictures (N, 3, S, S) in [-1, 1], each once; queries: (name, its picture's number);
        answers: for each way of answering, named, and each query the pictures and whether each is right;
        quality: lossy WebP of the sprite, None for lossless.
    Right answers have a solid rim, wrong ones a dotted one, and their count is said in words.
    Raises: BookError for numbers that name no picture, for ways with another number of queries, or if nothing
    is asked.
    """
    alt, array = checked_alt(alt), to_uint8(images)
    if not queries or not answers or any(len(way) != len(queries) for way in answers.values()):
        seen = f"{len(queries)} queries, answers for {[len(way) for way in answers.values()]}"
        raise BookError(seen, "at least one query, and answers for each")
    named = [at for _, at in queries] + [at for way in answers.values() for row in way for at, _ in row]
    if min(named) < 0 or max(named) >= len(array):
        raise BookError(f"pictures {min(named)} to {max(named)}", f"0 to {len(array) - 1}")
    columns = math.ceil(math.sqrt(len(array)))
    uri = data_uri(grid(array, columns, gap=0), quality)
    rows = -(-len(array) // columns)
    config = {
        "names": list(answers),
        "queries": [[name, at] for name, at in queries],
        "answers": [[[[at, int(right)] for at, right in row] for row in way] for way in answers.values()],
        "columns": columns,
        "rows": rows,
        "size": _TILE,
    }
    data = json.dumps(config, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    name = "cv-" + hashlib.sha256((uri + data).encode()).hexdigest()[:12]
    script = files("cvlib.show").joinpath("search.js").read_text(encoding="utf-8")
    script = "".join(line.strip() + "\n" for line in script.splitlines() if not line.startswith("//"))
    script = script.replace("$ID", name).replace("$CONFIG", data)
    options = "".join(f'<option value="{html.escape(text)}">' for text in sorted({q for q, _ in queries}))
    controls = (
        '<div class="cv-controls" hidden style="display:flex;flex-wrap:wrap;gap:.6em;align-items:center">'
        f'<label>search <input list="{name}-list" value="{html.escape(queries[0][0])}" '
        'style="font:inherit;padding:.1em .4em;max-width:60%"></label>'
        f'<datalist id="{name}-list">{options}</datalist>'
        '<button type="button" style="font:inherit;padding:.1em .8em">any</button></div>'
    )
    # the sprite is only a source for the tiles; one pixel of it keeps it loaded
    hidden = "position:absolute;width:1px;height:1px;opacity:0"
    store = f'<img alt="" class="dark-light" src="{uri}" style="{hidden}">'
    inner = (
        f'<div role="group" aria-label="{html.escape(alt)}">{controls}'
        '<div class="cv-said" aria-live="polite" style="margin:.4em 0"></div>'
        f'<div class="cv-answers"></div>{store}</div><noscript>The search needs JavaScript.</noscript>'
    )
    widest = max(len(row) for way in answers.values() for row in way) + 1
    root = f'<div data-cv="{name}" style="position:relative;font-size:14px;line-height:1.4">{inner}</div>'
    body = card(root, widest * (_TILE + 8) + 100)
    return Output(framed(body, caption) + f"<script>{script}</script>", alt).emit()
