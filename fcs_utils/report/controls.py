"""The explorer's controls: of a choice, and of a network, weights and pictures of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as w

from fcs_utils.pruning.sums import READINGS
from fcs_utils.report.exploration import GOALS, Choice
from fcs_utils.report.subject import CALIBRATION, Subjects, own_source
from fcs_utils.study.shrink import Shrinking

GOAL_WORDS = ("channels to remove", "MACs to leave", "latency to leave")
IN_A_COLUMN = ("dataset", "network", "seed", "layer", "criterion", "reading", "bins", "goal", *GOALS, "against")

TABLE_STYLE = """<style>
.fcs-explorer .widget-inline-hbox { max-width: calc(100% - 4px); box-sizing: border-box; }
.fcs-explorer .widget-html { max-width: 100%; overflow-x: auto; }
.fcs-explorer .widget-html-content { line-height: 1.45; min-width: 0; }
.fcs-explorer .widget-image { align-self: flex-start; max-width: calc(100% - 4px); }
[data-jp-theme-light="false"] .fcs-explorer .widget-image { filter: invert(0.91) hue-rotate(180deg); }
[data-jp-theme-light="false"] .fcs-explorer :is(.fcs-pair, .fcs-similarity) { filter: none; }
.fcs-explorer code { overflow-wrap: anywhere; }
.fcs-explorer :is(table, p) + table { margin-top: 0.6em; }
.fcs-explorer table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.fcs-explorer :is(th, td) { padding: 0.1em 0.4em; text-align: right; vertical-align: bottom; }
.fcs-explorer :is(th, td):first-child { padding-left: 0; text-align: left; }
.fcs-explorer thead th { border-bottom: 1px solid var(--jp-border-color1, grey); }
</style>"""  # widgets bring no style for tables, and are wider than a phone
HINT = (
    "<p>Give a network as <code>mymodule:build</code>, <code>timm:NAME</code> or <code>torchvision/NAME</code>, a safetensors file "
    "of its weights, and a folder with <code>train/CLASS</code> and <code>val/CLASS</code>. Opening <code>mymodule:build</code> "
    "runs your code. A module and relative paths are looked for in the notebook's folder; what lies there is offered.</p>"
)


def choice_controls(first: Choice) -> dict[str, Any]:
    """All controls at a first choice; ``Explorer`` fills in what the network decides. opened, chosen: count what happened."""
    late = {"continuous_update": False}  # sliders answer when they are let go, not to every step on the way
    name, amount = first.goal
    latency, macs = amount if name == "latency" else 0.7, amount if name == "macs" else 0.5
    return {
        "dataset": w.Dropdown(description="data set"),
        "network": w.Dropdown(description="network"),
        "seed": w.Dropdown(description="seed"),
        "layer": w.Dropdown(options=[first.layer], description="layer"),
        "criterion": w.Dropdown(options=[first.criterion], description="criterion"),
        "reading": w.Dropdown(options=READINGS, value=first.reading, description="reading"),
        "bins": w.IntSlider(value=first.bins, min=1, max=16, description="bins", **late),
        "goal": w.Dropdown(options=[*zip(GOAL_WORDS, GOALS, strict=True)], value=name, description="goal"),
        "ratio": w.FloatSlider(value=first.ratio, min=0.05, max=0.95, step=0.05, description="ratio", **late),
        "macs": w.FloatSlider(value=macs, min=0.05, max=0.95, step=0.05, description="MACs", **late),
        "latency": w.Text(value=str(latency), description="latency", placeholder="0.7 or 12.5ms", **late),
        "against": w.Dropdown(options=[""], description="against"),
        "dropped": w.Dropdown(description="dropped"),
        "image": w.BoundedIntText(value=0, min=0, max=0, description="image"),
        "merge": w.Checkbox(value=False, description="merge dropped channels", indent=False),
        "opened": w.IntText(value=0),
        "chosen": w.IntText(value=0),
    }


def hide_empty(change: dict[str, Any]) -> None:
    """A picture without content takes no room; observes its ``value``."""
    change["owner"].layout.display = "" if change["new"] else "none"


class OwnForm:
    """Texts for a network, weights and pictures; ``open`` and ``back`` are buttons that the explorer listens to.

    Weights and pictures that lie in the notebook's folder are offered; others are typed.
    """

    def __init__(self) -> None:
        whole = {"width": "auto"}  # of the fold, however narrow
        self.model = w.Text(description="network", placeholder="mymodule:build", layout=whole)
        self.weights = w.Combobox(description="weights", placeholder="my.safetensors", layout=whole)
        self.images = w.Combobox(description="pictures", placeholder="folder or CSV file", layout=whole)
        self.size = w.BoundedIntText(value=224, min=8, max=4096, description="pixels", layout=whole)
        self.open = w.Button(description="Open", icon="folder-open")
        self.back = w.Button(description="Back to the study", icon="reply", layout={"width": "auto", "display": "none"})

    def source(self, save_to: Callable[[str], Path]) -> tuple[Subjects, Shrinking]:
        """What the texts name. Raises StudyError as ``own_source`` does."""
        wanted = own_network(self.model.value, self.weights.value, self.images.value, self.size.value)
        return own_source(wanted, save_to), wanted

    def offer(self, *_: object) -> None:
        """Offer what lies in the notebook's folder now."""
        there = sorted(path for path in Path().iterdir() if not path.name.startswith((".", "_")))
        self.weights.options = [path.name for path in there if path.suffix == ".safetensors"]
        self.images.options = [path.name for path in there if path.is_dir() or path.suffix == ".csv"]

    def widget(self) -> w.Widget:
        """Folded until somebody wants it."""
        buttons = w.HBox([self.open, self.back], layout={"flex_flow": "row wrap"})
        fields = w.VBox([w.HTML(HINT), self.model, self.weights, self.images, self.size, buttons], layout={"width": "100%"})
        fold = w.Accordion([fields], titles=("My network, my images",))
        fold.observe(self.offer, "selected_index")  # each time it opens: files come and go
        return fold


def own_network(model: str, weights: str, images: str, size: int, seed: int = 0) -> Shrinking:
    """A network and pictures of the user's, as texts name them; empty weights are None. Raises StudyError for others."""
    return Shrinking(model=model, weights=weights or None, images=images, size=size, seed=seed, calibration=CALIBRATION)
