"""The explorer as a page of JupyterLab in a browser, with what a reader does there."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcs_utils.report.exploration import Choice, Exploration
from tests.conftest import GUARD, ROOT
from tests.report.browsing import SIZES, Watched, sync_api


@contextmanager
def jupyterlab(home: Path) -> Iterator[str]:
    """The address of JupyterLab on loopback over the folder ``work`` in ``home``; its settings lie beside it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--expose-app-in-browser",
        f"--ServerApp.root_dir={home / 'work'}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options],
        env={**os.environ, **folders, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=GUARD).close()  # noqa: S310 - loopback
                break
            except OSError:
                assert server.poll() is None, "JupyterLab did not start"
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=GUARD)


class Opened:
    """The explorer in a page of a size, after it has drawn its first view. name: of the notebook, by default the size's."""

    def __init__(self, browser: Any, lab: str, size: str, name: str = "") -> None:
        self.watched, self.size = Watched(browser, viewport=SIZES[size]), size
        self.page = page = self.watched.page
        page.goto(f"{lab}/lab/tree/{name or size}.ipynb?reset")
        page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')")
        page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready.then(() => null)")  # or it asks for a kernel
        page.evaluate("window.jupyterapp.shell.collapseLeft()")
        page.evaluate("void window.jupyterapp.commands.execute('runmenu:run-all')")
        self.box = page.locator(".fcs-explorer")
        self.box.locator(".fcs-similarity").wait_for()
        # Signs that stand there for a moment are remembered.
        page.evaluate("""() => {
            window.signs = []
            new MutationObserver(() => document.querySelectorAll('.fcs-explorer [role=status]').forEach(
                one => window.signs.push(one.innerText))).observe(document.body, {childList: true, subtree: true})
        }""")

    def select(self, name: str) -> Any:
        return self.box.locator(f".widget-dropdown:has(label:text-is('{name}')) select")

    def type(self, name: str, value: str) -> None:
        """Type into the number of a slider, or into a text."""
        row = self.box.locator(f".widget-inline-hbox:has(label:text-is('{name}'))")
        row.locator(".widget-readout, input[type=text]").last.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(value)
        self.page.keyboard.press("Enter")

    def click(self, words: str) -> None:
        self.box.locator("button", has_text=words).click()

    def shows(self, here: Exploration, choice: Choice) -> None:
        """Wait until costs, accuracies and the scores of the channels that go are those of a choice."""
        whole, frame, tables = here.whole(choice), here.layer(choice), self.box.locator("table")
        gone = frame[~frame.stays].sort_values("score", kind="stable")
        for table, words in (
            (0, f"{whole.cost.macs:,}"),
            (0, f"{100 * whole.cost.macs / here.dense_cost.macs:.1f} %"),
            (0, f"{whole.cost.params:,}"),
            (1, f"unpruned\t{here.dense_accuracy:.1f} %"),
            (1, f"pruned\t{whole.plain[0]:.1f} %\t{whole.plain[1]:.1f} %"),
            (1, f"merged\t{whole.merged[0]:.1f} %\t{whole.merged[1]:.1f} %"),
            (2, "\n".join(f"{channel}\t{score:.3f}" for channel, score in [*gone.score.items()][:1])),
        ):
            sync_api.expect(tables.nth(table)).to_contain_text(words, use_inner_text=True)

    def picture(self, name: str) -> str:
        return self.box.locator(f".fcs-{name}").get_attribute("src") or ""

    def draws(self, name: str, expected: bytes) -> None:
        """Wait until a picture is the one that was drawn without the page, byte for byte."""
        self.page.wait_for_function(
            """async ([name, wanted]) => {
                const shown = new Uint8Array(await (await fetch(document.querySelector('.fcs-' + name).src)).arrayBuffer())
                return btoa(shown.reduce((text, byte) => text + String.fromCharCode(byte), '')) === wanted
            }""",
            arg=[name, base64.b64encode(expected).decode()],
            polling=200,
        )

    def redraws(self, name: str, before: str) -> None:
        sync_api.expect(self.box.locator(f".fcs-{name}")).not_to_have_attribute("src", before)

    def photograph(self) -> None:
        if folder := os.environ.get("FCS_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/explorer-{self.size}.png")
