"""Words and numbers: tables that scroll on a phone, sentences filled from results, credits."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvlib.errors import BookError
from cvlib.show.output import Output, inline

__all__ = ["cell_text", "credits", "folded", "say", "table", "table_html"]


def cell_text(value: Any, digits: int = 3) -> str:
    """Return a table cell as text: floats to ``digits`` significant digits, a dash for what is missing.

    >>> [cell_text(v) for v in (0.123456, 1234567.0, 17372, True, None, float("nan"), "noto")]
    ['0.123', '1.23e+06', '17,372', 'yes', '–', '–', 'noto']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        whole = digits <= math.log10(abs(value)) + 1 < 6 if value else False
        return f"{value:,.0f}" if whole else f"{value:.{digits}g}"
    return str(value)


def table_html(
    rows: Iterable[Sequence[Any]], header: Sequence[str], *, caption: str = "", digits: int = 3
) -> str:
    """Return an HTML table; numbers are set flush right, wide tables scroll by themselves."""
    rows = [list(row) for row in rows]
    for row in rows:
        if len(row) != len(header):
            raise BookError(f"a table row of {len(row)} cells ({row})", f"{len(header)} as in {list(header)}")
    sides = ["right" if rows and all(map(_is_number, cells)) else "left" for cells in _columns(rows, header)]

    def line(tag: str, cells: Sequence[str], scope: str = "") -> str:
        style = "padding:.3em .8em;vertical-align:top;font-variant-numeric:tabular-nums"
        parts = []
        for cell, side in zip(cells, sides, strict=True):
            room = ";min-width:14em" if len(cell) > 40 else ""  # words, not letters, on a phone
            parts.append(
                f'<{tag}{scope} style="{style};text-align:{side}{room}">{_with_breaks(cell)}</{tag}>'
            )
        return f"<tr>{''.join(parts)}</tr>"

    head = line("th", list(header), ' scope="col"')
    body = "".join(line("td", [cell_text(cell, digits) for cell in row]) for row in rows)
    name = f'<caption style="caption-side:top;text-align:left">{inline(caption)}</caption>' if caption else ""
    label = html.escape(caption or ", ".join(header))
    return (
        f'<div class="cv-table" role="region" aria-label="{label}" tabindex="0" '
        'style="overflow-x:auto;max-width:100%;margin:1em 0">'
        f'<table class="table" style="width:auto;margin:0;border-collapse:collapse;font-size:.9em">{name}'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _columns(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(len(header))]


def table(
    rows: Iterable[Sequence[Any]], header: Sequence[str], *, caption: str = "", digits: int = 3
) -> Output:
    """Show a table of text (`code`, **bold**, *emphasis*, links, line breaks), numbers, booleans, None.

    Raises: BookError if a row does not have as many cells as the header.
    """
    rows = [list(row) for row in rows]
    page = table_html(rows, header, caption=caption, digits=digits)
    cells = [[cell_text(cell, digits).replace("\n", "; ") for cell in row] for row in rows]
    lines = [list(header), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    plain = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return Output(page, "\n".join([caption] * bool(caption) + plain)).emit()


def folded(title: str, entries: Mapping[str, str]) -> Output:
    """Show what few readers need: one line to unfold, with a list of terms and what is said of each.

    Args: entries: term to text; both may carry `code`, **bold**, *emphasis* and line breaks.
    Raises: BookError if there is nothing to unfold.
    """
    if not entries:
        raise BookError(f"nothing to fold under {title!r}", "one entry or more")
    body = "".join(
        f"<dt>{_with_breaks(term)}</dt><dd>{_with_breaks(text)}</dd>" for term, text in entries.items()
    )
    page = (
        '<details class="cv-folded" style="margin:1em 0"><summary style="cursor:pointer">'
        f'{inline(title)}</summary><dl style="margin:.6em 0 0;max-width:52em;font-size:.9em">'
        f"{body}</dl></details>"
    )
    plain = [f"{term}: {text}".replace("\n", "; ") for term, text in entries.items()]
    return Output(page, "\n".join([title, *plain])).emit()


def _with_breaks(text: str) -> str:
    return inline(text).replace("\n", "<br>")


def say(template: str, **values: Any) -> Output:
    """Show markdown whose numbers come from results: ``say("falls by {d:.1f} dB", d=delta)``.

    Without values the text is shown as it is, braces and all (LaTeX, f-strings).
    Raises: BookError if a value is missing, unused or not finite: a sentence never carries a broken number.
    """
    if values:
        broken = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        unused = [k for k in values if "{" + k not in template]
        if broken or unused:
            kind = f"not finite: {broken}" if broken else f"never named in the text: {unused}"
            raise BookError(f"say() got values {kind}", "finite values that the text names")
        try:
            template = template.format(**values)
        except (KeyError, IndexError) as error:
            raise BookError(f"say() lacks a value for {error}", f"one of {sorted(values)}") from error
    return Output("", template, template).emit()


def credits(*assets: str) -> Output:
    """Show one line that names what a page's pictures are made from, with licences, from the asset table.

    Args: assets: names of assets or groups ("emoji"); a group is written out.
    Raises: BookError for an unknown name.
    """
    from cvlib.assets import ASSETS, GROUPS

    parts: list[str] = []
    for name in dict.fromkeys(member for asset in assets for member in GROUPS.get(asset, (asset,))):
        if name not in ASSETS:
            raise BookError(f"unknown asset {name!r}", f"one of {', '.join([*GROUPS, *ASSETS])}")
        parts.append(f"{ASSETS[name].credit} ({ASSETS[name].licence})")
    text = "Made from " + "; ".join(parts) + ". Figures: CC BY-SA 4.0."
    return Output(f'<p class="cv-credits" style="font-size:.8em;opacity:.8">{inline(text)}</p>', text).emit()
