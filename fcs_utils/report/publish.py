"""Notebooks -> executed copies, HTML pages, and the index page that leads through them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcs_utils.data.dataset import data_folder
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import write_atomic
from fcs_utils.report.chapters import KEEPS_FIGURES, NOTEBOOKS, ROOT, Notebook, pick_notebooks, with_values
from fcs_utils.report.states import PAGES, common_inputs, holds, inputs_of, intact, keep_state, made_by
from fcs_utils.study.cluster import Mark, marked, on_cluster
from fcs_utils.study.pool import processes
from fcs_utils.study.records import Store

if TYPE_CHECKING:
    from fcs_utils.report.frames import Report
    from fcs_utils.study.study import Study


def build(
    profile: str,
    out: str | Path,
    data: str | None,
    numbers: str | None = None,
    workers: int | None = None,
    cluster: str | None = None,
) -> Path:
    """Do the runs that are missing, execute the notebooks that are stale, render the pages; returns the index.

    The index comes first, from the records that are there, and pages appear as their notebooks are done. All of it goes to the
    results' ``work`` folder. Where every run has its record and the images are not at hand, the chapters that need them are left
    out and say so. Raises StudyError for a failing notebook (its executed copy is kept) and everything ``Study.run`` raises.
    """
    store, wanted = Store(out, profile), pick_notebooks(numbers)
    if _current(store, wanted):
        print(f"profile {profile}: everything is up to date", file=sys.stderr)
        return store.index()
    from fcs_utils.machine import pick_workers
    from fcs_utils.report import pages
    from fcs_utils.study.study import Study

    study = Study(profile, out, data)
    inputs, report = _render_overview(study)
    print(f"{store.index().resolve()} shows what the records say so far; chapters appear there as they are done", flush=True)
    stages = dict.fromkeys(stage for notebook in wanted.values() for stage in notebook.stages)
    at_once = pick_workers(workers, study.bench.device)
    study.run(stages, workers=at_once, cluster=cluster)
    absent = _why_no_images(study)
    if absent:
        print(f"chapters left out: {', '.join(one.name for one in wanted.values() if one.images)}: {absent}", file=sys.stderr)
        wanted = {number: notebook for number, notebook in wanted.items() if not notebook.images}
    if inputs != inputs_of(store):
        inputs, report = _render_overview(study)
    stale = _stale(store, wanted)
    common = common_inputs(store)
    read = {number: inputs_of(store, one, common) for number, one in stale.items()}  # what changes meanwhile is not in the copies

    def done(number: str, notebook: Notebook) -> None:
        keep_state(store, number, read[number], made_by(store, notebook))
        shared = pages.shared_parts(study)
        pages.render_page(store, notebook, shared)
        pages.render_index(study, shared, report, _stale(store, NOTEBOOKS), absent)

    parameters = {"profile": profile, "out": _from_root(out)}
    os.environ["FCS_DATA"] = str(data_folder(data).resolve())  # kernels inherit it: a copy does not name a folder of this machine
    try:
        execute_all(store, stale, parameters, at_once, done, cluster)
    finally:
        shared = pages.shared_parts(study)  # by now every page can name all the others
        there = [notebook for number, notebook in NOTEBOOKS.items() if intact(store, number)]  # old copies too, but no damaged ones
        for notebook in there:
            pages.render_page(store, notebook, shared)
        pages.render_index(study, shared, report, _stale(store, NOTEBOOKS), absent)
        made = [path for notebook in there for path in (store.executed(notebook.name), store.page(notebook.name))]
        folders = [path.parent for path in (store.figure("any"), store.table("any")) if path.parent.exists()]
        made += [path for folder in folders for path in folder.iterdir() if path.suffix != ".tmp"]
        keep_state(store, PAGES, inputs, [store.index(), *([store.claims()] if report else []), *made])
    return store.index()


def _why_no_images(study: Study) -> str:
    """What is wrong with the data set, in one line: once, and not as a traceback in a cell. Empty where it can be read."""
    try:
        _ = study.bench.dataset
    except StudyError as error:
        return str(error)
    return ""


def _render_overview(study: Study) -> tuple[str, Report | None]:
    """The index, its tables and figures, from the records that are there; returns what they were rendered from, too."""
    from fcs_utils.report import frames, pages

    inputs, some = inputs_of(study.store), any(study.found().values())
    report = frames.make_report(study, allow_missing=bool(study.missing())) if some else None
    if report:
        report.write(study.store)
        pages.draw_figures(study.store, report)
    pages.render_index(study, pages.shared_parts(study), report, _stale(study.store, NOTEBOOKS))
    return inputs, report


def _from_root(folder: str | Path) -> str:
    """A folder as notebooks take it: relative to the repository's root where it lies inside, else absolute."""
    absolute = Path(folder).resolve()
    return str(absolute.relative_to(ROOT)) if absolute.is_relative_to(ROOT) else str(absolute)


def execute_all(
    store: Store,
    notebooks: Mapping[str, Notebook],
    parameters: Mapping[str, Any],
    at_once: int,
    done: Callable[[str, Notebook], None],
    cluster: str | None = None,
) -> None:
    """Run notebooks side by side, one thread each; those that measure time run after the others, alone and here.

    done: called with each that succeeded. cluster: as in ``Study.run``; its workers do it where they share this disk and this
    checkout. Raises StudyError for the first that fails, after the others have run.
    """
    failures: list[StudyError] = []
    environment = {"OMP_NUM_THREADS": "1"} if at_once > 1 or cluster else {}
    environment |= {"FCS_DATA": os.environ["FCS_DATA"]} if "FCS_DATA" in os.environ else {}
    there = Store(store.root.parent.resolve(), store.name)

    def settle(number: str, result: Callable[[], None]) -> None:
        try:
            result()
        except StudyError as error:
            failures.append(error)
        else:
            done(number, notebooks[number])

    with _renderers(store, at_once, cluster) as pool:
        begun = {
            pool.submit(_execute_one, there, notebook, parameters, environment): number
            for number, notebook in notebooks.items()
            if not notebook.measures_time
        }
        for future in as_completed(begun):
            settle(begun[future], future.result)
    for number, notebook in notebooks.items():
        if notebook.measures_time:
            settle(number, partial(_execute_one, store, notebook, parameters, {}))
    if failures:
        raise failures[0]


@contextmanager
def _renderers(store: Store, at_once: int, cluster: str | None) -> Iterator[Executor]:
    """What executes notebooks: processes here, or a cluster's workers where all of them can."""
    if cluster is not None:
        with on_cluster(cluster) as engine, marked(store) as mark:
            if all(engine.everywhere(_can_render, mark, ROOT)):
                yield engine
                return
        print("the workers lack this disk, this checkout or papermill: notebooks are executed here", file=sys.stderr)
    with processes(at_once, lambda macs: None) as pool:
        yield pool


def _can_render(mark: Mark, root: Path) -> bool:
    return mark.seen() and root == ROOT and find_spec("papermill") is not None


def _execute_one(store: Store, notebook: Notebook, parameters: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    print(f"notebook {notebook.name} ...", file=sys.stderr, flush=True)
    before = dict(os.environ)
    os.environ.update(environment)  # its kernel inherits it
    try:
        execute(store, notebook, parameters)
    finally:
        for name in environment.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def execute(store: Store, notebook: Notebook, parameters: Mapping[str, Any]) -> None:
    """Run one notebook with papermill into the results folder.

    Raises StudyError for parameters it does not have, before anything runs, and for a failing cell.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    known = papermill.inspect_notebook(str(notebook.source))
    if unknown := sorted(parameters.keys() - known.keys()):
        raise refuse(f"parameter of {notebook.name}", unknown[0], ", ".join(known))
    failed = store.failed(notebook.name)  # until it has succeeded
    failed.parent.mkdir(parents=True, exist_ok=True)
    os.environ[KEEPS_FIGURES] = "1"  # its kernel inherits it
    try:
        papermill.execute_notebook(
            str(notebook.source),
            str(failed),
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=["--log-level=50"],  # hides what kernels log about their transport and shutdown
            shutdown_kernel="immediate",  # all that a chapter writes is written; its kernel would take seconds to free torch
        )
    except PapermillExecutionError as error:
        raise StudyError(
            f"notebook {notebook.name} failed: {error.ename}: {error.evalue} (executed copy kept: {failed})"
        ) from error
    except DeadKernelError as error:
        raise StudyError(f"notebook {notebook.name}: its kernel was killed, perhaps memory ran out; start again") from error
    finally:
        del os.environ[KEEPS_FIGURES]
    write_atomic(store.executed(notebook.name), _tidy(failed).encode())
    failed.unlink()


def _tidy(executed: Path) -> str:
    """An executed copy with one cell of parameters, those of the run.

    It is without what belongs to this machine and time only: paths, times, bars, warnings, live widgets.
    """
    import nbformat

    content = nbformat.read(executed, as_version=4)
    for key in ("papermill", "widgets"):
        content.metadata.pop(key, None)
    for before, cell in pairwise([*content.cells]):
        if "injected-parameters" in cell.metadata.get("tags", []):
            before.source = with_values(before.source, cell.source)
            content.cells.remove(cell)
    for cell in content.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return nbformat.writes(content) + "\n"


def _current(store: Store, wanted: Mapping[str, Notebook]) -> bool:
    """Whether the notebooks and all pages are as sources, records and settings have them."""
    made = [store.page(notebook.name) for notebook in wanted.values()]
    return not _stale(store, wanted) and holds(store, PAGES, inputs_of(store), made)


def _stale(store: Store, wanted: Mapping[str, Notebook]) -> dict[str, Notebook]:
    """The notebooks whose executed copy or figures are missing, changed, or made from something else."""
    common = common_inputs(store)
    return {number: one for number, one in wanted.items() if not holds(store, number, inputs_of(store, one, common))}
