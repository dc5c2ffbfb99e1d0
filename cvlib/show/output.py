"""What a page shows: an HTML fragment that stands alone, with a text fallback, small enough to ship."""

from __future__ import annotations

import base64
import html
import io
import re
import sys
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cvlib.errors import BookError

__all__ = ["LIMIT", "Output", "card", "checked_alt", "data_uri", "encode", "framed", "inline"]

#: Most bytes of one output; a page may hold at most this much in all.
LIMIT = 1_500_000

_CARD = (
    "display:inline-block;box-sizing:border-box;max-width:100%;padding:8px;border-radius:8px;background:#fff;"
)
_CAPTION = "max-width:44em;margin:.4em 0 0;font-size:.9em;line-height:1.4;text-align:left;"


@dataclass(frozen=True)
class Output:
    """A fragment that is already on the page; ``emit()`` puts it there again.

    As the last expression of a cell it stays silent (it would appear twice); ``_repr_mimebundle_`` serves
    other front ends. Fields: html (or "" where only markdown is shown), text (the alt text), markdown.
    """

    html: str
    text: str
    markdown: str = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        bundle = {"text/html": self.html, "text/markdown": self.markdown, "text/plain": self.text}
        return {mime: data for mime, data in bundle.items() if data}

    def _ipython_display_(self) -> None:
        """Stay silent: :meth:`emit` has shown it."""

    def emit(self) -> Output:
        """Show the fragment: rich in a notebook, its text in a terminal or a plain script."""
        if len(self.html) > LIMIT:
            raise BookError(
                f"one output of {len(self.html) / 1e6:.1f} MB ({self.text[:60]!r})",
                f"at most {LIMIT / 1e6:.1f} MB a page",
                "show fewer or smaller images, or give quality=80",
            )
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is None or not hasattr(shell, "kernel"):
            print(self.text)
        else:
            from IPython.display import display

            display(self._repr_mimebundle_(), raw=True)
        return self


def checked_alt(alt: str) -> str:
    """Return ``alt`` on one line; BookError unless it says something (3 words, 15 characters)."""
    alt = " ".join(alt.split())
    if len(alt) < 15 or alt.count(" ") < 2:
        raise BookError(
            f"alt text {alt!r}",
            "a sentence that states the finding",
            "write what someone who cannot see the picture should know",
        )
    return alt


def encode(image: Image.Image, quality: int | None = None) -> tuple[bytes, str]:
    """Return ``(bytes, mime)``: lossless WebP or PNG, whichever is smaller; lossy WebP given ``quality``.

    WebP ends at 16,383 px a side; larger images become PNG.
    """
    if max(image.size) <= 16383 and quality is not None:
        return _saved(image, format="WEBP", quality=quality, method=6), "image/webp"
    png = _saved(image, format="PNG", optimize=True), "image/png"
    if max(image.size) > 16383:
        return png
    webp = _saved(image, format="WEBP", lossless=True, quality=80, method=4), "image/webp"
    return min(webp, png, key=lambda pair: len(pair[0]))


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def data_uri(image: Image.Image, quality: int | None = None) -> str:
    """Return the image as a ``data:`` address, see :func:`encode`."""
    data, mime = encode(image, quality)
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def inline(text: str) -> str:
    """Return plain text as HTML, with `code`, **bold**, *emphasis* and [links](https://...) honoured.

    >>> inline("**KID** of `noto` < 1")
    '<strong>KID</strong> of <code>noto</code> &lt; 1'
    """
    pieces = re.split(r"(`[^`]+`)", html.escape(text, quote=True))
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = f"<code>{piece[1:-1]}</code>"
            continue
        piece = re.sub(r"\*\*(\S(?:.*?\S)?)\*\*", r"<strong>\1</strong>", piece)
        piece = re.sub(r"\*([^\s*](?:[^*]*[^\s*])?)\*", r"<em>\1</em>", piece)
        pieces[i] = re.sub(r"\[([^\]]+)\]\((https?://[^\s)]+|#[^\s)]*)\)", r'<a href="\2">\1</a>', piece)
    return "".join(pieces)


def card(inner: str, width: int) -> str:
    """Return ``inner`` on a white card (it reads alike in a light and a dark theme), ``width`` CSS px."""
    return f'<div class="cv-card" style="{_CARD}color:#222;width:{width + 16}px">{inner}</div>'


def framed(inner: str, caption: str = "") -> str:
    """Return ``<figure class="cv-figure">`` around ``inner`` with an optional caption."""
    text = f'<figcaption style="{_CAPTION}">{inline(caption)}</figcaption>' if caption else ""
    return f'<figure class="cv-figure" style="margin:1em 0">{inner}{text}</figure>'
