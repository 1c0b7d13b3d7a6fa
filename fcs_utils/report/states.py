"""What was rendered from what: in ``work/state`` a file for each notebook, and ``pages`` for what is rendered from all of them.

Each is written last, after everything that it lists with its checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fcs_utils.errors import StudyError
from fcs_utils.files import LARGEST_TENSORS, read_bytes, read_json, write_json
from fcs_utils.report.chapters import NOTEBOOKS, PACKAGE, ROOT, Notebook
from fcs_utils.study.records import Store
from fcs_utils.unchanged import while_unchanged

PAGES = "pages"  # the state of everything but the notebooks


def holds(store: Store, name: str, inputs: str, needed: Iterable[Path] = ()) -> bool:
    """Whether a state was made from these inputs, lists the files that are needed, and every file that it lists is as it was."""
    state = _state_of(store, name)
    listed = {store.root / path for path in state.get("files", ())}
    return state.get("inputs") == inputs and listed.issuperset(needed) and intact(store, name)


def intact(store: Store, name: str) -> bool:
    """Whether there is a state and every file that it lists is as it was, whatever it was made from."""
    files = _state_of(store, name).get("files")
    return files is not None and all(_file_sum(store.root / path) == known for path, known in files.items())


def _state_of(store: Store, name: str) -> dict[str, Any]:
    """A state; empty where there is none, and where another program wrote it."""
    with suppress(StudyError):
        state = read_json(store.state(name))
        if isinstance(state.get("files"), dict):
            return state
    return {}


def keep_state(store: Store, name: str, inputs: str, made: Iterable[Path]) -> None:
    write_json(
        store.state(name),
        {"inputs": inputs, "files": {path.relative_to(store.root).as_posix(): _file_sum(path) for path in sorted(made)}},
    )


def made_by(store: Store, notebook: Notebook) -> list[Path]:
    """A notebook's executed copy, what it measured, and its figures but those of the index, which is rendered by itself."""
    import nbformat

    from fcs_utils.report.figures import FIGURES

    cells = nbformat.reads(read_bytes(store.executed(notebook.name)).decode(), as_version=4).cells
    shown = {
        name
        for cell in cells
        for output in cell.get("outputs", [])
        if (name := output.get("metadata", {}).get("image/png", {}).get("figure")) and name not in {*FIGURES, "cost_growth"}
    }
    figures = [store.figure(name, suffix) for name in shown for suffix in ("png", "svg", "csv", "py")]
    measured = [store.measurements()] if notebook.measures_time else []
    return [store.executed(notebook.name), *(path for path in (*figures, *measured) if path.exists())]


def _file_sum(path: Path) -> str:
    try:
        return _content_sum(path)
    except StudyError:  # no such file
        return ""


# Every page and notebook asks for the same records and sources.
_content_sum = while_unchanged(lambda path, content: hashlib.sha256(content).hexdigest(), LARGEST_TENSORS)


def inputs_of(store: Store, notebook: Notebook | None = None, common: str | None = None) -> str:
    """Hash of all that a notebook's outcome, or the other pages, depend on: sources, package, lock, records and settings.

    common: what ``common_inputs`` returns, for callers that ask about many notebooks. Measurements are no input, because
    notebook 08 makes them.
    """
    sources = [notebook.source] if notebook else [one.source for one in NOTEBOOKS.values()]
    measured = [] if notebook and not notebook.measures_time else [store.published(store.measurements())]
    return _sum_over([*sources, *measured], common or common_inputs(store))


def common_inputs(store: Store) -> str:
    """Hash of what the outcomes of all notebooks and pages depend on; there may be a file for each of many thousand records."""
    package = [path for path in PACKAGE.rglob("*.*") if path.is_file() and path.suffix != ".pyc"]
    records = [store.packed(), *store.all_records()]
    return _sum_over([ROOT / "requirements.lock", *sorted(package), store.there(store.settings()), *records], "")


def _sum_over(files: Iterable[Path], start: str) -> str:
    digest = hashlib.sha256(start.encode())
    for path in files:
        digest.update(f"{path.name} {_file_sum(path)}\n".encode())
    return digest.hexdigest()
