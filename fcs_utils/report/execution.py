"""Notebooks executed by papermill, side by side, into copies without what belongs to one machine and moment."""

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
from typing import Any

from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import write_atomic
from fcs_utils.report.chapters import ALLOWS_MISSING, KEEPS_FIGURES, ROOT, Notebook, with_values
from fcs_utils.report.inference import NoPairs
from fcs_utils.study.cluster import Mark, marked, on_cluster
from fcs_utils.study.pool import processes
from fcs_utils.study.records import Store


def execute_all(
    store: Store,
    notebooks: Mapping[str, Notebook],
    parameters: Mapping[str, Any],
    at_once: int,
    done: Callable[[str, Notebook], None],
    cluster: str | None = None,
    *,
    allow_missing: bool = False,
) -> None:
    """Run notebooks side by side, one thread each; those that measure time run after the others, alone and here.

    done: called with each that succeeded. cluster: as in ``Study.run``; its workers do it where they share this disk and this
    checkout. allow_missing: they do no run, and show what there are records of. Raises StudyError for the first that fails,
    after the others have run.
    """
    failures: list[StudyError] = []
    alone = {ALLOWS_MISSING: "1"} if allow_missing else {}
    environment = {"OMP_NUM_THREADS": "1"} if at_once > 1 or cluster else {}
    environment |= {"FCS_DATA": os.environ["FCS_DATA"]} if "FCS_DATA" in os.environ else {}
    environment |= alone
    there = Store(store.root.parent.resolve(), store.name)

    def settle(number: str, result: Callable[[], None]) -> None:
        try:
            result()
        except StudyError as error:
            if allow_missing and isinstance(error, NoPairs):
                print(f"chapter left out: {error}", file=sys.stderr)
            else:
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
            settle(number, partial(_execute_one, store, notebook, parameters, alone))
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

    Raises StudyError for parameters it does not have, before anything runs, and for a failing cell, which is NoPairs where the
    cell compares runs that are not there.
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
        kind = NoPairs if error.ename == NoPairs.__name__ else StudyError
        raise kind(f"notebook {notebook.name} failed: {error.ename}: {error.evalue} (executed copy kept: {failed})") from error
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
