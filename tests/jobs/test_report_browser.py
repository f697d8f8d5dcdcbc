"""Pages as people see them: opened in a real browser, on a phone and on a desk, light and dark.

`REPORT_SCREENSHOTS=folder pytest tests/jobs/test_report_browser.py` leaves pictures to look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from tests.jobs.browser import Browser, browser_program, running_browser
from tests.jobs.report_outputs import make_output

Call = Callable[..., Result]

PROGRAM = browser_program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs chromium: apt-get install chromium")

PHONE, DESK = (390, 844), (1280, 900)
# Pairs of labels of one drawing that lie on each other, and labels that leave it.
OVERLAPS = """
[...document.querySelectorAll('figure')].flatMap(figure => {
  const box = element => element.getBoundingClientRect();
  const frame = box(figure.querySelector('svg'));
  const texts = [...figure.querySelectorAll('svg text')].filter(t => t.textContent.trim());
  const found = [];
  texts.forEach((a, i) => {
    const p = box(a);
    if (p.left < frame.left - 1 || p.right > frame.right + 1 || p.bottom > frame.bottom + 1)
      found.push(figure.id + ': ' + a.textContent + ' is cut off');
    texts.slice(i + 1).forEach(b => {
      const q = box(b);
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 3)
        found.push(figure.id + ': ' + a.textContent + ' / ' + b.textContent);
    });
  });
  return found;
})
"""
# Texts whose colour is too near to that of what they stand on (WCAG: 4.5).
FAINT = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const texts = document.querySelectorAll('h1,h2,h3,p,dt,dd,span,a,b,pre,figcaption,th,td,text');
  return [...texts].filter(e => e.textContent.trim()).map(e => {
    const style = getComputedStyle(e);
    const color = rgb(e.tagName === 'text' ? style.fill : style.color);
    const [a, b] = [light(color), light(ground(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.tagName + ': ' + e.textContent.slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
})()
"""
TOO_WIDE = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('svg'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + '.' + e.className)
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with running_browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of this name, made on first use by the command."""
    from click.testing import CliRunner

    from jobs.cli import main

    folder = tmp_path_factory.mktemp("pages")

    def output(name: str, rows: int, files: int, **options: object) -> str:
        place = folder / name
        if not place.exists():
            make_output(place, rows, files, **options)  # type: ignore[arg-type]
        return str(place)

    def page(name: str) -> Path:
        path = folder / f"{name}.html"
        large = output("large", 600, 40)
        given = {
            "large": [large],
            "ten": [output("ten", 10, 1)],
            "two": [large, output("other", 600, 3, seed=2, said="<i>Other</i>")],
        }[name]
        if not path.exists():
            result = CliRunner().invoke(main, ["report", *given, "--html", str(path)])
            assert result.exit_code == 0, result.output
        return path

    return page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("name", ["large", "ten", "two"])
def test_a_page_is_whole_quiet_and_readable(
    browser: Browser, pages: Callable[[str], Path], name: str, screen: tuple[int, int], dark: bool
) -> None:
    path, tab = pages(name), browser.tab()
    tab.open(path, *screen, dark)
    assert tab.evaluate(TOO_WIDE) == []
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    if "REPORT_SCREENSHOTS" in os.environ:
        shade = "dark" if dark else "light"
        folder = Path(os.environ["REPORT_SCREENSHOTS"])
        tab.screenshot(folder / f"{name}-{screen[0]}-{shade}.png")
    assert tab.evaluate(TOO_WIDE) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= screen[0]
    assert tab.evaluate("document.querySelectorAll('figure svg').length") >= 3
    assert tab.evaluate(OVERLAPS) == []
    assert tab.evaluate(FAINT) == []
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in ground[4:-1].split(",")) < 300) == dark
    # Nothing was fetched, nothing was said, nothing of what is shown has run or become a tag.
    assert tab.requests == [path.as_uri()]
    assert tab.said == []
    assert "owned" not in tab.evaluate("document.title")
    assert tab.evaluate("document.querySelectorAll('script, img, i, [onerror]').length") == 0


def test_what_the_browser_tests_look_for_is_seen(browser: Browser, tmp_path: Path) -> None:
    """A page that does all that ours must not do; else the test above could not fail."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><style>p{color:#ccc}"
        "</style><script>console.error('x'); document.title = 'owned'</script>"
        "<img src='http://127.0.0.1:9/x.png'><p style='width:900px'>wide and faint</p>"
        "<figure id=f><svg viewBox='0 0 100 20'><text x=0 y=15>one label</text>"
        "<text x=5 y=15>another</text></svg></figure>"
    )
    tab = browser.tab()
    tab.open(path, *PHONE, dark=False)
    assert tab.evaluate("document.title") == "owned"
    assert len(tab.requests) == 2 and tab.said
    assert tab.evaluate(OVERLAPS) and tab.evaluate(FAINT) and tab.evaluate(TOO_WIDE)
