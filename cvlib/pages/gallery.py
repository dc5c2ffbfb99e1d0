"""The cards of the front page: for each chapter a picture from its executed copy, never one made for show."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import nbformat
import yaml
from PIL import Image

from cvlib.errors import BookError

__all__ = ["cards", "picture_of"]

WIDTH = 420  # pixels of a card's picture, at most
FIELDS = {"page", "caption", "title", "text"}
IMAGE = re.compile(r'<img[^>]*src="data:image/\w+;base64,([A-Za-z0-9+/=]+)"[^>]*>')
ALT = re.compile(r'alt="([^"]+)"')


def picture_of(copy: Path, caption: str, rows: int = 0) -> tuple[bytes, str]:
    """Return the picture of an executed page whose caption has the words ``caption``: WebP, and its alt text.

    A picture of several rows is put together again; ``rows`` above 0 takes the first ones only.
    Raises: BookError if no output, or more than one, has these words and a picture.
    """
    outputs = [
        output.data["text/html"]
        for cell in nbformat.read(copy, as_version=4).cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    found = [text for text in outputs if caption in html.unescape(text) and IMAGE.search(text)]
    if len(found) != 1:
        raise BookError(
            f"{len(found)} pictures with {caption!r} in {copy.name}", "one", "see book/gallery.yml"
        )
    strips = [
        Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB")
        for match in IMAGE.finditer(found[0])
    ]
    strips = strips[: rows or None]
    whole = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    if whole.width > WIDTH:
        whole = whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)
    alt = ALT.search(found[0])
    return min((_webp(whole, quality=82), _webp(whole, lossless=True)), key=len), alt[1] if alt else ""


def _webp(image: Image.Image, **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, "WEBP", **options)
    return written.getvalue()


def cards(book: Path) -> str:
    """Return the cards of ``book/gallery.yml`` as HTML, each a link to its page.

    Raises: BookError for an entry with other fields, or a page or picture that does not exist.
    """
    entries = yaml.safe_load((book / "gallery.yml").read_text("utf-8"))
    made = []
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) - {"rows"} != FIELDS:
            seen = sorted(entry) if isinstance(entry, dict) else entry
            raise BookError(
                f"{seen} in book/gallery.yml", f"{', '.join(sorted(FIELDS))}, and rows if not all"
            )
        copy = book / "chapters" / f"{entry['page']}.ipynb"
        if not copy.is_file():
            raise BookError(f"no {copy}", "an executed copy", f"make report CHAPTER={entry['page']}")
        data, alt = picture_of(copy, entry["caption"], entry.get("rows", 0))
        image = f'<img src="data:image/webp;base64,{base64.b64encode(data).decode()}" alt="{alt}">'
        words = f"<b>{html.escape(entry['title'])}</b> {html.escape(entry['text'])}"
        made.append(
            f'<a class="cv-card" href="chapters/{entry["page"]}.html">{image}<span>{words}</span></a>'
        )
    return f'<div class="cv-gallery">{"".join(made)}</div>'
