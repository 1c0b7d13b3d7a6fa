"""Real browsers: the explorer in JupyterLab and Debian's Chromium. Skipped where it is not installed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.study.study import Study
from tests.conftest import GUARD, ROOT
from tests.report.browsing import Watched, needs_chromium

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = needs_chromium
PAIR, CURVE, NORMS, SIMILARITY, TABLE = range(5)  # what the explorer shows: its pictures in their order, and the first table


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
