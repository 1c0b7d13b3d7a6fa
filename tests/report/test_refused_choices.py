"""The explorer shows nothing of a choice that was left, and does nothing with one that is refused."""

from __future__ import annotations

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.explorer import Explorer
from fcs_utils.report.subject import Subject, Subjects, Tell, in_silence, study_subject
from fcs_utils.study.study import Study
from tests.conftest import FEW

CHOICE = Choice("features.conv2", bins=3, ratio=0.5)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(FEW, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def here(study: Study) -> Exploration:
    return Exploration(study_subject(study, "vgg16", 0))


@pytest.fixture
def source(study: Study) -> Subjects:
    def one(dataset: str, network: str, seed: int, layer: str = "", tell: Tell = in_silence) -> Subject:
        return study_subject(study, network, seed, layer, tell)

    return Subjects([FEW.dataset], {"vgg16": "VGG-16"}, [0], study.store.explored, one)


def test_a_choice_that_is_refused_is_neither_saved_nor_tuned(here: Exploration, source: Subjects) -> None:
    explorer = Explorer(source, here, CHOICE)
    controls, words = explorer.controls, "latency=&#x27;fast&#x27; is not allowed"
    before = explorer.numbers.value
    controls["latency"].value = "fast"  # while another goal is asked for
    controls["goal"].value = "latency"
    assert words in explorer.said.value and explorer.tuning.start.disabled
    for act in (explorer.save.click, explorer.trace.click, lambda: setattr(explorer.merge, "value", True)):
        explorer.said.value = ""
        act()
        assert words in explorer.said.value and explorer.curve.value == b"" and explorer.tuning.start.disabled
    controls["goal"].value = "ratio"
    assert explorer.said.value == "" and explorer.numbers.value == before and not explorer.tuning.start.disabled
    explorer.save.click()
    assert "Saved" in explorer.said.value


def test_a_comparison_that_cannot_be_made_leaves_none_of_the_choice_before(
    here: Exploration, source: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = Explorer(source, here, CHOICE)
    explorer.controls["against"].value = "kernel_l1"
    assert "go by both" in explorer.versus.value

    def fails(*_: object) -> dict[str, list[int]]:
        raise StudyError("macs=0.1 is not allowed")

    monkeypatch.setattr(here, "both", fails)
    explorer.controls["against"].value = "random"
    assert explorer.versus.value == "" and "macs=0.1" in explorer.said.value


@pytest.mark.slow
def test_a_curve_of_another_reading_goes(here: Exploration, source: Subjects) -> None:
    explorer = Explorer(source, here, CHOICE)
    for control, value, goes in (
        ("bins", 2, True),
        ("reading", "mean_map", True),
        ("ratio", 0.3, False),
        ("criterion", "random", True),
    ):
        explorer.curve.value = b"drawn"
        explorer.controls[control].value = value
        assert (explorer.curve.value == b"") is goes, control
