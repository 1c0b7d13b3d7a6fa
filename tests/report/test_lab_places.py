"""The explorer in JupyterLab on other data sets, seeds and networks, and what it writes: as the library says without the page."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch

from fcs_utils.models import build_model
from fcs_utils.pruning.export import load_compact, session
from fcs_utils.report import channels as pictures
from fcs_utils.report.arm_figures import accuracy_by_epoch
from fcs_utils.report.controls import own_network
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.live_tuning import LiveTuning
from fcs_utils.report.plots import png
from fcs_utils.report.subject import Subject, Subjects, Tell, in_silence, own_source, study_subject
from fcs_utils.study.study import Study
from tests.conftest import FEW
from tests.report.browsing import needs_chromium, sync_api
from tests.report.explorer_page import Opened, jupyterlab
from tests.users_folder import make_users_folder

pytestmark = [needs_chromium, pytest.mark.slow]

DATASETS = "digits[:128]", "digits[:160]"
CELL = """
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.explorer import Explorer
from tests.report.test_lab_places import places

source = places(OUT)
Explorer(source, Exploration(source.choose("digits[:128]", "vgg16", 0)), Choice("", ratio=0.2))
"""


def study(out: str | Path, dataset: str) -> Study:
    return Study(FEW.model_copy(update={"dataset": dataset, "seeds": (0, 1)}), Path(out) / dataset)


def places(out: str | Path) -> Subjects:
    """Two data sets and two seeds of one small network, trained when they are opened."""
    studies = {name: study(out, name) for name in DATASETS}

    def one(dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject:
        return study_subject(studies[dataset], network, seed, layer, tell)

    return Subjects(DATASETS, {"vgg16": "VGG-16 x0.125"}, [0, 1], studies[DATASETS[0]].store.explored, one)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    (folder / "work").mkdir()
    cell = nbformat.v4.new_code_cell(CELL.replace("OUT", repr(str(folder / "out"))))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "work" / "places.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[str]:
    with jupyterlab(home) as address:
        yield address


@pytest.fixture
def opened(browser: Any, lab: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.chdir(home / "work")
    make_users_folder(home / "work", "ownbrowsed")
    page = Opened(browser, lab, "desktop", "places")
    yield page
    page.page.close()
    sys.modules.pop("ownbrowsed", None)


def test_other_places_and_what_is_written_are_those_of_the_library(opened: Opened, home: Path) -> None:
    choice, signs = Choice("features.conv1", ratio=0.2), "window.signs"
    opened.select("layer").select_option(choice.layer)
    for control, value, dataset, seed in (("seed", "1", DATASETS[0], 1), ("data set", DATASETS[1], DATASETS[1], 1)):
        opened.page.evaluate("window.signs = []")
        opened.select(control).select_option(value)
        opened.page.wait_for_function("window.signs.some(one => one.includes('2 epochs of at most 2 done'))")
        here = Exploration(study_subject(study(home / "out", dataset), "vgg16", seed))
        opened.shows(here, choice)
        assert any("VGG-16 x0.125: training, 1 epoch of at most 2 done" in sign for sign in opened.page.evaluate(signs))
    _draws_what_the_library_draws(opened, here, choice)
    _tunes_and_writes_what_the_library_does(opened, here, choice)


def _draws_what_the_library_draws(opened: Opened, here: Exploration, choice: Choice) -> None:
    frame = here.layer(choice)
    gone = frame[~frame.stays].sort_values("score", kind="stable")
    opened.select("dropped").select_option(index=1)
    opened.box.get_by_label("image").fill("3")
    opened.box.get_by_label("image").press("Enter")
    channel, kept, cosine = int(gone.index[1]), int(gone["most similar kept"].iloc[1]), float(gone.cosine.iloc[1])
    opened.draws("pair", png(pictures.dropped_beside_kept(*here.maps(choice.layer, 3), channel, kept, cosine)))
    opened.click("Accuracy over ratios")
    found = {choice.criterion: here.over_ratios(choice)}
    opened.draws("curve", png(pictures.accuracy_over_ratios(found, here.dense_accuracy, here.subject.judged)))


def _tunes_and_writes_what_the_library_does(opened: Opened, here: Exploration, choice: Choice) -> None:
    box = opened.box
    for words in ("merge dropped channels", "write ONNX, too"):
        box.get_by_label(words).check()
    opened.select("arm").select_option("KD")
    opened.type("epochs", "1")
    tuning = LiveTuning(here, choice, True, "kd", 1)
    while tuning.step():
        pass
    first, last = tuning.accuracies
    opened.click("Fine-tune here")
    box.get_by_text(f"KD: {last:.1f} % after 1 epoch, {first:.1f} % before, on {here.subject.judged} images.").wait_for()
    opened.draws("tuned", png(accuracy_by_epoch({"kd": tuning.accuracies}, here.dense_accuracy, here.subject.judged)))
    example = here.images[:4]
    with torch.no_grad():
        wanted = {
            "Prune and save": here.compact(choice, True)(example),
            "Save the tuned network": tuning.networks[0].eval()(example),
        }
    for button, logits in wanted.items():
        opened.click(button)
        said = box.locator(".widget-html:has(pre)").filter(has_text="kd-1epochs" if "tuned" in button else re.compile("merge.safe"))
        said.locator("p code").last.wait_for()
        network, onnx = map(Path, said.locator("p code").all_inner_texts())
        width = {"width": 0.125, "in_channels": 1}
        loaded = load_compact(network, build_model("vgg16", num_classes=10, shortcut="A", **width)).eval()
        torch.testing.assert_close(loaded(example), logits, rtol=1e-4, atol=1e-4)
        (answer,) = session(onnx).run(None, {session(onnx).get_inputs()[0].name: example.numpy()})
        np.testing.assert_allclose(answer, logits.numpy(), rtol=1e-3, atol=1e-3)


def test_a_network_of_ones_own_opens_in_the_page(opened: Opened, home: Path) -> None:
    box = opened.box
    box.get_by_text("My network, my images").click()
    for name, value in (("weights", "my.safetensors"), ("pictures", "photos"), ("pixels", "16")):
        box.locator(f".widget-inline-hbox:has(label:text-is('{name}')) input").fill(value)
    opened.select("criterion").select_option("kernel_l1")
    network = box.locator(".widget-text:has(label:text-is('network')) input")
    for name in ("ownbrowsed:none", "ownbrowsed:build"):
        network.fill(name)
        network.press("Tab")
        opened.click("Open")
        if name.endswith("none"):
            box.get_by_role("alert").get_by_text("ownbrowsed:none").wait_for()
    source = own_source(own_network("ownbrowsed:build", "my.safetensors", "photos", 16), lambda name: home / name)
    mine = Exploration(source.choose("photos", "ownbrowsed:build", 0))
    opened.shows(mine, Choice(mine.first, "kernel_l1", ratio=0.2))
    sync_api.expect(opened.select("network")).to_have_value("ownbrowsed:build")
    opened.click("Back to the study")
    here = Exploration(study_subject(study(home / "out", DATASETS[0]), "vgg16", 0))
    opened.shows(here, Choice(here.first, "kernel_l1", ratio=0.2))
