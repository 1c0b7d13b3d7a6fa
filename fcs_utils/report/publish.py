"""Notebooks -> executed copies, HTML pages, and the index page that leads through them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fcs_utils.data.dataset import data_folder
from fcs_utils.errors import StudyError
from fcs_utils.report.chapters import NOTEBOOKS, ROOT, Notebook, pick_notebooks
from fcs_utils.report.execution import execute_all
from fcs_utils.report.states import PAGES, common_inputs, holds, inputs_of, intact, keep_state, made_by
from fcs_utils.study.catalogue import STAGES
from fcs_utils.study.records import Store

if TYPE_CHECKING:
    from fcs_utils.report.frames import Report
    from fcs_utils.study.study import Study

SO_FAR = " so far"  # behind the inputs of what was made while runs were missing, so that a start that does them makes it again


def build(
    profile: str,
    out: str | Path,
    data: str | None,
    numbers: str | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    *,
    allow_missing: bool = False,
) -> Path:
    """Do the runs that are missing, execute the notebooks that are stale, render the pages; returns the index.

    The index comes first, from the records that are there, and pages appear as their notebooks are done. All of it goes to the
    results' ``work`` folder. Where every run has its record and the images are not at hand, the chapters that need them are left
    out and say so. allow_missing: no run is done; chapters show what there are records of, and those of a stage without any are
    left out and say so. Raises StudyError for a failing notebook (its executed copy is kept) and everything ``Study.run`` raises.
    """
    store, wanted = Store(out, profile), pick_notebooks(numbers)
    if _current(store, wanted, allow_missing):
        print(f"profile {profile}: everything is up to date", file=sys.stderr)
        return store.index()
    from fcs_utils.machine import pick_workers
    from fcs_utils.report import pages
    from fcs_utils.study.study import Study

    study = Study(profile, out, data)
    inputs, report = _render_overview(study, allow_missing)
    print(f"{store.index().resolve()} shows what the records say so far; chapters appear there as they are done", flush=True)
    at_once = pick_workers(workers, study.bench.device)
    if allow_missing:
        wanted = _begun(study, wanted)
    else:
        needed = dict.fromkeys(stage for notebook in wanted.values() for stage in notebook.stages)
        study.run(needed if numbers else STAGES, workers=at_once, cluster=cluster)
    absent = _why_no_images(study)
    if absent:
        print(f"chapters left out: {', '.join(one.name for one in wanted.values() if one.images)}: {absent}", file=sys.stderr)
        wanted = {number: notebook for number, notebook in wanted.items() if not notebook.images}
    if inputs != inputs_of(store):
        inputs, report = _render_overview(study, allow_missing)
    stale = _stale(store, wanted, allow_missing)
    common = common_inputs(store)
    mark = SO_FAR if allow_missing and study.missing() else ""
    read = {number: inputs_of(store, one, common) for number, one in stale.items()}  # what changes meanwhile is not in the copies

    def done(number: str, notebook: Notebook) -> None:
        keep_state(store, number, read[number] + mark, made_by(store, notebook))
        shared = pages.shared_parts(study)
        pages.render_page(store, notebook, shared)
        pages.render_index(study, shared, report, _stale(store, NOTEBOOKS, allow_missing), absent)

    parameters = {"profile": profile, "out": _from_root(out)}
    os.environ["FCS_DATA"] = str(data_folder(data).resolve())  # kernels inherit it: a copy does not name a folder of this machine
    try:
        execute_all(store, stale, parameters, at_once, done, cluster, allow_missing=allow_missing)
    finally:
        _render_all(study, report, inputs + mark, _stale(store, NOTEBOOKS, allow_missing), absent)
    return store.index()


def _render_all(study: Study, report: Report | None, inputs: str, stale: Mapping[str, Notebook], absent: str) -> None:
    """Every page once more, and last the state of them all."""
    from fcs_utils.report import pages

    store, shared = study.store, pages.shared_parts(study)  # by now every page can name all the others
    there = [notebook for number, notebook in NOTEBOOKS.items() if intact(store, number)]  # old copies too, but no damaged ones
    for notebook in there:
        pages.render_page(store, notebook, shared)
    pages.render_index(study, shared, report, stale, absent)
    made = [path for notebook in there for path in (store.executed(notebook.name), store.page(notebook.name))]
    folders = [path.parent for path in (store.figure("any"), store.table("any")) if path.parent.exists()]
    made += [path for folder in folders for path in folder.iterdir() if path.suffix != ".tmp"]
    keep_state(store, PAGES, inputs, [store.index(), *([store.claims()] if report else []), *made])


def _why_no_images(study: Study) -> str:
    """What is wrong with the data set, in one line: once, and not as a traceback in a cell. Empty where it can be read."""
    try:
        _ = study.bench.dataset
    except StudyError as error:
        return str(error)
    return ""


def _begun(study: Study, wanted: Mapping[str, Notebook]) -> dict[str, Notebook]:
    """The notebooks of whose stages each has a record, where the profile plans any; says which are left out."""
    absent, begun = study.missing(), {stage for stage, records in study.found().items() if records}
    lacks: dict[str, list[str]] = {
        number: [stage for stage in one.stages if stage in absent and stage not in begun and not one.partly]
        for number, one in wanted.items()
    }
    if not begun:
        lacks = dict.fromkeys(wanted, ["any run"])
    for number, stages in lacks.items():
        if stages:
            print(f"chapter left out: {wanted[number].name}: no record of {', '.join(stages)} yet", file=sys.stderr)
    return {number: one for number, one in wanted.items() if not lacks[number]}


def _render_overview(study: Study, so_far: bool = False) -> tuple[str, Report | None]:
    """The index, its tables and figures, from the records that are there; returns what they were rendered from, too."""
    from fcs_utils.report import frames, pages

    inputs, some = inputs_of(study.store), any(study.found().values())
    report = frames.make_report(study, allow_missing=bool(study.missing())) if some else None
    if report:
        report.write(study.store)
        pages.draw_figures(study.store, report)
    pages.render_index(study, pages.shared_parts(study), report, _stale(study.store, NOTEBOOKS, so_far))
    return inputs, report


def _from_root(folder: str | Path) -> str:
    """A folder as notebooks take it: relative to the repository's root where it lies inside, else absolute."""
    absolute = Path(folder).resolve()
    return str(absolute.relative_to(ROOT)) if absolute.is_relative_to(ROOT) else str(absolute)


def _current(store: Store, wanted: Mapping[str, Notebook], so_far: bool = False) -> bool:
    """Whether the notebooks and all pages are as sources, records and settings have them."""
    made = [store.page(notebook.name) for notebook in wanted.values()]
    return not _stale(store, wanted, so_far) and any(
        holds(store, PAGES, inputs_of(store) + mark, made) for mark in ("", SO_FAR)[: 1 + so_far]
    )


def _stale(store: Store, wanted: Mapping[str, Notebook], so_far: bool = False) -> dict[str, Notebook]:
    """The notebooks whose executed copy or figures are missing, changed, or made from something else.

    so_far: those count, too, that were made while runs were missing.
    """
    common, marks = common_inputs(store), ("", SO_FAR)[: 1 + so_far]
    inputs = {number: inputs_of(store, one, common) for number, one in wanted.items()}
    return {number: one for number, one in wanted.items() if not any(holds(store, number, inputs[number] + mark) for mark in marks)}
