"""The built book as a reader meets it: every page, offline, wide and narrow, light and dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

# What stands out to the right of the window although nothing around it scrolls or clips it.
OVERFLOWING = """() => {
  const wide = document.documentElement.clientWidth;
  const held = node => { for (let up = node; up && up !== document.body; up = up.parentElement) {
    const style = getComputedStyle(up);
    if (style.position === 'fixed' || /auto|scroll|hidden|clip/.test(style.overflowX)) return true; }
    return false; };
  return [...document.querySelectorAll('main *')].filter(node => node.getBoundingClientRect().right > wide + 1
    && !held(node)).map(node => node.tagName + '.' + node.className + ' ' + node.innerText.slice(0, 40)); }"""

# Words with less contrast to what lies behind them than WCAG 2 asks for (4.5), and how dark the page is.
CONTRAST = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => { const [r, g, b] = parts(colour).slice(0, 3).map(value => {
      const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = node => { for (let up = node; up; up = up.parentElement) {
    const colour = getComputedStyle(up).backgroundColor; if ((parts(colour)[3] ?? 1) > 0.5) return colour; }
    return 'rgb(255, 255, 255)'; };
  const ratio = node => { const pair = [getComputedStyle(node).color, behind(node)].map(light);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05); };
  const kinds = 'article :is(p, li, td, th, figcaption, caption, label, output)';
  const words = [...document.querySelectorAll(kinds)];
  return { faint: words.filter(node => node.offsetParent && node.innerText.trim() && ratio(node) < 4.5)
             .map(node => node.tagName + ' ' + node.innerText.slice(0, 40) + ' ' + ratio(node).toFixed(1)),
           dark: light(getComputedStyle(document.body).backgroundColor) < 0.2 }; }"""

# Pictures that did not load, or have no words. One in a figure may be silent if another there speaks for all.
WORDLESS = """() => [...document.querySelectorAll('article img')].filter(image => {
  const voice = image.closest('figure')?.querySelector('img[alt]:not([alt=""]), [aria-label]');
  return !image.naturalWidth || !(image.alt.trim() || (image.hasAttribute('alt') && voice));
}).map(image => image.outerHTML.slice(0, 80))"""

LINKS = "nodes => nodes.map(node => node.href).filter(link => link.startsWith('file:'))"


def lost_links(page) -> list[str]:
    """Return the page's links into the book whose file or anchor does not exist."""
    lost = []
    for link in set(page.eval_on_selector_all("article a[href], nav a[href]", LINKS)):
        path, _, anchor = link.removeprefix("file://").partition("#")
        if not Path(path).is_file() or (anchor and f'id="{anchor}"' not in Path(path).read_text("utf-8")):
            lost.append(link)
    return lost


def test_a_page_opens_offline_and_is_whole(html, visit, name):
    page = visit(1280).open(html / f"{name}.html")
    assert visit.wrong == [], "nothing may fail, and nothing may be asked of another host"
    assert page.locator("article h1").count() == 1
    assert page.locator(".cell_output .traceback, mjx-merror").count() == 0
    assert page.evaluate(WORDLESS) == []
    assert lost_links(page) == []


def test_a_page_fits_a_phone_in_both_themes(html, visit, name):
    page = visit(390).open(html / f"{name}.html")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'", polling=50)
        told = page.evaluate(OVERFLOWING)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, told
        assert told == []
        seen = page.evaluate(CONTRAST)
        assert seen == {"faint": [], "dark": scheme == "dark"}


def test_formulas_are_drawn_in_their_own_fonts(html, visit):
    page = visit(1280).open(html / "primer.html")
    written = len(re.findall(r'class="math ', (html / "primer.html").read_text("utf-8")))
    assert page.locator("mjx-container").count() == written > 30
    page.evaluate("document.fonts.ready.then(() => true)")
    fonts = "[...document.fonts].filter(font => font.status === 'loaded').map(font => font.family)"
    assert any("MJX" in font for font in page.evaluate(fonts))


def test_the_search_finds_a_word(html, visit):
    page = visit(1280).open(html / "search.html", "?q=commitment")
    # results come one by one
    page.wait_for_selector("#search-results li a:has-text('Notation')", timeout=30_000)


COLUMNS = """() => [...document.querySelectorAll('.cell_input pre')].slice(0, 3).map(pre => {
  const ruler = document.createElement('span'), style = getComputedStyle(pre);
  ruler.textContent = 'm'.repeat(100); pre.append(ruler);
  const letter = ruler.getBoundingClientRect().width / 100; ruler.remove();
  return (pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)) / letter; })"""


@pytest.mark.parametrize("width", [1280, 1600])
def test_code_has_room_for_whole_lines(html, visit, width):
    """Lines are at most 110 columns; a desktop shows all of them, a small one all but the last few."""
    columns = visit(width).open(html / "chapters" / "diva.html").evaluate(COLUMNS)
    assert columns and min(columns) >= (105 if width < 1500 else 110)
