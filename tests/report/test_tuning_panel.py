"""The panel of fine-tuning in the explorer: what its buttons do, what it says, and what ends a training."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import ipywidgets as w
import pytest
import torch

from fcs_utils.errors import StudyError
from fcs_utils.pruning.export import load_compact
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.live_tuning import LiveTuning, TuningPanel, duration, seconds_a_batch

FEW_BATCHES = 2  # of 64 images, in an epoch of 128


def steady() -> Callable[[], float]:
    """A clock that goes on by 3 s each time it is read."""
    return map(float, count(0, 3)).__next__


def clicks(panel: TuningPanel, *, stop_after: int | None = None) -> list[str]:
    """Start a training, stop it where a number of steps says so; returns all that was said meanwhile."""
    said: list[str] = []
    panel.said.observe(lambda change: said.append(change["new"]), "value")

    async def scene() -> None:
        panel.start.click()
        assert panel.task is not None
        for step in count(1):
            await asyncio.sleep(0)
            if panel.task is None:
                return
            assert panel.start.disabled and not panel.stop.disabled
            if step == stop_after:
                panel.stop.click()

    asyncio.run(scene())
    assert panel.task is None and not panel.start.disabled and panel.stop.disabled
    return said


def test_a_training_in_the_panel_draws_a_line_for_each_arm_and_says_where_it_is(here: Exploration, choice: Choice) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)
    assert panel.curve.layout.display == "none"
    said = clicks(panel)
    assert any("TFT: epoch 2 of 2, batch 1 of 2 ..." in words for words in said)
    one, first = bytes(panel.curve.value), panel.lines["tft"]
    assert one.startswith(b"\x89PNG") and panel.curve.layout.display == ""
    assert len(first) == 3 and f"TFT: {first[-1]:.1f} % after 2 epochs, {first[0]:.1f} % before, on 128 images." in said[-1]
    panel.arm.value, panel.epochs.value = "mlft", 1
    clicks(panel)
    assert [len(line) for line in panel.lines.values()] == [3, 2] and [*panel.lines] == ["tft", "mlft"]
    assert bytes(panel.curve.value) != one and panel.lines["tft"] == first
    again = TuningPanel()
    again.choose(here, choice, False)
    clicks(again)
    assert again.lines["tft"] == first  # the seed decides


def test_stop_keeps_the_epochs_that_are_finished(here: Exploration, choice: Choice) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)
    panel.epochs.value = 5
    clicks(panel)
    whole = panel.lines["tft"]
    said = clicks(panel, stop_after=2 * FEW_BATCHES + 2)  # in the third epoch
    assert panel.lines["tft"] == whole[:3] and "was stopped: 2 of 5 epochs are finished and kept" in said[-1]
    said = clicks(panel, stop_after=1)
    assert panel.lines["tft"] == whole[:1] and "was stopped before an epoch was finished" in said[-1]


def test_a_tuned_network_is_saved_once_its_training_has_ended(here: Exploration, choice: Choice) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)
    assert panel.keep.disabled
    clicks(panel)
    assert not panel.keep.disabled
    panel.keep.click()
    found = re.search(r"Saved <code>(.*?)</code>.*load_compact", panel.said.value, re.DOTALL)
    assert found and found[1].endswith("-tft-2epochs.safetensors")
    again = load_compact(found[1], here.dense).eval()
    assert here.accuracy(again) == panel.lines["tft"][-1] != panel.lines["tft"][0]
    assert PruningPlan.from_json(Path(found[1]).with_suffix(".plan.json").read_text()) == here.whole(choice).plan
    clicks(panel, stop_after=FEW_BATCHES + 2)
    assert panel.keep.disabled and panel.done is None  # in the midst of an epoch
    clicks(panel)
    panel.choose(here, Choice(here.first, ratio=0.25), False)
    assert panel.keep.disabled and panel.done is None


def test_a_tuned_network_is_saved_as_onnx_too_where_that_is_ticked(here: Exploration, choice: Choice) -> None:
    runtime = pytest.importorskip("onnxruntime")
    panel = TuningPanel(onnx=(box := w.Checkbox(value=True)))
    panel.choose(here, choice, False)
    clicks(panel)
    panel.keep.click()
    (saved,) = re.findall(r"<code>([^<]*?\.onnx)</code>", panel.said.value)
    session = runtime.InferenceSession(saved, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: here.images.numpy()})[0])
    again = load_compact(Path(saved).with_suffix(".safetensors"), here.dense).eval()
    assert (found - again(here.images)).abs().max() < 1e-4 < (found - here.compact(choice, False)(here.images)).abs().max()
    box.value = False
    panel.keep.click()
    assert ".onnx" not in panel.said.value


def test_curves_of_another_choice_go_and_its_training_ends(here: Exploration, choice: Choice) -> None:
    panel, other = TuningPanel(), choice.with_goal("ratio", 0.3)
    panel.choose(here, choice, False)
    clicks(panel)
    panel.choose(here, Choice(here.layers[0], ratio=0.5), False)
    assert panel.lines  # another layer is looked at, of the same network
    panel.choose(here, choice, True)
    assert not panel.lines and panel.curve.layout.display == "none" and panel.said.value == ""

    async def scene() -> None:
        panel.start.click()
        await asyncio.sleep(0)
        task = panel.task
        panel.choose(here, other, True)
        assert task is not None
        await task

    asyncio.run(scene())
    assert not panel.lines and "stopped" not in panel.said.value and not panel.start.disabled


def test_what_goes_wrong_in_a_training_ends_it(here: Exploration, choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)

    def fails(self: LiveTuning) -> bool:
        raise StudyError("the loss is NaN")

    monkeypatch.setattr(LiveTuning, "step", fails)

    async def scene() -> None:
        panel.start.click()
        assert panel.task is not None
        await panel.task

    asyncio.run(scene())
    assert panel.errors.value == '<p role="alert">the loss is NaN</p>'
    assert panel.task is None and not panel.start.disabled


def test_the_pace_is_measured_here_and_scaled_by_macs(here: Exploration, choice: Choice) -> None:
    assert seconds_a_batch(here, choice, "tft", steady()) == 3
    panel, macs = TuningPanel(steady()), here.whole(choice).cost.macs
    panel.choose(here, choice, False)
    assert "TFT takes about 6 s an epoch here, about 12 s for 2:" in panel.pace.value and "rate 0.02" in panel.pace.value
    panel.epochs.value = 1
    assert re.search(r"about 6 s an epoch here: a few batches were timed", panel.pace.value)
    smaller = choice.with_goal("ratio", 0.2)
    panel.choose(here, smaller, False)
    assert f"about {6 * here.whole(smaller).cost.macs / macs:.0f} s an epoch" in panel.pace.value
    panel.arm.value = "kd"
    assert "KD takes about 6 s an epoch" in panel.pace.value  # timed at this choice
    both = {c: 3 * here.whole(c).cost.macs + here.dense_cost.macs for c in (choice, smaller)}
    panel.choose(here, choice, False)
    assert f"about {6 * both[choice] / both[smaller]:.0f} s an epoch" in panel.pace.value


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "under a second"), (41.3, "about 41 s"), (150, "about 2 min")])
def test_a_pace_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_choice_that_comes_before_the_first_batch_ends_a_training(here: Exploration, choice: Choice) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)

    async def scene() -> None:
        panel.start.click()
        panel.choose(here, choice.with_goal("ratio", 0.3), False)  # in another thread, before the loop comes to the training
        assert panel.task is not None
        await panel.task

    asyncio.run(scene())
    assert not panel.lines and panel.said.value == "" and panel.done is None and not panel.start.disabled


def test_a_training_that_fails_leaves_no_sign_that_it_goes_on(
    here: Exploration, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)
    whole, steps = LiveTuning.step, count()

    def fails(self: LiveTuning) -> bool:
        if next(steps) == FEW_BATCHES:
            raise RuntimeError("no memory left")
        return whole(self)

    monkeypatch.setattr(LiveTuning, "step", fails)
    said = clicks(panel)
    assert 'role="status"' in said[0] and panel.said.value == "" and "no memory left" in panel.errors.value


def test_a_sign_stands_there_while_batches_are_timed(here: Exploration, choice: Choice) -> None:
    panel, seen = TuningPanel(steady()), list[str]()
    panel.choose(here, choice, False)
    panel.pace.observe(lambda change: seen.append(change["new"]), "value")
    panel.arm.value = "kd"
    assert len(seen) == 2 and 'role="status"' in seen[0] and "timing KD" in seen[0] and "status" not in seen[1]


def test_in_a_kernel_batches_are_timed_after_the_rest_is_shown(
    here: Exploration, choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = TuningPanel(steady())

    async def scene() -> None:
        panel.choose(here, choice, False)
        assert "timing TFT" in panel.pace.value and not panel.speeds
        await asyncio.sleep(0)
        assert "TFT takes" in panel.pace.value

        monkeypatch.setattr(LiveTuning, "step", lambda _: [][0])
        panel.arm.value = "kd"
        await asyncio.sleep(0)
        assert panel.pace.value == "" and "IndexError" in panel.errors.value

    asyncio.run(scene())


def test_what_is_refused_can_be_tuned_again_after_it_was_mended(here: Exploration, choice: Choice) -> None:
    panel = TuningPanel()
    panel.choose(here, choice, False)
    panel.withdraw()
    assert panel.start.disabled and panel.pace.value == ""
    panel.arm.value = "kd"
    assert panel.pace.value == "" and not panel.speeds.keys() - {"tft"}
    panel.choose(here, choice, False)
    assert not panel.start.disabled and "KD takes" in panel.pace.value


def test_another_explorer_ends_the_trainings_of_those_before(here: Exploration, choice: Choice) -> None:
    old = TuningPanel()
    old.choose(here, choice, False)
    old.epochs.value = 5

    async def scene() -> None:
        old.start.click()
        assert old.task is not None
        await asyncio.sleep(0)
        TuningPanel.halt_all()
        await old.task

    asyncio.run(scene())
    assert "TFT was stopped" in old.said.value and not old.start.disabled
