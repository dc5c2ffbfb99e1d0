from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cvlib.errors import BookError
from cvlib.show import animation, explorer, to_uint8

ALT = "A square that grows lighter."
CHROMIUM = next(
    (p for p in (Path("/usr/bin/chromium"), Path("/usr/bin/chromium-browser")) if p.exists()), None
)


@pytest.fixture
def cube() -> torch.Tensor:
    """Images (2, 3, 4, 3, 8, 8), each of its own grey."""
    return (torch.arange(24.0) / 12 - 1).view(2, 3, 4, 1, 1, 1).expand(2, 3, 4, 3, 8, 8)


AXES = {"set": ["a", "b"], "layer": [1, 2, 3], "seed": list(range(4))}


def test_sprite_holds_the_images_in_order(cube, decode):
    (sprite,) = decode(explorer(cube, AXES, ALT))
    flat = sprite[4::8, 4::8, 0].flatten().tolist()
    assert flat[:24] == to_uint8(cube.reshape(24, 3, 8, 8))[:, 0, 0, 0].tolist()
    nested = [[list(row) for row in plane] for plane in cube]
    assert explorer(nested, AXES, ALT).html == explorer(cube, AXES, ALT).html


def test_ids_follow_content(cube):
    def name(output):
        return re.search(r'data-cv="(cv-\w+)"', output.html)[1]

    first = name(explorer(cube, AXES, ALT))
    assert first == name(explorer(cube, AXES, ALT))
    assert first != name(explorer(-cube, AXES, ALT))
    assert first != name(explorer(cube, {**AXES, "seed": "wxyz"}, ALT))


def test_it_opens_where_start_says(cube):
    html = explorer(cube, AXES, ALT, start={"layer": 2, "seed": 3}, notes=list(map(str, range(24)))).html
    assert re.findall(r'value="(\d+)"', html) == ["0", "1", "3"]
    at = 0 * 12 + 1 * 4 + 3
    columns = int(re.search(r'"columns":(\d+)', html)[1])
    assert f"left:{-100 * (at % columns)}%;top:{-100 * (at // columns)}%" in html
    assert f'aria-live="polite">{at}<' in html
    with pytest.raises(BookError, match="'layer': 7"):
        explorer(cube, AXES, ALT, start={"layer": 7})


def test_text_cannot_leave_the_script(cube):
    html = explorer(cube[0, 0], {"x": ["</script><b>", "b", "c", "d"]}, ALT, notes=["</script>"] * 4).html
    assert html.count("</script>") == 1 and html.endswith("</script>")


@pytest.mark.parametrize(
    ("axes", "notes", "message"),
    [
        ({"a": [1, 2, 3]}, (), "4 images for axes of lengths"),
        ({"a": [1, 2, 3, 4]}, ["one"], "4 images and 1 notes"),
        ({}, (), "one to three axes"),
        ({"a": [1, 2, 3, 4], "b": []}, (), "none empty"),
        ({"a": [1], "b": [1], "c": [1], "d": [1]}, (), "one to three axes"),
    ],
)
def test_sizes_must_match(cube, axes, notes, message):
    with pytest.raises(BookError, match=message):
        explorer(cube[0, 0], axes, ALT, notes=notes)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield chromium
        chromium.close()


def centre(page, index: int = 0) -> int:
    """The grey in the middle of a window, as a reader sees it."""
    import io

    from PIL import Image

    shot = page.locator('[role="img"]').nth(index).screenshot()
    image = Image.open(io.BytesIO(shot)).convert("L")
    return image.getpixel((image.width // 2, image.height // 2))


def opened(browser, tmp_path: Path, html: str, **options):
    page = browser.new_page(viewport={"width": 390, "height": 800}, **options)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{html}</body>", encoding="utf-8")
    page.goto(file.as_uri())
    return page


@pytest.mark.browser
def test_sliders_move_the_picture_by_keyboard(browser, tmp_path, cube):
    html = explorer(cube, AXES, ALT, notes=[f"note {i}" for i in range(24)]).html
    page = opened(browser, tmp_path, html + html)  # a copy on the same page lives its own life
    grey = to_uint8(cube.reshape(24, 3, 8, 8))[:, 0, 0, 0].tolist()
    assert centre(page) == grey[0]
    page.get_by_role("slider", name="layer").first.press("ArrowRight")
    page.get_by_role("slider", name="seed").first.press("End")
    assert abs(centre(page) - grey[1 * 4 + 3]) <= 1
    page.get_by_role("slider", name="set").first.press("ArrowRight")
    assert abs(centre(page) - grey[12 + 1 * 4 + 3]) <= 1
    assert page.get_by_role("slider", name="layer").first.get_attribute("aria-valuetext") == "2"
    assert page.locator(".cv-note").all_inner_texts() == ["note 19", "note 0"]
    assert centre(page, 1) == grey[0]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
    assert page.evaluate("Object.keys(window).filter(k => /^(c|draw|root|sliders|play)$/.test(k))") == []


@pytest.mark.browser
def test_without_scripts_the_first_image_stays(browser, tmp_path, cube):
    page = opened(browser, tmp_path, explorer(-cube, AXES, ALT).html, java_script_enabled=False)
    assert centre(page) == to_uint8(-cube[0, 0])[0, 0, 0, 0]
    assert not page.locator(".cv-controls").is_visible()
    assert page.locator("noscript").is_visible()


@pytest.mark.browser
@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_film_plays_on_demand_and_respects_reduced_motion(browser, tmp_path, cube, motion):
    html = animation(cube[0, 0], ALT, fps=50, autoplay=True, times=[0, 10, 20, 30], label="step").html
    page = opened(browser, tmp_path, html, reduced_motion=motion)
    button = page.get_by_role("button")
    assert button.inner_text() == ("Play" if motion == "reduce" else "Pause")
    if motion == "reduce":
        button.click()
    page.wait_for_function("document.querySelector('output').textContent == '30'")
    page.get_by_role("slider").press("Home")  # taking the slider stops the film
    assert button.inner_text() == "Play"
    assert page.locator("output").inner_text() == "0"
