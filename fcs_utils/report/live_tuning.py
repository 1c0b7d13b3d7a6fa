"""Fine-tuning inside the explorer, one batch a step, so that the kernel answers in between. No record is written."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from statistics import median
from typing import Any, ClassVar

import ipywidgets as w
import torch
from torch import nn

from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.report.arm_figures import accuracy_by_epoch
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.report.plots import png
from fcs_utils.report.turns import after_this, answering, in_its_turn
from fcs_utils.report.words import ended, going_on, saved_as
from fcs_utils.training.arms import arm_label, get_arm
from fcs_utils.training.evaluate import evaluate
from fcs_utils.training.loop import Callbacks, Epoch, fit_in_steps
from fcs_utils.training.passes import Execution

ARMS_HERE = ("tft", "kd", "mlft")
MOST_EPOCHS = 5
END = object()
PACED = 2  # batches behind the pace, after one that is not timed


class LiveTuning:
    """A compact network that is being tuned, beside a copy of the unpruned one where the arm has a peer; by ``fit``'s own loop.

    accuracies: top-1 in percent on the explorer's images, before the first epoch and after each. history: of ``fit``, once all
    epochs are done. Between two steps, torch's generators are others'.
    """

    def __init__(self, here: Exploration, choice: Choice, merge: bool, arm: str, epochs: int) -> None:
        subject, peers = here.subject, get_arm(arm).networks - 1
        self.arm, self.epochs = arm, epochs
        self.networks = [here.compact(choice, merge), *(copy.deepcopy(here.dense) for _ in range(peers))]
        self.accuracies, self.batch = [here.accuracy(self.networks[0])], 0
        self.history: list[Epoch] | None = None
        training = subject.training.model_copy(update={"epochs": epochs})
        beside = Callbacks(evaluate=lambda networks: self._judged(networks, here), label=f"tuning {subject.place.network} by {arm}")
        execution, seed = Execution(subject.precision), subject.place.seed
        self._steps: Generator[None, None, list[Epoch]] = fit_in_steps(
            self.networks, training, subject.batches, arm, seed, execution, beside
        )
        device = next(here.dense.parameters()).device
        self._devices, self._states = [device] if device.type == "cuda" else [], list[torch.Tensor]()

    def _judged(self, networks: Sequence[nn.Module], here: Exploration) -> dict[str, float | None]:
        found = evaluate(networks, here.subject.judges, here.subject.precision)
        self.accuracies.append(found["validation"] or 0.0)
        self.batch = 0
        return found

    @property
    def finished(self) -> int:
        """Epochs that are done."""
        return len(self.accuracies) - 1

    def step(self) -> bool:
        """Train one batch; at the first call, look at the batches only. False: that was the last one. Raises as ``fit`` does."""
        before = self.finished
        with torch.random.fork_rng(self._devices):
            if self._states:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self._devices, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            try:
                next(self._steps)
            except StopIteration as end:
                self.history = end.value
                return False
            finally:
                self._states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]
        self.batch += self.finished == before
        return True

    def close(self) -> None:
        """End it where it is; the networks are then of no use."""
        with torch.random.fork_rng(self._devices):
            self._steps.close()


def steps_an_epoch(here: Exploration) -> int:
    """Batches in an epoch of tuning."""
    batches: Any = here.subject.batches(here.subject.place.seed, 1)
    return len(batches)


def seconds_a_batch(here: Exploration, choice: Choice, arm: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long a batch of an arm takes here: the median of ``PACED``, or of those that an epoch has, on copies."""
    tuning, marks = LiveTuning(here, choice, False, arm, 1), [clock()]
    for _ in range(2 + PACED):
        going_on = tuning.step()
        marks.append(clock())
        if not going_on:
            break
    tuning.close()
    taken = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return median(taken[2:] or taken[1:])  # the first step trains nothing, and the second is slower than others


def duration(seconds: float) -> str:
    """Seconds in words, as exact as a pace can be."""
    return "under a second" if seconds < 1 else f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"


class TuningPanel:
    """Controls, the pace and the curve. One training at a time; a line for each arm that was tried on the present choice.

    training: all panels of the kernel whose training goes on.
    """

    training: ClassVar[set[TuningPanel]] = set()

    def __init__(self, clock: Callable[[], float] = time.perf_counter, onnx: w.Checkbox | None = None) -> None:
        self.onnx = onnx or w.Checkbox(value=False)  # whether a tuned network is written as ONNX, too
        self.clock, self.speeds = clock, dict[str, float]()  # multiply-adds a second by arm, on the present subject
        self.chosen: tuple[Exploration, Choice, bool] | None = None
        self.of: tuple[Exploration, PruningPlan, bool] | None = None  # what the curves are of
        self.lines, self.halted = dict[str, list[float]](), False
        self.task: asyncio.Task[None] | None = None
        self.arm = w.Dropdown(options=[(arm_label(arm), arm) for arm in ARMS_HERE], value="tft", description="arm")
        self.epochs = w.IntSlider(value=2, min=1, max=MOST_EPOCHS, description="epochs")
        self.start = w.Button(description="Fine-tune here", icon="play", button_style="primary")
        self.stop = w.Button(description="Stop", icon="stop", disabled=True)
        self.keep = w.Button(description="Save the tuned network", icon="save", disabled=True, layout={"width": "auto"})
        self.done: tuple[Exploration, Choice, bool, LiveTuning] | None = None  # the last training that came to its end
        self.pace, self.said, self.errors = w.HTML(), w.HTML(), w.HTML()
        self.curve = w.Image(format="png", layout={"display": "none"}).add_class("fcs-tuned")
        self.start.on_click(answering(self._begin, self.errors))
        self.stop.on_click(lambda _: self.halt())
        self.keep.on_click(answering(self._keep, self.errors))
        for control in (self.arm, self.epochs):
            control.observe(answering(self.state_pace, self.errors), "value")

    @classmethod
    def halt_all(cls) -> None:
        """Stop the trainings of all panels: a cell that is run again shows a new one, and nobody sees the others."""
        for panel in [*cls.training]:
            panel.halt()

    def withdraw(self) -> None:
        """There is nothing to tune until something is chosen again; a training ends."""
        self.halt()
        self.chosen, self.pace.value, self.start.disabled = None, "", True

    def choose(self, here: Exploration, choice: Choice, merge: bool) -> None:
        """What is tuned from now on. Another network than before ends a training, and its curves go."""
        before, self.chosen, self.of = self.of, (here, choice, merge), (here, here.whole(choice).plan, merge)
        if before is None or before[0] is not here:
            self.speeds.clear()
        if before != self.of:
            self.halt()
            self.lines, self.said.value = {}, ""
            self.done, self.keep.disabled = None, True
            self._draw(here)
        self.start.disabled = self.task is not None
        self.state_pace()

    def state_pace(self) -> None:
        """Say how long the arm takes on this machine, from batches timed once for each arm and the MACs of the choice."""
        if self.chosen is None:
            return
        if self.arm.value in self.speeds:
            self._say_pace()
        else:  # timing takes seconds, most of them torch's import of its compiler: what else changed is shown first
            self.pace.value = going_on(f"timing {arm_label(self.arm.value)}")
            after_this(self._say_pace, self.errors)

    def _say_pace(self) -> None:
        if self.chosen is None:
            return
        (here, choice, _), arm, training = self.chosen, get_arm(self.arm.value), self.chosen[0].subject.training
        size, epochs = training.batch_size, self.epochs.value
        macs = arm.macs_per_image([here.whole(choice).cost.macs, here.dense_cost.macs][: arm.networks])
        if arm.name not in self.speeds:
            try:
                self.speeds[arm.name] = macs * size / seconds_a_batch(here, choice, arm.name, self.clock)
            except Exception:
                self.pace.value = ""
                raise
        seconds = steps_an_epoch(here) * macs * size / self.speeds[arm.name]
        whole = f", {duration(epochs * seconds)} for {epochs}" if epochs > 1 else ""
        self.pace.value = (
            f"<p>{arm.label} takes {duration(seconds)} an epoch here{whole}: a few batches were timed on this machine. "
            f"Batches of {size}, SGD, peak learning rate {training.learning_rate:g}.</p>"
        )

    def halt(self) -> None:
        """Stop after the batch that is being trained; finished epochs stay."""
        self.halted = True

    def _begin(self) -> None:
        if self.task is None and self.chosen is not None:
            self.halted = False  # what comes between now and the first batch may halt it
            steps = self._steps(self.lines, *self.chosen, self.arm.value, self.epochs.value)
            self.training.add(self)
            self.task = asyncio.get_running_loop().create_task(self._train(steps))

    async def _train(self, steps: Iterator[None]) -> None:
        self.start.disabled, self.stop.disabled = True, False
        self.done, self.keep.disabled = None, True
        more = True
        try:
            while more:
                more = False  # unless the batch is trained without an error
                with in_its_turn(self.errors):
                    more = next(steps, END) is not END
                if self.errors.value:
                    self.said.value = ""  # where it was when that happened
                await asyncio.sleep(0)  # a click on Stop, or another choice, is heard here
        finally:
            self.training.discard(self)
            self.task, self.start.disabled, self.stop.disabled = None, self.chosen is None, True

    def _steps(
        self, lines: dict[str, list[float]], here: Exploration, choice: Choice, merge: bool, arm: str, epochs: int
    ) -> Iterator[None]:
        """Train, a batch from one ``yield`` to the next. lines: of the panel when it was begun."""
        label = arm_label(arm)
        tuning = LiveTuning(here, choice, merge, arm, epochs)
        lines[arm], drawn, batches = tuning.accuracies, -1, steps_an_epoch(here)
        while not self.halted and tuning.step():
            at = f"epoch {tuning.finished + 1} of {epochs}, batch {tuning.batch} of {batches}"
            self.said.value = going_on(f"{label}: {at}")
            if tuning.finished > drawn:
                drawn = tuning.finished
                self._draw(here)
            yield
        tuning.close()
        if self.lines is lines:
            whole = tuning.history is not None
            self._draw(here)
            self.said.value = f"<p>{label}{ended(tuning.accuracies, epochs, whole, here.subject.judged)}</p>"
            if whole:
                self.done, self.keep.disabled = (here, choice, merge, tuning), False

    def _keep(self) -> None:
        if self.done is not None:
            here, choice, merge, tuning = self.done
            path = here.save(choice, merge, tuning.networks[0], tuning.arm, f"{tuning.epochs}epochs")
            files = [path, *([here.export(choice, merge, path, tuning.networks[0])] if self.onnx.value else [])]
            self.said.value = saved_as(here, files)

    def _draw(self, here: Exploration) -> None:
        self.curve.layout.display = "" if self.lines else "none"
        if self.lines:
            self.curve.value = png(accuracy_by_epoch(self.lines, here.dense_accuracy, here.subject.judged))

    def widget(self) -> w.Widget:
        """Controls above, the curve below."""
        row = w.HBox([self.arm, self.epochs, self.start, self.stop, self.keep], layout={"flex_flow": "row wrap"})
        return w.VBox([row, self.pace, self.said, self.curve, self.errors], layout={"min_width": "0"})
