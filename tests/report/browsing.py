"""What tests in a real browser share."""

from __future__ import annotations

import re
import shutil
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")
WAIT = 300_000  # milliseconds: nothing is judged by the clock, this only ends what hangs for ever
sync_api.expect.set_options(timeout=WAIT)
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}


class Watched:
    """A page whose console errors, failed requests and requests to other hosts are remembered."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(WAIT)
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
