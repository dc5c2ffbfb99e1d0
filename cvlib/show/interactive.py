"""Pictures with sliders that need neither a kernel nor a network: a sprite, a window, a little script."""

from __future__ import annotations

import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from cvlib.errors import BookError
from cvlib.show.figures import grid, to_uint8
from cvlib.show.output import Output, card, checked_alt, data_uri, framed
from cvlib.show.text import cell_text

__all__ = ["animation", "explorer"]


def explorer(
    images: Any,
    axes: Mapping[str, Sequence[Any]],
    alt: str,
    caption: str = "",
    *,
    start: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    scale: int = 3,
    smooth: bool = False,
    quality: int | None = None,
) -> Output:
    """Show one of many precomputed images, chosen by one to three sliders.

    Args: images: nested lists or a float tensor (n1, ..., 3, H, W), leading sizes as in axes (or already
        flat, the last axis fastest); axes: slider name to its values, in order; start: the value at which a
        slider stands at first (by default its first); notes: a line of text per image, shown below it;
        scale, smooth, quality: as in :func:`cvlib.show.picture`.
    Works from a file, by keyboard (arrow keys) and with a screen reader; without scripts the image of
    ``start`` stays. Its id is a digest of what it shows, so running a page again changes nothing.
    Raises: BookError if the number of images or notes is not the product of the axes' lengths, or if
        ``start`` names a value that is not on its axis.
    """
    if not 1 <= len(axes) <= 3 or not all(len(values) for values in axes.values()):
        raise BookError(f"axes of lengths {[len(v) for v in axes.values()]}", "one to three axes, none empty")
    start = start or {}
    if unknown := {name: value for name, value in start.items() if value not in axes.get(name, ())}:
        raise BookError(f"a start at {unknown}", f"values of the axes {dict(axes)}")
    at = [list(values).index(start[name]) if name in start else 0 for name, values in axes.items()]
    return _sprite(images, axes, alt, caption, notes, scale, smooth, quality, at=at).emit()


def animation(
    frames: Any,
    alt: str,
    caption: str = "",
    *,
    times: Sequence[Any] = (),
    label: str = "frame",
    fps: float = 8.0,
    autoplay: bool = False,
    notes: Sequence[str] = (),
    scale: int = 3,
    smooth: bool = False,
    quality: int | None = None,
) -> Output:
    """Show frames (T, 3, H, W) with a slider and a play button; arguments as in :func:`explorer`.

    ``times`` are the slider's values (1, 2, ... by default). ``autoplay`` starts the film by itself, except
    for readers whose system asks for reduced motion.
    """
    times = times or range(1, len(frames) + 1)
    play = {"interval": round(1000 / fps), "autoplay": autoplay}
    return _sprite(frames, {label: times}, alt, caption, notes, scale, smooth, quality, play).emit()


def _flat(images: Any) -> np.ndarray:
    if isinstance(images, list | tuple):
        return np.concatenate([_flat(image) for image in images])
    if isinstance(images, torch.Tensor) and images.ndim > 4:
        images = images.flatten(0, -4)
    return to_uint8(images)


def _sprite(
    images: Any,
    axes: Mapping[str, Sequence[Any]],
    alt: str,
    caption: str,
    notes: Sequence[str],
    scale: int,
    smooth: bool,
    quality: int | None,
    play: dict[str, Any] | None = None,
    at: Sequence[int] = (0,),
) -> Output:
    alt, array = checked_alt(alt), _flat(images)
    count, height, width, _ = array.shape
    wanted = math.prod(map(len, axes.values()))
    if count != wanted or (notes and len(notes) != wanted):
        seen = f"{count} images" + (f" and {len(notes)} notes" if notes else "")
        raise BookError(f"{seen} for axes of lengths {[len(v) for v in axes.values()]}", f"{wanted} of each")
    columns = min(count, math.ceil(math.sqrt(count * height / width)))  # nearly square: formats have limits
    first = int(np.ravel_multi_index(tuple(at), tuple(map(len, axes.values()))))
    sprite = grid(array, columns, gap=0)
    uri = data_uri(sprite, quality)
    shown = [[cell_text(value) for value in values] for values in axes.values()]
    config = {
        "values": shown,
        "columns": columns,
        "notes": list(notes),
        **(play or {}),
    }
    data = json.dumps(config, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    name = "cv-" + hashlib.sha256((uri + data + "".join(axes) + str(first)).encode()).hexdigest()[:12]
    script = files("cvlib.show").joinpath("explorer.js").read_text(encoding="utf-8")
    script = "".join(line.strip() + "\n" for line in script.splitlines() if not line.startswith("//"))
    script = script.replace("$ID", name).replace("$CONFIG", data)
    window = (
        f'<div role="img" aria-label="{html.escape(alt)}" style="position:relative;overflow:hidden;'
        f'width:{width * scale}px;max-width:100%;aspect-ratio:{width}/{height}">'
        f'<img class="dark-light" alt="" src="{uri}" style="position:absolute;max-width:none;'
        f"left:{-100 * (first % columns)}%;top:{-100 * (first // columns)}%;"
        f"width:{100 * columns}%;margin:0;padding:0;"
        f'{"" if smooth else "image-rendering:pixelated"}"></div>'
    )
    controls = "".join(map(_slider, axes, shown, at))
    button = (
        '<button type="button" style="font:inherit;padding:.1em .8em;margin:.3em 0">Play</button>'
        if play
        else ""
    )
    note = f'<div class="cv-note" aria-live="polite">{html.escape(notes[first])}</div>' if notes else ""
    inner = (
        f'{window}{note}<div class="cv-controls" hidden>{controls}{button}</div>'
        "<noscript>The sliders need JavaScript; this is one of the pictures.</noscript>"
    )
    root = f'<div data-cv="{name}" style="font-size:14px;line-height:1.4">{inner}</div>'
    body = card(root, max(width * scale, 320))
    return Output(framed(body, caption) + f"<script>{script}</script>", alt)


def _slider(axis: str, values: Sequence[str], at: int) -> str:
    label, first = html.escape(axis), html.escape(values[at])
    return (
        '<label style="display:flex;align-items:center;gap:.6em;margin:.3em 0">'
        f'<span style="flex:0 0 30%">{label}</span>'
        f'<input type="range" min="0" max="{len(values) - 1}" value="{at}" step="1" aria-label="{label}" '
        f'aria-valuetext="{first}" style="flex:1 1 40%;min-width:0;accent-color:#0072B2">'
        f'<output style="flex:0 0 22%;overflow-wrap:anywhere">{first}</output></label>'
    )
