"""Still pictures: plots, and grids of images that keep their pixels."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from cvlib.errors import BookError
from cvlib.show.output import Output, card, checked_alt, data_uri, framed, inline

__all__ = ["grid", "picture", "show", "to_uint8"]


def show(fig: Figure, alt: str, caption: str = "") -> Output:
    """Show a plot as ``<figure>`` with its alt text (the finding, in a sentence) and caption.

    Twice the resolution of the layout, so that it is sharp on a phone; scales down with the page.
    Raises: BookError if alt is empty or says nothing.
    """
    alt = checked_alt(alt)
    buffer = io.BytesIO()
    fig.set_dpi(200)
    fig.savefig(buffer, format="png", dpi=200, bbox_inches=_whole(fig))
    image = Image.open(buffer).convert("RGB")
    # 128 colours hold a plot's smooth edges; a palette is a third of the bytes. Pictures inside keep theirs.
    if not any(ax.images for ax in fig.axes):
        image = image.quantize(128, dither=Image.Dither.NONE)
    width, height = image.width // 2, image.height // 2
    tag = _img(data_uri(image), alt, width, height)
    return Output(framed(card(tag, width), caption), alt).emit()


def _whole(fig: Figure) -> Bbox | None:
    """Return the box in inches that holds the figure and what sticks out of it; None if nothing does."""
    fig.draw_without_rendering()
    room, drawn = Bbox.from_bounds(0, 0, *fig.get_size_inches()), fig.get_tightbbox()
    inside = room.padded(0.01)  # a line's half width is no loss
    is_whole = inside.containsx(drawn.x0) and inside.containsx(drawn.x1)
    is_whole = is_whole and inside.containsy(drawn.y0) and inside.containsy(drawn.y1)
    return None if is_whole else Bbox.union([room, drawn.padded(0.03)])


def _img(uri: str, alt: str, width: int, height: int, style: str = "") -> str:
    # "dark-light" keeps the theme from dimming the picture; width and height keep the page from jumping
    return (
        f'<img class="dark-light" src="{uri}" alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'style="display:block;max-width:100%;height:auto;{style}">'
    )


def to_uint8(images: Any) -> np.ndarray:
    """Return images as uint8 (B, H, W, 3).

    Args: images: float tensor (B, 3 or 1, H, W) or (3, H, W) in [-1, 1] (values outside are clipped), a
        uint8 array (B, H, W, 3 or 1), or a sequence of any of these without B, of one size, or PIL images.
    Raises: BookError for other shapes, for NaN, for an empty batch.
    """
    if isinstance(images, list | tuple) and images:
        return np.concatenate(
            [to_uint8(np.asarray(i)[None] if isinstance(i, Image.Image) else i) for i in images]
        )
    if isinstance(images, torch.Tensor) and images.is_floating_point():
        images = images.detach().float().cpu()
        if not torch.isfinite(images).all():
            raise BookError("images with NaN or infinite values", "finite values in [-1, 1]")
        images = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)
    array = np.asarray(images)
    array = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or not len(array):
        raise BookError(
            f"images of shape {array.shape} and type {array.dtype}",
            "float (B, 3, H, W) in [-1, 1] or uint8 (B, H, W, 3), B at least 1",
        )
    return np.broadcast_to(array, (*array.shape[:3], 3))


def grid(images: Any, columns: int = 8, *, gap: int = 2) -> Image.Image:
    """Return the images on one white canvas, row by row, at their own resolution.

    ``gap`` pixels lie between two images and half as many around the canvas, so that every cell is equally
    wide and captions over it line up.

    >>> grid(torch.zeros(5, 3, 8, 8), columns=4).size
    (40, 20)
    """
    array = to_uint8(images)
    count, height, width, _ = array.shape
    rows, columns, half = -(-count // columns), min(columns, count), gap // 2
    canvas = np.full((rows, height + 2 * half, columns, width + 2 * half, 3), 255, np.uint8)
    cells = np.full((rows * columns, height, width, 3), 255, np.uint8)
    cells[:count] = array
    inner = canvas[:, half : half + height, :, half : half + width]
    inner[...] = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(canvas.reshape(rows * (height + 2 * half), -1, 3))


def picture(
    *batches: Any,
    alt: str,
    caption: str = "",
    columns: int = 8,
    rows: Sequence[str] = (),
    titles: Sequence[str] = (),
    scale: int = 2,
    smooth: bool = False,
    quality: int | None = None,
) -> Output:
    """Show images pixel by pixel: one batch row after row, or several batches as rows under each other.

    Args: batches: each as :func:`to_uint8` takes it; several (originals, reconstructions) are cut into
        bands of ``columns`` images, one row per batch in each band; rows: a name per batch; titles: a
        name per column; scale: CSS pixels per image pixel (the file keeps the image's own pixels);
        smooth: interpolate instead of showing square pixels; quality: lossy WebP, for photographs.
    Raises: BookError if the alt text says nothing or names and batches do not match.
    """
    alt, arrays = checked_alt(alt), [to_uint8(batch) for batch in batches]
    columns = min(columns, max(map(len, arrays), default=0))
    if rows and len(rows) != len(arrays):
        raise BookError(f"{len(rows)} row names for {len(arrays)} batches", "one name per batch")
    if titles and len(titles) != columns:
        raise BookError(f"{len(titles)} titles for {columns} columns", "one title per column")
    if len({len(array) for array in arrays}) != 1:
        raise BookError(f"batches of {[len(array) for array in arrays]} images", "batches of one length")
    bands = [(name, a[i : i + columns]) for i in range(0, len(arrays[0]), columns)
             for name, a in zip(rows or [""] * len(arrays), arrays, strict=True)]  # fmt: skip
    pixels = "" if smooth else "image-rendering:pixelated;"
    lines, width = [], 0
    if rows:  # one image per row, so that its name can stand beside it; read out once, by the first
        for i, (name, band) in enumerate(bands):
            strip = grid(_padded(band, columns), columns)
            width = strip.width * scale
            tag = _img(data_uri(strip, quality), "" if i else alt, width, strip.height * scale, pixels)
            lines.append(f'<div style="font-size:12px;line-height:1.2">{inline(name)}</div>{tag}')
    else:
        sprite = grid(np.concatenate([_padded(band, columns) for _, band in bands]), columns)
        width = sprite.width * scale
        lines.append(_img(data_uri(sprite, quality), alt, width, sprite.height * scale, pixels))
    inner = _titles(titles, bool(rows)) + "".join(lines)
    if rows:
        inner = f'<div style="display:grid;grid-template-columns:fit-content(7em) minmax(0,{width}px);' \
                f'column-gap:8px;align-items:center">{inner}</div>'  # fmt: skip
        width += 130
    return Output(framed(card(inner, width), caption), alt).emit()


def _padded(band: np.ndarray, columns: int) -> np.ndarray:
    white = np.full((columns - len(band), *band.shape[1:]), 255, np.uint8)
    return np.concatenate([band, white])


def _titles(titles: Sequence[str], named_rows: bool) -> str:
    if not titles:
        return ""
    cell = '<div class="cv-title" style="flex:1 1 0;min-width:0;overflow-wrap:break-word;text-align:center">'
    cells = "".join(f"{cell}{inline(title)}</div>" for title in titles)
    return (
        "<div></div>" * named_rows + f'<div style="display:flex;font-size:12px;line-height:1.2">{cells}</div>'
    )
