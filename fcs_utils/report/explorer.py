"""The explorer: controls and pictures around an ``Exploration``. Without live widgets it shows a still first view."""

from __future__ import annotations

import base64
import html
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as w
import pandas as pd
import torch

from fcs_utils.errors import StudyError
from fcs_utils.pruning.fcs import assign_bins
from fcs_utils.pruning.latency_goal import latency_in_words
from fcs_utils.pruning.sums import Reading
from fcs_utils.report import channels as pictures
from fcs_utils.report.controls import IN_A_COLUMN, TABLE_STYLE, OwnForm, choice_controls, hide_empty
from fcs_utils.report.exploration import GOALS, Choice, Exploration
from fcs_utils.report.live_tuning import TuningPanel
from fcs_utils.report.plots import png
from fcs_utils.report.subject import Subjects
from fcs_utils.report.turns import TURN, answering
from fcs_utils.report.words import going_on, numbers, refused_as, saved_as

WIDGET = "application/vnd.jupyter.widget-view+json"
ROW = {"flex_flow": "row wrap"}
ALTS = (
    "L1 norms of a layer's channels by bin; faint bars go",
    "similarity of all pairs of a layer's channels, ordered by bin",
    "a dropped channel's map beside that of the kept channel most similar to it",
)
PICTURE = ' class="picture"'  # pages show it in its own colours in the dark, too
DRAWN = ("norms", "similarity", "pair", "curve")


class Explorer:
    """Widgets over the networks of a source. ``first`` is what they show when they open; a bad one is a StudyError."""

    def __init__(self, source: Subjects, exploration: Exploration, first: Choice) -> None:
        first = replace(first, layer=first.layer or exploration.first)
        exploration.layer(first)
        TuningPanel.halt_all()
        self.source, self.here, self.quiet = source, exploration, False
        self.refused, self.scored_by = "", ("", dict[str, Any]())
        self.controls = choice_controls(first)
        self.merge = self.controls["merge"]
        self.onnx = w.Checkbox(value=False, description="write ONNX, too", indent=False)
        self.save = w.Button(description="Prune and save", icon="scissors", button_style="primary")
        self.trace = w.Button(description="Accuracy over ratios", icon="line-chart", layout={"width": "auto"})
        self.busy, self.versus, self.left_out = w.HTML(), w.HTML(), w.HTML()
        shown = {name: w.Image(format="png").add_class(f"fcs-{name}") for name in DRAWN}
        self.norms, self.similarity, self.pair, self.curve = shown.values()
        self.pictures = dict(zip(ALTS, shown.values(), strict=False))
        for picture in shown.values():
            picture.observe(hide_empty, "value")
            picture.layout.display = "none"
        self.why, self.numbers, self.said, errors = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.tuning, self.own = TuningPanel(onnx=self.onnx), OwnForm()
        buttons = ((self.save, self._save), (self.trace, self._curve), (self.own.open, self._own), (self.own.back, self._back))
        for button, act in buttons:
            button.on_click(answering(partial(self._answer, act), errors))
        self.home = source
        self._settle(first.goal[0])
        self.controls["layer"].value = first.layer
        acts = (self._open, self._layer, self._versus, self._matrix, self._pair, self._tune)
        with TURN:
            self.errors = w.VBox([errors, *(self._live(act) for act in acts)])

    @property
    def choice(self) -> Choice:
        """What the controls hold. Raises StudyError while it is refused: what is shown is then of the choice before."""
        if self.refused:
            raise StudyError(self.refused)
        return self.chosen

    def _live(self, act: Callable[..., Any]) -> w.HTML:
        """Call ``act`` now, and whenever a control changes that a parameter of it names; later errors appear in the widget."""
        errors, controls = w.HTML(), {name: self.controls[name] for name in inspect.signature(act).parameters}

        def call() -> None:
            self._answer(act, **{name: control.value for name, control in controls.items()})

        for control in controls.values():
            control.observe(answering(call, errors), "value")
        call()
        return errors

    def _answer(self, act: Callable[..., Any], *arguments: Any, **values: Any) -> None:
        if self.quiet:  # several controls are put to what they should show
            return
        self._tell("working")  # what is shown meanwhile is of the choice before
        try:
            act(*arguments, **values)
        except StudyError as error:  # something that the user can change
            self.said.value = refused_as(error)
        finally:
            self.busy.value = ""

    def _tell(self, words: str) -> None:
        self.busy.value = going_on(words)

    def _open(self, dataset: str, network: str, seed: int) -> None:
        if (dataset, network, seed) != self.here.subject.place:
            self._show(self.source, dataset, network, seed)

    def _show(self, source: Subjects, dataset: str, network: str, seed: int) -> None:
        """Open another network. Where that fails, the controls go back to the one that is shown."""
        title = source.networks.get(network, network)
        self._tell(f"reading {title}, seed {seed}")
        goal = self.controls["goal"].value
        same = source is self.source and network == self.here.subject.place.network
        try:
            layer = self.controls["layer"].value if same else ""
            self.here = Exploration(source.choose(dataset, network, seed, layer, lambda words: self._tell(f"{title}: {words}")))
            self.source, goal = source, "ratio"  # one that every network reaches
        finally:
            self._settle(goal)
        self.curve.value, self.said.value = b"", ""
        self.controls["opened"].value += 1

    def _settle(self, goal: str) -> None:
        """Put the controls to the network that is shown and to a goal, without an answer to each of them."""
        subject, controls, self.quiet = self.here.subject, self.controls, True
        choices = {name: list(getattr(self.source, f"{name}s")) for name in ("dataset", "seed")}
        for name, options in {**choices, "network": [(title, name) for name, title in self.source.networks.items()]}.items():
            controls[name].options, controls[name].value = options, getattr(subject.place, name)
            controls[name].layout.display = "" if len(options) > 1 or name == "network" else "none"
        criteria = self.here.criteria
        for name, options in (("layer", self.here.layers), ("criterion", criteria), ("against", ["", *criteria])):
            before = controls[name].value
            controls[name].options = options
            controls[name].value = before if before in options else self.here.first if name == "layer" else options[0]
        controls["goal"].value = goal
        left_out = (f"Left out for this network: {html.escape(reason)}." for reason in self.here.left_out.values())
        self.left_out.value = "".join(f"<p>{words}</p>" for words in left_out)
        controls["image"].max = len(self.here.images) - 1
        self.own.back.layout.display = "none" if self.source is self.home else ""
        self.quiet = False

    def _own(self) -> None:
        self._tell("reading your pictures, and scoring your network on them")
        source, wanted = self.own.source(self.home.save_to)
        self._show(source, source.datasets[0], wanted.model, wanted.seed)

    def _back(self) -> None:
        self._show(self.home, self.home.datasets[0], next(iter(self.home.networks)), self.home.seeds[0])

    def _layer(
        self,
        opened: int,
        layer: str,
        criterion: str,
        reading: Reading,
        bins: int,
        goal: str,
        ratio: float,
        macs: float,
        latency: str,
    ) -> None:
        for name in GOALS:
            self.controls[name].layout.display = "" if name == goal else "none"
        amount = {"ratio": ratio, "macs": macs, "latency": latency_in_words(latency)}[goal]
        try:
            choice = Choice(layer, criterion, reading, bins).with_goal(goal, amount)
            frame, taken, dropped = self.here.layer(choice), self.here.options(choice), self.controls["dropped"]
        except StudyError as error:
            self.refused = str(error)
            self.tuning.withdraw()
            raise
        self.chosen, self.refused = choice, ""
        if self.scored_by != (criterion, taken):
            self.scored_by, self.curve.value = (criterion, taken), b""  # of another order of the channels
        for name in ("reading", "bins"):
            self.controls[name].disabled = name not in taken
        norms, bin_of, kept = torch.tensor(frame["L1 norm"]), torch.tensor(frame["bin"]), frame.index[frame.stays].tolist()
        self.norms.value = png(pictures.bins_over_norms(norms, bin_of, f"{self.here.subject.title} {layer}: faint bars go", kept))
        gone = frame[~frame.stays].drop(columns="stays").sort_values("score", kind="stable").reset_index()
        self.why.value = gone.to_html(index=False, border=0, max_rows=12, float_format="{:.3f}".format)
        self.numbers.value, self.said.value = numbers(self.here, choice), ""
        before, pairs = dropped.label, gone[["channel", "most similar kept", "cosine"]].itertuples(index=False, name=None)
        dropped.options = [(str(pair[0]), (opened, layer, *pair)) for pair in pairs]
        labels = [label for label, _ in dropped.options]
        dropped.index = labels.index(before) if before in labels else 0 if labels else None
        self.controls["chosen"].value += 1

    def _versus(self, chosen: int, against: str) -> None:
        layer, criterion = self.choice.layer, self.choice.criterion
        if against in ("", criterion):
            self.versus.value = ""
            return
        try:
            parts = self.here.both(self.choice, against)
            tops = [(name, *self.here.whole(replace(self.choice, criterion=name)).plain) for name in (criterion, against)]
        except StudyError:  # a goal that the second one cannot reach
            self.versus.value = ""
            raise
        said = [
            f"<b>{html.escape(layer)}</b>: {len(gone)} go by {'both' if name == 'both' else f'{name} alone'}"
            + (f": {', '.join(map(str, gone))}" if gone else "")
            for name, gone in parts.items()
        ]
        heads = [f"whole network, top-1 of {self.here.subject.judged} images", "after surgery", "BatchNorm recalibrated"]
        table = pd.DataFrame(tops, columns=heads).to_html(index=False, border=0, float_format="{:.1f} %".format)
        self.versus.value = f"<p>{'<br>'.join(said)}</p>{table}"

    def _curve(self) -> None:
        names = dict.fromkeys(filter(None, (self.choice.criterion, self.controls["against"].value)))
        found = {name: self.here.over_ratios(replace(self.choice, criterion=name), self._tell) for name in names}
        self.curve.value = png(pictures.accuracy_over_ratios(found, self.here.dense_accuracy, self.here.subject.judged))

    def _matrix(self, opened: int, layer: str, reading: Reading, bins: int) -> None:
        known, title = self.here.statistics[layer], f"{self.here.subject.title} {layer}"
        self.similarity.value = png(
            pictures.similarity_by_bin(known.similarity(reading), assign_bins(known.l1, bins), known.l1, title)
        )

    def _pair(self, dropped: tuple[int, str, int, int, float] | None, image: int) -> None:
        if dropped:
            _, layer, gone, kept, cosine = dropped
            self.pair.value = png(pictures.dropped_beside_kept(*self.here.maps(layer, image), gone, kept, cosine))
        else:  # a small layer, a small ratio: it rounds to no channel
            self.pair.value = b""

    def _tune(self, chosen: int, merge: bool) -> None:
        self.tuning.choose(self.here, self.choice, merge)

    def _save(self) -> None:
        path = self.here.save(self.choice, self.merge.value)
        files = [path, *([self.here.export(self.choice, self.merge.value, path)] if self.onnx.value else [])]
        self.said.value = saved_as(self.here, files)

    def widget(self) -> w.Widget:
        """Everything in one box: controls to the left, what they do to the right."""
        choice = [self.controls[name] for name in IN_A_COLUMN]
        files = [self.merge, self.onnx, self.save, self.said]
        above = [w.HTML(TABLE_STYLE), *choice, self.left_out, self.busy, self.numbers, self.trace]
        left = [*above, *files, self.own.widget(), self.errors]
        controls = w.VBox(left, layout={"width": "330px", "max_width": "100%", "flex": "0 0 auto"})
        pair = w.VBox([w.HBox([self.controls["dropped"], self.controls["image"]], layout=ROW), self.pair])
        why = w.HBox([self.why, pair], layout=ROW)
        right = [why, self.versus, self.curve, self.tuning.widget(), self.norms, self.similarity]
        box = w.HBox([controls, w.VBox(right, layout={"flex": "1 1 22rem", "min_width": "0"})], layout=ROW)
        return box.add_class("fcs-explorer")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """JupyterLab shows the widget; rendered pages and GitHub, which have no kernel, show what it holds now."""
        live = {kind: content for kind, content in self.widget()._repr_mimebundle_().items() if kind == WIDGET}
        images = ""
        for alt, image in self.pictures.items():
            if image.value:
                kind, content = "" if image is self.norms else PICTURE, base64.b64encode(image.value).decode()
                images += f'<img alt="{alt}"{kind} src="data:image/png;base64,{content}">'
        still = f"{self.numbers.value}{images}{self.why.value}"
        return {**live, "text/html": still, "text/plain": f"explorer of {self.here.subject.title}"}
