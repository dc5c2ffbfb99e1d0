from __future__ import annotations

import numpy as np
import pytest

from cvlib.data.render import draw_svg, premultiply, render_all

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8" viewBox="0 0 8 8">'


def test_premultiply_rounds_to_the_nearest_for_every_colour_and_alpha():
    colour, alpha = (grid.ravel() for grid in np.meshgrid(np.arange(256), np.arange(256)))
    rgba = np.stack([colour, 255 - colour, colour, alpha], -1).astype(np.uint8)
    got = premultiply(rgba)
    exact = np.stack([colour, 255 - colour, colour], -1) * alpha[:, None] / 255
    assert np.abs(got[:, :3] - exact).max() <= 0.5 + 1e-9
    assert (got[:, 3] == alpha).all() and (got[:, :3] <= got[:, 3:]).all()


def test_a_drawing_has_clear_margins_and_premultiplied_colour():
    body = '<path fill="#ff8000" fill-opacity=".5" d="M0 0h4v8H0z"/></svg>'
    drawn = draw_svg(HEAD + body, 8, 2)
    assert drawn.shape == (4, 12, 12) and drawn.dtype == np.uint8
    assert (drawn[:, 2:10, 2:6].reshape(4, -1).T - [128, 64, 0, 128] <= 1).all()
    drawn[:, 2:10, 2:6] = 0
    assert not drawn.any()


def test_all_drawings_land_in_their_own_row(tmp_path, capfd):
    shades = [f"#{k:02x}{255 - k:02x}40" for k in range(7)]
    texts = [HEAD + f'<path fill="{s}" d="M0 0h8v8H0z"/></svg>' for s in shades]
    render_all([f"d{k}" for k in range(7)], texts, tmp_path / "pixels.u8", 8, 1)
    pixels = np.fromfile(tmp_path / "pixels.u8", np.uint8).reshape(7, 4, 10, 10)
    assert [pixels[k, :, 5, 5].tolist() for k in range(7)] == [[k, 255 - k, 0x40, 255] for k in range(7)]
    assert not pixels[:, :, 0].any()
    assert [path.name for path in tmp_path.iterdir()] == ["pixels.u8"]
    assert "7 drawn in" in capfd.readouterr().err


def test_a_drawing_that_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="set:broken"):
        render_all(["set:sound", "set:broken"], [HEAD + "</svg>", "<svg"], tmp_path / "p", 8, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
