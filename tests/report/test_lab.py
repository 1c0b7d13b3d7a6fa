"""The explorer in JupyterLab in a real browser: what it shows after a control moved is what the library says without the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest

from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.live_tuning import LiveTuning
from fcs_utils.report.subject import study_subject
from fcs_utils.study.study import Study
from tests.conftest import ROOT
from tests.report.browsing import SIZES, needs_chromium, sync_api
from tests.report.explorer_page import Opened, jupyterlab

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def lab(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab over a folder with the explorer, once for each size, its parameters set to the smoke study."""
    notebook = nbformat.read(NOTEBOOKS["explore"].source, as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = parameters.source.replace('"quick"', '"smoke"').replace('"results"', json.dumps(str(smoke)))
    home = tmp_path_factory.mktemp("lab")
    (home / "work").mkdir()
    (home / "work" / "photos").mkdir()
    (home / "work" / "my.safetensors").touch()
    for size in SIZES:
        nbformat.write(notebook, home / "work" / f"{size}.ipynb")
    with jupyterlab(home) as address:
        yield address


@pytest.fixture(scope="module")
def here(smoke: Path) -> Exploration:
    """The same numbers without the page."""
    return Exploration(study_subject(Study("smoke", smoke), "vgg16", 0))


@pytest.mark.slow
def test_every_control_changes_the_numbers_to_those_of_the_library(
    browser: Any, lab: str, smoke: Path, here: Exploration, tmp_path: Path
) -> None:
    opened = Opened(browser, lab, "desktop")
    box, choice = opened.box, Choice(here.first)
    opened.shows(here, choice)
    assert here.whole(choice).plain[1] > 50  # not chance level, which is 10
    opened.select("criterion").select_option("kernel_l1")
    opened.shows(here, replace(choice, criterion="kernel_l1"))
    sync_api.expect(opened.select("reading")).to_be_disabled()
    opened.select("criterion").select_option("fcs")
    before = opened.picture("similarity")
    opened.select("reading").select_option("mean_map")
    opened.redraws("similarity", before)
    opened.type("bins", "2")
    opened.select("layer").select_option("features.conv2")
    opened.type("ratio", "0.7")
    choice = Choice("features.conv2", reading="mean_map", bins=2, ratio=0.7)
    opened.shows(here, choice)
    opened.select("against").select_option("kernel_l1")
    parts = here.both(choice, "kernel_l1")
    for name, words in (("both", "both"), ("fcs", "fcs alone"), ("kernel_l1", "kernel_l1 alone")):
        box.get_by_text(f"{len(parts[name])} go by {words}: {', '.join(map(str, parts[name]))}".removesuffix(": ")).wait_for()
    other = here.whole(replace(choice, criterion="kernel_l1")).plain
    sync_api.expect(box.locator("table").last).to_contain_text(
        f"kernel_l1\t{other[0]:.1f} %\t{other[1]:.1f} %", use_inner_text=True
    )
    for control, value in (("dropped", 1), ("image", "3")):
        before = opened.picture("pair")
        opened.select(control).select_option(index=value) if control == "dropped" else box.get_by_label(control).fill(value)
        box.get_by_label("image").press("Enter")
        opened.redraws("pair", before)
    opened.click("Accuracy over ratios")
    box.locator(".fcs-curve").wait_for()
    opened.select("goal").select_option("MACs to leave")
    opened.type("MACs", "0.4")
    choice = choice.with_goal("macs", 0.4)
    opened.shows(here, choice)
    opened.select("goal").select_option("latency to leave")
    opened.type("latency", "fast")
    box.get_by_role("alert").get_by_text("latency='fast' is not allowed").wait_for()
    opened.select("goal").select_option("MACs to leave")
    for name, shown in (("ratio", False), ("MACs", True), ("latency", False)):
        sync_api.expect(box.locator(f".widget-inline-hbox:has(label:text-is('{name}'))")).to_be_visible(visible=shown)
    opened.shows(here, choice)
    opened.click("Prune and save")
    code = box.locator("pre")
    code.wait_for()
    assert box.locator(".widget-html:has(pre)").evaluate("one => one.scrollWidth <= one.clientWidth")  # the path is all in view
    opened.photograph()
    script = (
        code.inner_text() + "\nimport torch\nprint(*compact(torch.zeros(2, 1, 32, 32)).shape, compact.features.conv2.out_channels)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"2 10 {len(here.whole(choice).plan.kept['features.conv2'])}"
    box.get_by_text("My network, my images").click()
    for name, offered in (("weights", "my.safetensors"), ("pictures", "photos")):
        sync_api.expect(box.locator(f".widget-inline-hbox:has(label:text-is('{name}')) option")).to_have_attribute("value", offered)
    opened.select("network").select_option("ResNet-20 x0.25")
    second = Exploration(study_subject(Study("smoke", smoke), "resnet20", 0))
    opened.shows(second, Choice(second.first, reading="mean_map", bins=2, ratio=0.7))
    signs = opened.page.evaluate("window.signs")
    assert any("working" in sign for sign in signs) and any("fcs: 3 of 9 ratios" in sign for sign in signs)
    sync_api.expect(box.get_by_role("status")).to_have_count(0)
    assert not [said for said in opened.watched.trouble if "another host" in said]
    opened.page.close()


@pytest.mark.slow
def test_controls_answer_after_two_were_moved_at_once(browser: Any, lab: str, here: Exploration) -> None:
    opened = Opened(browser, lab, "desktop")
    opened.select("layer").select_option("features.conv2")
    opened.select("goal").select_option("MACs to leave")
    for turn in range(5):  # the second is moved while the kernel still answers to the first
        opened.type("MACs", f"0.{4 + turn % 2}")
        opened.select("goal").select_option("latency to leave")
        opened.type("latency", f"fast{turn}")
        opened.box.get_by_role("alert").get_by_text(f"latency='fast{turn}' is not allowed").wait_for()
        opened.select("goal").select_option("MACs to leave")
        opened.shows(here, Choice("features.conv2").with_goal("macs", 0.4 + 0.1 * (turn % 2)))
    opened.page.close()


@pytest.mark.slow
def test_fine_tuning_is_live_can_be_stopped_and_fits_a_phone(browser: Any, lab: str, here: Exploration) -> None:
    opened = Opened(browser, lab, "phone")
    box, tuning = opened.box, LiveTuning(here, Choice(here.first), False, "tft", 1)
    while tuning.step():
        pass
    first, last = tuning.accuracies
    box.get_by_text(re.compile(r"TFT takes .* an epoch here")).wait_for()
    opened.type("epochs", "1")
    assert box.locator(".fcs-tuned").is_hidden()
    opened.click("Fine-tune here")
    box.get_by_text(f"TFT: {last:.1f} % after 1 epoch, {first:.1f} % before, on 128 images.").wait_for()
    before = opened.picture("tuned")
    assert any(re.search(r"TFT: epoch 1 of 1, batch \d+ of 15", sign) for sign in opened.page.evaluate("window.signs"))
    opened.select("arm").select_option("MLFT")
    box.get_by_text(re.compile(r"MLFT takes .* an epoch here")).wait_for()
    opened.type("epochs", "5")
    opened.page.evaluate("""() => {
        const stop = [...document.querySelectorAll('.fcs-explorer button')].find(one => one.innerText.includes('Stop'))
        new MutationObserver(() => stop.disabled || stop.click()).observe(stop, {attributes: true})
    }""")  # as soon as it may be clicked, for a fast machine trains five epochs in a second
    opened.click("Fine-tune here")
    box.get_by_text(re.compile(r"MLFT was stopped")).wait_for()
    opened.redraws("tuned", before)
    opened.photograph()
    window = SIZES["phone"]["width"]
    ends = opened.page.evaluate("""() => [...document.querySelectorAll(
        '.fcs-explorer :is(img, button, select, input, .widget-readout, .widget-html)')].filter(one => one.offsetWidth)
        .map(one => [one.className, one.getBoundingClientRect().left, one.getBoundingClientRect().right])""")
    pane = opened.page.evaluate(
        "(({left, right}) => [left, right])(document.querySelector('.fcs-explorer').getBoundingClientRect())"
    )
    assert 0 <= pane[0] < pane[1] <= window and len(ends) > 20
    assert not [one for one in ends if one[1] < pane[0] - 1 or one[2] > pane[1] + 1]
    opened.page.close()
