"""The explorer: controls and pictures around an ``Exploration``. Where no widgets live, its first view is a still one."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets as w
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import CRITERIA
from fcs_utils.pruning.sums import READINGS
from fcs_utils.report import channels as pictures
from fcs_utils.report.exploration import Choice, Exploration
from fcs_utils.study.study import Study

CODE = '<pre style="white-space: pre; overflow-x: auto">'
WIDGET = "application/vnd.jupyter.widget-view+json"


def png(figure: Figure) -> bytes:
    """A figure as a PNG; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    plt.close(figure)
    return buffer.getvalue()


class Explorer:
    """Widgets over a study's reference networks. ``first`` is what they show when they open."""

    def __init__(self, study: Study, exploration: Exploration, first: Choice) -> None:
        self.study, self.here = study, exploration
        names = [network.network for network in study.profile.networks]
        self.network = w.Dropdown(options=names, value=exploration.reference.network, description="network")
        self.layer = w.Dropdown(options=exploration.layers, value=first.layer, description="layer")
        self.criterion = w.Dropdown(options=list(CRITERIA), value=first.criterion, description="criterion")
        self.reading = w.Dropdown(options=READINGS, value=first.reading, description="reading")
        # Sliders answer when they are let go: not to every step on the way.
        self.bins = w.IntSlider(value=first.bins, min=1, max=16, description="bins", continuous_update=False)
        self.ratio = w.FloatSlider(value=first.ratio, min=0.05, max=0.95, step=0.05, description="ratio", continuous_update=False)
        self.gone = w.Dropdown(description="dropped")
        self.image = w.BoundedIntText(value=0, min=0, max=len(exploration.images) - 1, description="image")
        self.merge = w.Checkbox(value=False, description="merge dropped channels into kept ones", indent=False)
        self.save = w.Button(description="Prune and save", icon="scissors", button_style="primary")
        self.similarity, self.norms, self.pair = (w.Image(format="png", layout={"max_width": "100%"}) for _ in range(3))
        self.why, self.numbers, self.said = w.HTML(), w.HTML(), w.HTML()
        for control in (self.layer, self.criterion, self.reading, self.bins, self.ratio):
            control.observe(self._guarded(self._choice_changed), "value")
        for control in (self.gone, self.image):
            control.observe(self._guarded(self._pair_changed), "value")
        self.network.observe(self._guarded(self._network_changed), "value")
        self.save.on_click(self._guarded(self._save))
        self._quiet = False
        self._drawn: tuple[Any, ...] = ()
        self._choice_changed()

    @property
    def choice(self) -> Choice:
        """What the controls hold."""
        return Choice(self.layer.value, self.criterion.value, self.reading.value, self.bins.value, self.ratio.value)

    def _guarded(self, act: Callable[[], None]) -> Callable[[Any], None]:
        def on_event(_event: Any) -> None:
            if self._quiet:  # a control that another one sets is not the user's doing
                return
            try:
                act()
            except StudyError as error:
                self.said.value = f'<p role="alert">{html.escape(str(error))}</p>'

        return on_event

    def _choice_changed(self) -> None:
        choice, here = self.choice, self.here
        view = here.layer(choice)
        taken = here.options(choice)
        self.reading.disabled, self.bins.disabled = "reading" not in taken, "bins" not in taken
        drawn = (here, choice.layer, choice.reading, choice.bins)
        if drawn != self._drawn:  # neither criterion nor ratio moves it
            self.similarity.value = png(pictures.similarity_by_bin(view.similarity, view.labels, view.norms, choice.layer))
            self._drawn = drawn
        self.norms.value = png(pictures.bins_over_norms(view.norms, view.labels, f"{choice.layer}: pale bars go", view.kept))
        self.why.value = view.why().to_html(index=False, border=0, max_rows=12)
        self.numbers.value = numbers(here, choice)
        self._quiet = True
        before, dropped = self.gone.value, list(view.twins)
        self.gone.options = dropped
        self.gone.value = before if before in dropped else int(view.why().channel.iloc[0]) if dropped else None
        self._quiet = False
        self.said.value = ""
        self._view = view
        self._pair_changed()

    def _pair_changed(self) -> None:
        gone = self.gone.value
        if gone is None:  # a small layer, a small ratio: it rounds to no channel
            self.pair.value = b""
            return
        image, maps = self.here.maps(self.choice, self.image.value)
        twin = self._view.twins[gone]
        self.pair.value = png(pictures.twins(image, maps, gone, twin, float(self._view.similarity[gone, twin])))

    def _network_changed(self) -> None:
        self.said.value = "reading the network ..."
        self.here = Exploration(self.study, self.network.value, self.here.reference.seed)
        self._quiet = True
        self.layer.options = self.here.layers
        self.layer.value = self.here.layers[len(self.here.layers) // 2]
        self._quiet = False
        self._choice_changed()

    def _save(self) -> None:
        path = self.here.save(self.choice, self.merge.value)
        code = html.escape(self.here.loading_code(path.resolve()))
        self.said.value = f"<p>Saved <code>{html.escape(str(path))}</code>. Load it anywhere with:</p>{CODE}{code}</pre>"

    def widget(self) -> w.Widget:
        """Everything in one box: controls to the left, what they do to the right."""
        controls = w.VBox(
            [
                self.network,
                self.layer,
                self.criterion,
                self.reading,
                self.bins,
                self.ratio,
                self.numbers,
                self.merge,
                self.save,
                self.said,
            ],
            layout={"width": "330px", "flex": "0 0 auto"},
        )
        pair = w.VBox([w.HBox([self.gone, self.image], layout={"flex_flow": "row wrap"}), self.pair])
        lower = w.HBox([self.similarity, pair], layout={"flex_flow": "row wrap"})
        shown = w.VBox([self.norms, lower, self.why], layout={"flex": "1 1 30rem", "min_width": "0"})
        box = w.HBox([controls, shown], layout={"flex_flow": "row wrap"})
        box.add_class("fcs-explorer")
        return box

    def still(self) -> str:
        """What the controls show now, as HTML that needs no kernel: for rendered pages and for GitHub."""
        choice = self.choice
        alts = [
            (self.norms, f"L1 norms of the channels of {choice.layer} by bin; pale bars go"),
            (self.similarity, f"similarity of all channel pairs of {choice.layer}, ordered by bin"),
            (self.pair, "a dropped channel's map beside that of the kept channel nearest to it"),
        ]
        images = "".join(
            f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(image.value).decode()}">'
            for image, alt in alts
            if image.value
        )
        return f"{self.numbers.value}{images}{self.why.value}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # JupyterLab shows the widget; whatever knows no widgets falls back to the still view.
        bundle: dict[str, Any] = self.widget()._repr_mimebundle_()
        return {
            **{kind: content for kind, content in bundle.items() if kind == WIDGET},
            "text/html": self.still(),
            "text/plain": f"explorer of {self.here.reference.network}",
        }


def numbers(here: Exploration, choice: Choice) -> str:
    """What is left of the whole network, as HTML tables."""
    whole = here.whole(choice)
    left = pd.DataFrame(
        [
            ("MACs", f"{whole.macs:,}", f"{100 * whole.macs / here.dense_macs:.1f} %"),
            ("parameters", f"{whole.params:,}", f"{100 * whole.params / here.dense_params:.1f} %"),
        ],
        columns=["whole network", "left", "of the unpruned"],
    )
    accuracies = pd.DataFrame(
        [
            ("unpruned", f"{here.dense_accuracy:.1f} %", ""),
            ("pruned", f"{whole.plain:.1f} %", f"{whole.plain_recalibrated:.1f} %"),
            ("pruned and merged", f"{whole.merged:.1f} %", f"{whole.merged_recalibrated:.1f} %"),
        ],
        columns=[f"validation top-1, {len(here.judges)} images, no fine-tuning", "after surgery", "BatchNorm recalibrated"],
    )
    return "".join(frame.to_html(index=False, border=0) for frame in (left, accuracies))
