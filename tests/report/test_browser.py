"""The pages in a real browser, Debian's Chromium. Skipped where it is not installed."""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.tables import markdown
from tests.conftest import ROOT
from tests.report.browsing import SIZES, Watched, needs_chromium

pytestmark = needs_chromium
LARGEST_PAGE = 3_000_000
PAGES = ["index.html", *(f"pages/{notebook.name}.html" for notebook in NOTEBOOKS.values())]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def site(smoke: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(smoke / "smoke" / "work")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("path", PAGES)
def test_pages_are_whole_small_and_ask_nobody_else(browser: Any, site: str, smoke: Path, path: str, size: str) -> None:
    assert (smoke / "smoke" / "work" / path).stat().st_size <= LARGEST_PAGE
    watched = Watched(browser, viewport=SIZES[size])
    watched.page.goto(site + path, wait_until="networkidle")
    assert not watched.trouble
    overflow, missing, broken = watched.page.evaluate("""[
        document.documentElement.scrollWidth - window.innerWidth,
        [...document.images].filter(image => !image.alt).length,
        [...document.images].filter(image => image.naturalWidth === 0).length]""")
    assert overflow <= 0, "the page scrolls sideways; a wide table must do so by itself"
    assert (missing, broken) == (0, 0)
    headings = watched.page.locator("h1").count()
    assert headings == 1
    for link in watched.page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)"):
        target = link.removeprefix(site).split("#")[0]
        assert link.startswith(site) and (not target or (smoke / "smoke" / "work" / target).exists()), link
    watched.page.close()


def test_contents_lead_to_their_headings_and_figures_to_their_data(browser: Any, site: str) -> None:
    page = Watched(browser, viewport=SIZES["desktop"]).page
    page.goto(site + "index.html")
    anchors = page.eval_on_selector_all(".contents a", "all => all.map(one => one.getAttribute('href'))")
    assert len(anchors) > 5 and all(page.locator(f"[id='{anchor[1:]}']").count() == 1 for anchor in anchors)
    page.goto(site + "pages/05_baseline_criteria.html")
    data = page.locator("figure:has(img) figcaption a", has_text="data").first.get_attribute("href")
    with urllib.request.urlopen(site + "pages/" + data) as answer:  # noqa: S310 - loopback
        assert answer.read().decode().splitlines()[0].count(",") > 3
    page.close()


def test_tables_sort_by_their_numbers(browser: Any, site: str) -> None:
    watched = Watched(browser, viewport=SIZES["desktop"])
    page = watched.page
    page.goto(site + "pages/08_cost.html")
    header = page.locator("table.sortable").first.locator("th", has_text="seconds")
    column = int(header.evaluate("one => one.cellIndex"))
    seconds = partial(
        page.evaluate,
        """column => [...document.querySelector('table.sortable').tBodies[0].rows]
        .map(row => Number(row.cells[column].textContent))""",
        column,
    )
    # Told by an attribute: the page's security policy forbids what Playwright would ask again and again.
    page.evaluate(
        "document.addEventListener('sort-end', () => { document.body.dataset.sorts = +(document.body.dataset.sorts || 0) + 1 })"
    )
    for number, (key, order) in enumerate((("click", "descending"), ("Enter", "ascending")), 1):
        header.click() if key == "click" else header.press(key)
        page.wait_for_selector(f"th[aria-sort={order}]")
        page.wait_for_selector(f"body[data-sorts='{number}']")
        assert seconds() == sorted(seconds(), reverse=order == "descending") and len(set(seconds())) > 1
    assert not watched.trouble
    page.close()


def test_the_still_explorers_numbers_stand_flush_right(browser: Any, site: str) -> None:
    page = browser.new_page()
    page.goto(site + "pages/explore.html")
    cells = page.eval_on_selector_all("td", "all => all.map(one => [one.textContent.trim(), getComputedStyle(one).textAlign])")
    sides = [side for text, side in cells if re.fullmatch(r"\d[\d,]*\.\d+( %)?", text)]
    assert len(sides) > 5 and set(sides) == {"right"}
    page.close()


def test_columns_of_numbers_stand_flush_right_with_units_and_intervals(browser: Any) -> None:
    columns = {
        "effect": ["+24.74 % of epochs", "-0.13 points"],
        "interval": ["+8.00 to +36.50", "−0.36 to +0.09"],
        "speed-up": ["1.17x (1.08 to 1.19)", "1.6x"],
        "top-1": ["72.64 (0.791)", "98.65 ± 0.40"],
        "p": ["< 0.001", ""],
        "network": ["VGG-16", "20"],
        "schedule": ["TFT 8 epochs", "8 epochs"],
    }
    page = browser.new_page()
    page.set_content(pd.DataFrame(columns).to_html(index=False))
    page.add_script_tag(content=(ROOT / "fcs_utils/report/templates/page.js").read_text())
    right = page.eval_on_selector_all(
        "th", "all => all.filter(one => one.classList.contains('number')).map(one => one.textContent)"
    )
    assert right == ["effect", "interval", "speed-up", "top-1", "p"]
    sides = markdown(pd.DataFrame(columns)).splitlines()[1].strip("|").split("|")  # on GitHub, too
    assert [name for name, side in zip(columns, sides, strict=True) if side.endswith("-:")] == right
    page.close()


def test_dark_screens_get_a_dark_page(browser: Any, site: str) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(site + "index.html")
        colours = [page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color")]
        shades[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
        page.close()
    assert shades["light"][0] > 700 > 300 > shades["light"][1] and shades["dark"][0] < 150 < 500 < shades["dark"][1]
