"""The explorer: controls and pictures around an ``Exploration``. Without live widgets it shows a still first view."""

from __future__ import annotations

import base64
import html
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ipywidgets as w
import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.core.pylabtools import print_figure
from IPython.display import clear_output
from matplotlib.figure import Figure

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import scoring
from fcs_utils.pruning.fcs import assign_bins
from fcs_utils.pruning.sums import READINGS, Reading
from fcs_utils.report import channels as pictures
from fcs_utils.report.exploration import Choice, Exploration

WIDGET = "application/vnd.jupyter.widget-view+json"
ROW = {"flex_flow": "row wrap"}
ALTS = (
    "L1 norms of a layer's channels by bin; pale bars go",
    "similarity of all pairs of a layer's channels, ordered by bin",
    "a dropped channel's map beside that of the kept channel most similar to it",
)


def png(figure: Figure) -> bytes:
    """A figure as a PNG; closes it."""
    plt.close(figure)
    return print_figure(figure, dpi=90)


class Explorer:
    """Widgets over a study's reference networks. ``first`` is what they show when they open; a bad one is a StudyError."""

    def __init__(self, exploration: Exploration, first: Choice) -> None:
        first = replace(first, layer=first.layer or exploration.first)
        exploration.layer(first)
        self.here = exploration
        names, last = [network.network for network in exploration.study.profile.networks], len(exploration.images) - 1
        late = {"continuous_update": False}  # sliders answer when they are let go, not to every step on the way
        self.controls = {
            "network": w.Dropdown(options=names, value=exploration.reference.network, description="network"),
            "seed": w.Dropdown(options=exploration.study.profile.seeds, value=exploration.reference.seed, description="seed"),
            "layer": w.Dropdown(options=exploration.layers, value=first.layer, description="layer"),
            "criterion": w.Dropdown(options=scoring(), value=first.criterion, description="criterion"),
            "reading": w.Dropdown(options=READINGS, value=first.reading, description="reading"),
            "bins": w.IntSlider(value=first.bins, min=1, max=16, description="bins", **late),
            "ratio": w.FloatSlider(value=first.ratio, min=0.05, max=0.95, step=0.05, description="ratio", **late),
            "against": w.Dropdown(options=["", *scoring()], value="", description="against"),
            "dropped": w.Dropdown(description="dropped"),
            "image": w.BoundedIntText(value=0, min=0, max=last, description="image"),
        }
        self.merge = w.Checkbox(value=False, description="merge dropped channels into kept ones", indent=False)
        self.onnx = w.Checkbox(value=False, description="write ONNX, too", indent=False)
        self.save = w.Button(description="Prune and save", icon="scissors", button_style="primary")
        self.trace = w.Button(description="Accuracy over ratios", icon="line-chart", layout={"width": "auto"})
        self.curve = w.Image(format="png", layout={"max_width": "100%"})
        self.busy, self.versus = w.HTML(), w.HTML()
        self.pictures = {alt: w.Image(format="png", layout={"max_width": "100%"}) for alt in ALTS}
        self.norms, self.similarity, self.pair = self.pictures.values()
        self.why, self.numbers, self.said, errors = w.HTML(), w.HTML(), w.HTML(), w.Output()
        for button, act in ((self.save, self._save), (self.trace, self._curve)):
            button.on_click(errors.capture(clear_output=True)(lambda _, act=act: self._answer(act)))
        acts = (self._open, self._layer, self._versus, self._matrix, self._pair)
        self.errors = w.VBox([errors, *(self._live(act) for act in acts)])

    def _live(self, act: Callable[..., Any]) -> w.Output:
        """Call ``act`` now, and whenever a control changes that a parameter of it names; what it raises appears in the output."""

        def call(**values: Any) -> None:
            clear_output()  # an error of the call before
            self._answer(act, **values)

        return w.interactive_output(call, {name: self.controls[name] for name in inspect.signature(act).parameters})

    def _answer(self, act: Callable[..., Any], *arguments: Any, **values: Any) -> None:
        self._tell("working")  # what is shown meanwhile is of the choice before
        try:
            act(*arguments, **values)
        except StudyError as error:  # something that the user can change
            self.said.value = f'<p role="alert">{html.escape(str(error))}</p>'
        finally:
            self.busy.value = ""

    def _tell(self, words: str) -> None:
        self.busy.value = f'<p role="status"><b>{html.escape(words)} ...</b></p>'

    def _open(self, network: str, seed: int) -> None:
        if (network, seed) != (self.here.reference.network, self.here.reference.seed):
            self._tell(f"reading {network}, seed {seed}, or training it where it has no weights here")
            layer = self.controls["layer"].value if network == self.here.reference.network else ""
            self.here = Exploration(self.here.study, network, seed, layer)
            self.controls["layer"].options = self.here.layers
            self.controls["layer"].value = self.here.first
            self.curve.value = b""

    def _layer(self, network: str, layer: str, criterion: str, reading: Reading, bins: int, ratio: float) -> None:
        self.choice = Choice(layer, criterion, reading, bins, ratio)
        frame, taken, dropped = self.here.layer(self.choice), self.here.options(self.choice), self.controls["dropped"]
        for name in ("reading", "bins"):
            self.controls[name].disabled = name not in taken
        norms, bin_of, kept = torch.tensor(frame["L1 norm"]), torch.tensor(frame["bin"]), frame.index[frame.stays].tolist()
        self.norms.value = png(pictures.bins_over_norms(norms, bin_of, f"{network} {layer}: pale bars go", kept))
        gone = frame[~frame.stays].drop(columns="stays").sort_values("score", kind="stable").reset_index()
        self.why.value = gone.to_html(index=False, border=0, max_rows=12, float_format="{:.3f}".format)
        self.numbers.value, self.said.value = numbers(self.here, self.choice), ""
        before, pairs = dropped.label, gone[["channel", "most similar kept", "cosine"]].itertuples(index=False, name=None)
        dropped.options = [(str(pair[0]), (network, layer, *pair)) for pair in pairs]
        labels = [label for label, _ in dropped.options]
        dropped.index = labels.index(before) if before in labels else 0 if labels else None

    def _versus(self, network: str, layer: str, criterion: str, reading: Reading, bins: int, ratio: float, against: str) -> None:
        if against in ("", criterion):
            self.versus.value = ""
            return
        choice = Choice(layer, criterion, reading, bins, ratio)
        parts = self.here.both(choice, against)
        said = [
            f"<b>{html.escape(layer)}</b>: {len(gone)} go by {'both' if name == 'both' else f'{name} alone'}"
            + (f": {', '.join(map(str, gone))}" if gone else "")
            for name, gone in parts.items()
        ]
        tops = [(name, *self.here.whole(replace(choice, criterion=name)).plain) for name in (criterion, against)]
        heads = [f"whole network, top-1 of {len(self.here.judges)} images", "after surgery", "BatchNorm recalibrated"]
        table = pd.DataFrame(tops, columns=heads).to_html(index=False, border=0, float_format="{:.1f} %".format)
        self.versus.value = f"<p>{'<br>'.join(said)}</p>{table}"

    def _curve(self) -> None:
        names = dict.fromkeys(filter(None, (self.choice.criterion, self.controls["against"].value)))
        found = {name: self.here.over_ratios(replace(self.choice, criterion=name), self._tell) for name in names}
        self.curve.value = png(pictures.accuracy_over_ratios(found, self.here.dense_accuracy, len(self.here.judges)))

    def _matrix(self, network: str, layer: str, reading: Reading, bins: int) -> None:
        known = self.here.statistics[layer]
        figure = pictures.similarity_by_bin(known.similarity(reading), assign_bins(known.l1, bins), known.l1, f"{network} {layer}")
        self.similarity.value = png(figure)

    def _pair(self, dropped: tuple[str, str, int, int, float] | None, image: int) -> None:
        if dropped:
            _, layer, gone, kept, cosine = dropped
            self.pair.value = png(pictures.dropped_beside_kept(*self.here.maps(layer, image), gone, kept, cosine))
        else:  # a small layer, a small ratio: it rounds to no channel
            self.pair.value = b""

    def _save(self) -> None:
        path = self.here.save(self.choice, self.merge.value)
        files = [path, *([self.here.export(self.choice, self.merge.value, path)] if self.onnx.value else [])]
        names = " and ".join(f"<code>{html.escape(str(file))}</code>" for file in files)
        code = f'<pre style="white-space: pre; overflow-x: auto">{html.escape(self.here.loading_code(path.resolve()))}</pre>'
        self.said.value = f"<p>Saved {names}, with the plan beside. Load it anywhere with:</p>{code}"

    def widget(self) -> w.Widget:
        """Everything in one box: controls to the left, what they do to the right."""
        *choice, dropped, image = self.controls.values()
        left = [*choice, self.busy, self.numbers, self.trace, self.merge, self.onnx, self.save, self.said, self.errors]
        controls = w.VBox(left, layout={"width": "330px", "flex": "0 0 auto"})
        pair = w.VBox([w.HBox([dropped, image], layout=ROW), self.pair])
        right = [w.HBox([self.why, pair], layout=ROW), self.versus, self.curve, self.norms, self.similarity]
        box = w.HBox([controls, w.VBox(right, layout={"flex": "1 1 30rem", "min_width": "0"})], layout=ROW)
        return box.add_class("fcs-explorer")

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """JupyterLab shows the widget; rendered pages and GitHub, which have no kernel, show what it holds now."""
        live = {kind: content for kind, content in self.widget()._repr_mimebundle_().items() if kind == WIDGET}
        contents = {alt: base64.b64encode(image.value).decode() for alt, image in self.pictures.items() if image.value}
        images = "".join(f'<img alt="{alt}" src="data:image/png;base64,{content}">' for alt, content in contents.items())
        still = f"{self.numbers.value}{images}{self.why.value}"
        return {**live, "text/html": still, "text/plain": f"explorer of {self.here.reference.network}"}


def numbers(here: Exploration, choice: Choice) -> str:
    """What is left of the whole network, as HTML tables."""
    whole, dense = here.whole(choice), here.dense_cost
    costs = [("MACs", whole.cost.macs, dense.macs), ("parameters", whole.cost.params, dense.params)]
    left = [(name, f"{after:,}", 100 * after / before) for name, after, before in costs]
    tops = [("unpruned", here.dense_accuracy, None), ("pruned", *whole.plain), ("pruned and merged", *whole.merged)]
    judged = f"validation top-1, {len(here.judges)} images, no fine-tuning"
    heads = ["whole network", "left", "of the unpruned"], [judged, "after surgery", "BatchNorm recalibrated"]
    frames = [pd.DataFrame(rows, columns=head) for rows, head in zip((left, tops), heads, strict=True)]
    return "".join(frame.to_html(index=False, border=0, float_format="{:.1f} %".format, na_rep="") for frame in frames)
