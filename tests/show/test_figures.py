from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cvlib.errors import BookError
from cvlib.show import figure, grid, picture, show, to_uint8
from cvlib.show.output import Output, encode, inline

ALT = "Six greys from black to white."


@pytest.mark.parametrize("alt", ["", "  ", "figure", "a plot", "plotplotplotplotplot"])
def test_alt_text_must_say_something(alt, images):
    fig, _ = figure()
    with pytest.raises(BookError, match="alt text"):
        show(fig, alt=alt)
    with pytest.raises(BookError, match="alt text"):
        picture(images, alt=alt)


def test_show_embeds_twice_the_layout_in_few_bytes(decode):
    fig, ax = figure("half", height=2.0)
    ax.plot([0, 1], [1, 0], label="ours")
    out = show(fig, alt='Error "falls" from 1 to 0.', caption="**One** run & `seed 0`.")
    (shown,) = decode(out)
    assert shown.shape == (400, 680, 3)
    assert 'width="340" height="200"' in out.html
    assert 'alt="Error &quot;falls&quot; from 1 to 0."' in out.html
    assert "<strong>One</strong> run &amp; <code>seed 0</code>." in out.html
    assert len(out.html) < 15_000


def test_a_label_longer_than_its_axis_is_not_cut_off(decode):
    fig, ax = figure("half", height=2.0)
    ax.set(ylabel="a label of many words that is far longer than the axis")
    (shown,) = decode(show(fig, alt="An empty plot with a long label."))
    assert shown.shape[0] > 450 and shown.shape[1] >= 680
    for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
        assert (edge == 255).all()  # a letter on the edge would be a letter cut


def test_the_same_figure_gives_the_same_bytes():
    def once():
        fig, ax = figure()
        ax.plot([0, 1], [1, 0])
        return show(fig, alt="A line that falls to zero.").html

    assert once() == once()


def test_lossless_is_lossless_and_small():
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    import io

    data, mime = encode(Image.fromarray(noise))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), noise)
    assert len(encode(Image.fromarray(noise), quality=50)[0]) < len(data)
    assert encode(Image.new("RGB", (20000, 2)))[1] == "image/png"
    assert mime.startswith("image/")


def test_grid_puts_every_pixel_where_it_belongs(images):
    canvas = np.asarray(grid(images, columns=4, gap=2))
    assert canvas.shape == (2 * 10, 4 * 12, 3)
    for k, value in enumerate(to_uint8(images)[:, 0, 0, 0]):
        row, column = divmod(k, 4)
        cell = canvas[row * 10 : row * 10 + 10, column * 12 : column * 12 + 12]
        assert (cell[1:9, 1:11] == value).all()
        assert (cell[0] == 255).all() and (cell[:, 0] == 255).all()
    assert (canvas[10:, 24:] == 255).all()  # two cells stay empty


def test_to_uint8_takes_tensors_arrays_and_pil():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert to_uint8(x)[:, 0, 0].tolist() == [[0] * 3, [0] * 3, [128] * 3, [255] * 3]
    pil = Image.new("RGB", (5, 4), (1, 2, 3))
    assert to_uint8([pil, np.asarray(pil)]).shape == (2, 4, 5, 3)
    assert to_uint8(torch.zeros(3, 4, 5)).shape == (1, 4, 5, 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.full((1, 3, 2, 2), float("nan")), "NaN"),
        (torch.zeros(1, 5, 2, 2), r"\(1, 2, 2, 5\)"),
        (torch.zeros(0, 3, 2, 2), r"\(0, 2, 2, 3\)"),
        (np.zeros((1, 2, 2, 3)), "float64"),
    ],
)
def test_what_is_no_image_is_refused(bad, message):
    with pytest.raises(BookError, match=message):
        to_uint8(bad)


def test_picture_interleaves_batches_in_bands(images, decode):
    out = picture(images, -images, alt=ALT, columns=4, scale=3, titles="abcd")
    (shown,) = decode(out)
    grey = shown[5::10, 6::12, 0]  # the middle of every cell
    up, down = to_uint8(images)[:, 0, 0, 0].tolist(), to_uint8(-images)[:, 0, 0, 0].tolist()
    assert grey.tolist() == [up[:4], down[:4], [*up[4:], 255, 255], [*down[4:], 255, 255]]
    assert f'width="{48 * 3}"' in out.html and "image-rendering:pixelated" in out.html


def test_named_rows_carry_one_alt_text(images, decode):
    out = picture(images, -images, alt=ALT, rows=["original", "reconstruction"], smooth=True)
    assert len(decode(out)) == 2
    assert out.html.count(ALT) == 1 and out.html.count('alt=""') == 1
    assert "reconstruction</div>" in out.html and "pixelated" not in out.html


def test_names_must_match(images):
    with pytest.raises(BookError, match="1 row names for 2 batches"):
        picture(images, images, alt=ALT, rows=["one"])
    with pytest.raises(BookError, match="2 titles for 6 columns"):
        picture(images, alt=ALT, titles=["a", "b"])
    with pytest.raises(BookError, match=r"\[6, 5\]"):
        picture(images, images[:5], alt=ALT)


def test_an_output_too_large_for_a_page_is_refused():
    noise = torch.rand(64, 3, 100, 100, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.raises(BookError, match=r"at most 1\.5 MB"):
        picture(noise, alt="Sixty-four squares of noise.")


def test_outside_a_notebook_the_text_is_printed(images, capsys):
    out = picture(images, alt=ALT)
    assert capsys.readouterr().out == ALT + "\n"
    assert set(out._repr_mimebundle_()) == {"text/html", "text/plain"}
    out._ipython_display_()  # the echo of a last expression
    assert capsys.readouterr().out == ""


def test_markup_is_escaped():
    assert inline('<b>"x"</b>') == "&lt;b&gt;&quot;x&quot;&lt;/b&gt;"
    assert inline("`a**b**`") == "<code>a**b**</code>"
    assert inline("3 * 4 * 5") == "3 * 4 * 5"
    assert inline("[x](javascript:alert)") == "[x](javascript:alert)"
    assert inline("[x](https://a.b)") == '<a href="https://a.b">x</a>'
    assert Output("", "t", "m")._repr_mimebundle_() == {"text/markdown": "m", "text/plain": "t"}
