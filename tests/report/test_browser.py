"""Real browsers: the pages and the explorer in Debian's Chromium. Skipped where it is not installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pytest

from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.study.study import Study
from tests.conftest import GUARD, ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")
LARGEST_PAGE = 3_000_000
PAGES = ["index.html", *(f"pages/{notebook.name}.html" for notebook in NOTEBOOKS.values())]
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def site(smoke: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(smoke / "smoke" / "work")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Watched:
    """A page whose console errors, failed requests and requests to other hosts are remembered."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(GUARD * 1000)
        self.trouble: list[str] = []
        self.page.on("console", lambda said: self.trouble.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("requestfailed", lambda request: self.trouble.append(f"failed: {request.url}"))
        self.page.on(
            "response", lambda answer: self.trouble.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
        )
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not re.match(r"(https?://127\.0\.0\.1[:/]|ws://127\.0\.0\.1[:/]|data:|blob:)", request.url):
            self.trouble.append(f"another host: {request.url}")


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
    page.evaluate("document.addEventListener('sort-end', () => { window.sorts = (window.sorts || 0) + 1 })")
    for number, (key, order) in enumerate((("click", "descending"), ("Enter", "ascending")), 1):
        header.click() if key == "click" else header.press(key)
        page.wait_for_selector(f"th[aria-sort={order}]")
        page.wait_for_function(f"window.sorts === {number}")
        assert seconds() == sorted(seconds(), reverse=order == "descending") and len(set(seconds())) > 1
    assert not watched.trouble
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


# -- JupyterLab ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(smoke: Path, tmp_path: Path) -> Iterator[str]:
    """JupyterLab on loopback over a folder with the explorer, its parameters set to the smoke study."""
    notebook = nbformat.read(NOTEBOOKS["explore"].source, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = parameters.source.replace('"quick"', '"smoke"').replace('"results"', json.dumps(str(smoke)))
    (tmp_path / "work").mkdir()
    nbformat.write(notebook, tmp_path / "work" / "explore.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--ip=127.0.0.1",
            "--IdentityProvider.token=",
            "--expose-app-in-browser",
            f"--ServerApp.root_dir={tmp_path / 'work'}",
            "--LabApp.news_url=None",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env={**os.environ, **home, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=GUARD).close()  # noqa: S310 - loopback
            break
        except OSError:
            assert server.poll() is None, "JupyterLab did not start"
            time.sleep(0.1)
    yield address
    server.terminate()
    server.wait(timeout=GUARD)


PAIR, CURVE, NORMS, SIMILARITY, TABLE = range(5)  # what the explorer shows: its pictures in their order, and the first table


@pytest.mark.slow
def test_the_explorer_redraws_saves_and_what_it_saved_loads_in_a_script(
    browser: Any, lab: str, smoke: Path, tmp_path: Path
) -> None:
    watched = Watched(browser, viewport={"width": 1500, "height": 1100})
    page = watched.page
    page.goto(f"{lab}/lab/tree/explore.ipynb")
    page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready.then(() => null)")  # or it asks for a kernel
    page.evaluate("void window.jupyterapp.commands.execute('runmenu:run-all')")
    box = page.locator(".fcs-explorer")
    box.wait_for()
    pictures = box.locator("img")
    pictures.nth(SIMILARITY).wait_for()

    idle = "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"

    def shown() -> list[str]:
        return [pictures.nth(i).get_attribute("src") or "" for i in range(TABLE)] + [box.locator("table").first.inner_text()]

    def changes(act: Any, which: list[int]) -> None:
        page.wait_for_function(idle)  # the redraw before this one may still have pictures to come
        before = shown()
        act()
        for i in which:  # waits for the redraw, however long the machine takes
            old = before[i]
            if i < TABLE:
                sync_api.expect(pictures.nth(i)).not_to_have_attribute("src", old, timeout=GUARD * 1000)
            else:
                sync_api.expect(box.locator("table").first).not_to_have_text(old, timeout=GUARD * 1000, use_inner_text=True)

    select = lambda name: box.locator(f".widget-dropdown:has(label:text-is('{name}')) select")  # noqa: E731
    changes(lambda: select("criterion").select_option("kernel_l1"), [NORMS])
    assert select("reading").is_disabled()
    changes(lambda: select("criterion").select_option("fcs"), [NORMS])
    changes(lambda: select("reading").select_option("mean_map"), [SIMILARITY])
    changes(lambda: select("layer").select_option("features.conv2"), [NORMS, SIMILARITY, PAIR])
    slider = box.locator(".widget-slider:has(label:text-is('ratio')) .widget-readout")

    def set_ratio() -> None:
        slider.click()
        page.keyboard.press("Control+A")
        page.keyboard.type("0.7")
        page.keyboard.press("Enter")

    changes(set_ratio, [NORMS, TABLE])
    select("against").select_option("kernel_l1")
    versus = box.get_by_text("go by both")
    versus.wait_for()
    here = Exploration(Study("smoke", smoke), "vgg16", 0)  # the same numbers without the page
    parts = here.both(Choice("features.conv2", reading="mean_map", ratio=0.7), "kernel_l1")
    assert f"{len(parts['both'])} go by both" in versus.inner_text()
    assert f"{len(parts['kernel_l1'])} go by kernel_l1 alone" in versus.inner_text()
    changes(lambda: box.locator("button", has_text="Accuracy over ratios").click(), [CURVE])
    box.locator("button", has_text="Prune and save").click()
    code = box.locator("pre")
    code.wait_for()
    if folder := os.environ.get("FCS_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/explorer.png")
    script = (
        code.inner_text() + "\nimport torch\nprint(compact(torch.zeros(2, 1, 32, 32)).shape, compact.features.conv2.out_channels)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([2, 10]) 2"  # of 8 channels at ratio 0.7
    assert not [said for said in watched.trouble if "another host" in said]
    page.close()
