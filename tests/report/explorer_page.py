"""The explorer as a page of JupyterLab in a browser, with what a reader does there."""

from __future__ import annotations

import os
from typing import Any

from fcs_utils.report.exploration import Choice, Exploration
from tests.report.browsing import SIZES, Watched, sync_api


class Opened:
    """The explorer in a page of a size, after it has drawn its first view."""

    def __init__(self, browser: Any, lab: str, size: str) -> None:
        self.watched, self.size = Watched(browser, viewport=SIZES[size]), size
        self.page = page = self.watched.page
        page.goto(f"{lab}/lab/tree/{size}.ipynb?reset")
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

    def redraws(self, name: str, before: str) -> None:
        sync_api.expect(self.box.locator(f".fcs-{name}")).not_to_have_attribute("src", before)

    def photograph(self) -> None:
        if folder := os.environ.get("FCS_SCREENSHOTS"):
            self.page.screenshot(path=f"{folder}/explorer-{self.size}.png")
