"""What every notebook needs: opening the study with checked parameters, showing figures, saying numbers."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from IPython.core.getipython import get_ipython
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from fcs_utils.config import checked
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import write_atomic
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.criteria import CRITERIA, check_options, code_of
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.report.chapters import ALLOWS_MISSING, KEEPS_FIGURES, ROOT, assigned
from fcs_utils.report.claims import NOT_YET, claims_table, standing
from fcs_utils.report.figures import FIGURES
from fcs_utils.report.findings import findings
from fcs_utils.report.frames import make_report
from fcs_utils.report.plots import drawn, use_house_style
from fcs_utils.study.catalogue import Stage
from fcs_utils.study.grid import parse_criterion
from fcs_utils.study.packed import Record
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Pruning, Reference
from fcs_utils.study.study import Study

T = TypeVar("T", str, int)
INJECTED = "# Parameters"  # papermill's first line in the cell that it injects


class RecordsOnly(Study):
    """A study that does no run."""

    def run(
        self, stages: Iterable[Stage] | None = None, *, workers: int = 1, only: Sequence[str] = (), cluster: str | None = None
    ) -> list[Record]:
        """The records that are there."""
        return [record for run in self.runs(stages, only) if (record := self.record(run)) is not None]


@checked
def open_study(profile: str, out: str | Path, data: str) -> Study:
    """The study behind a notebook, after checking that papermill injected only known parameters.

    Raises StudyError for an unknown parameter (papermill itself only warns), profile or folder, and for a wrong type.
    """
    shell = get_ipython()  # type: ignore[no-untyped-call]
    if shell is not None:
        check_injected(shell.user_ns["In"])
    use_house_style()
    # JupyterLab starts kernels in notebooks/: relative folders are meant from the repository's root.
    kind = RecordsOnly if os.environ.get(ALLOWS_MISSING) else Study
    return kind(profile, ROOT / out, ROOT / data if data else None)


def open_reference(
    study: Study, network: str, seed: int, layer: str = "", *, ratio: float = 0.5, bins: int = 1
) -> tuple[Reference, str]:
    """A reference network of a study and the layer to look at; empty names stand for the first network and an early layer.

    Trains the network where it has no record. Raises StudyError for parameters that are not allowed before anything is trained.
    """
    names = [choice.network for choice in study.profile.networks]
    network, seed = pick("network", network, names, default=names[0]), pick("seed", seed, study.profile.seeds)
    keep_count(1, ratio)
    check_bins(bins)
    references = (run.reference for run in study.grid["reference"])
    reference = next(one for one in references if (one.network, one.seed) == (network, seed))
    layers = list(prunable_layers(study.bench.untrained(reference).eval(), study.bench.example))
    layer = pick("layer", layer, layers, default=layers[len(layers) // 6])
    if not study.run(["reference"], only=[f"network={network}", f"seed={seed}"]):
        raise StudyError(f"{network} of seed {seed} has no record yet, and no run is done here")
    return reference, layer


def check_bins(bins: object) -> None:
    """Raises StudyError for a number of bins that is none."""
    if type(bins) is not int or bins < 1:
        raise refuse("bins", bins, "1 or more")


def check_injected(cells: Sequence[str]) -> None:
    """Refuse names in papermill's injected cell that the parameters cell before it does not define."""
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.startswith(INJECTED):
            known = assigned(before)
            if unknown := [name for name in assigned(cell) if name not in known]:
                raise refuse("notebook parameter", unknown[0], ", ".join(known))


def pick(parameter: str, value: T, allowed: Sequence[T], default: T | None = None) -> T:
    """A parameter's value, or the default where it was left empty. Raises StudyError for one not allowed, or of another type."""
    if value == "" and default is not None:
        return default
    if value not in allowed or type(value) is not type(allowed[0]):  # True is 1, and 1.0 is, too
        raise refuse(parameter, value, ", ".join(map(str, allowed)))
    return value


def pick_some(parameter: str, text: str, allowed: Sequence[T]) -> list[T]:
    """Several values between commas, or all of them where it was left empty. Raises StudyError for one not allowed."""
    words = {str(value): value for value in allowed}
    if not isinstance(text, str) or (unknown := [word for word in text.split(",") if text and word.strip() not in words]):
        raise refuse(parameter, text if not isinstance(text, str) else unknown[0], "empty, or some of " + ", ".join(words))
    return [words[word.strip()] for word in text.split(",")] if text else list(allowed)


def pick_pruning(study: Study, criterion: str, ratio: float) -> Pruning:
    """How a criterion, with its options behind it, prunes in a study. Raises StudyError for what is not allowed."""
    if not isinstance(criterion, str) or not criterion.strip():
        raise refuse("criterion", criterion, ", ".join(CRITERIA))
    name, options = parse_criterion(criterion)
    pick("criterion", name, [*CRITERIA])
    check_options(name, options)
    keep_count(1, ratio)
    return Pruning(criterion=name, options=options, ratio=ratio, calibration=study.profile.calibration, source=code_of(name))


def show(study: Study, figure: Figure, name: str, alt: str, data: pd.DataFrame | None = None) -> None:
    """Show a figure with its text for those who cannot see it.

    Where the study itself runs the chapter, the figure is kept as PNG and SVG in the results, ``data`` as CSV, and the cell's code.
    Whoever explores, in JupyterLab or with papermill, writes nothing: parameters may differ from the profile's own.
    """
    if not alt:
        raise StudyError(f"figure {name} needs an alternative text")
    keeps = os.environ.get(KEEPS_FIGURES)
    content = save_figure(study.store, figure, name, data) if keeps else drawn(figure)
    if keeps and name not in FIGURES and (shell := get_ipython()) is not None:  # type: ignore[no-untyped-call]
        write_atomic(study.store.figure(name, "py"), shell.user_ns["In"][-1].encode())  # the cell that drew it
    plt.close(figure)
    shown = {"image/png": base64.b64encode(content).decode(), "text/plain": alt}
    about: dict[str, object] = {"alt": alt, "width": round(figure.get_figwidth() * figure.dpi), "figure": name}
    if any(axis.images for axis in figure.axes):
        about["picture"] = True  # a page shows it in its own colours in the dark, too
    display(shown, metadata={"image/png": about}, raw=True)


def save_figure(store: Store, figure: Figure, name: str, data: pd.DataFrame | None = None) -> bytes:
    """Keep a figure as PNG and SVG in ``work``, and ``data`` as CSV; returns the PNG."""
    if data is not None:  # nested columns, such as a run's history, are in the records
        flat = data.drop(columns=[c for c in data.columns if data[c].map(lambda value: isinstance(value, list | dict)).any()])
        write_atomic(store.figure(name, "csv"), flat.to_csv(index=False, float_format="%.6g").encode())
    picture, vectors = drawn(figure), drawn(figure, "svg", metadata={"Date": None})  # equal data must give equal bytes
    write_atomic(store.figure(name, "png"), picture)
    if len(vectors) < 300_000:  # pictures of many pixels are no vectors
        write_atomic(store.figure(name, "svg"), vectors)
    plt.close(figure)
    return picture


def html_table(frame: pd.DataFrame) -> str:
    """A table without its index as HTML, escaped; on a page, a click on a column's head sorts it."""
    return frame.to_html(index=False, border=0, classes="sortable", justify="unset")


def table(frame: pd.DataFrame | None) -> None:
    """Show a table; None stands for one that has no record yet."""
    display(Markdown("Nothing of this has a record yet.") if frame is None else HTML(html_table(frame)))


def say(text: str) -> None:
    """A sentence whose numbers come from the records, as rendered Markdown."""
    display(Markdown(text))


def show_verdicts(study: Study, *claims: str) -> None:
    """Show the comparisons of some claims and the verdict on each, or why there is none yet; all from records."""
    whole = make_report(study, allow_missing=True).ledger
    ledger = whole[whole.claim.isin(claims)]
    table(claims_table(ledger))
    found = findings(ledger)
    for claim, word in standing(ledger).items():
        say(f"On {study.settings.title} **{claim} {f'has {NOT_YET[word]}' if word in NOT_YET else f'is {word}'}**. {found[claim]}")
