"""What tests of pages and of the explorer share: a browser, and a small network to look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.subject import study_subject
from fcs_utils.study.study import Study
from tests.conftest import FEW


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.report.browsing import CHROMIUM, sync_api  # where it is not installed, only its own tests are skipped

    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Exploration:
    """A network that was trained in a second, opened in the explorer."""
    return Exploration(study_subject(Study(FEW, tmp_path_factory.mktemp("few")), "vgg16", 0))


@pytest.fixture
def choice(here: Exploration) -> Choice:
    """Half of the channels of its first layer that is shown."""
    return Choice(here.first, ratio=0.5)
