"""What is committed under results/ is what the committed code renders from the committed records."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from fcs_utils.report.chapters import NOTEBOOKS, Notebook
from fcs_utils.report.findings import findings
from fcs_utils.report.frames import Report, make_report
from fcs_utils.report.readme import profile_readme
from fcs_utils.study.catalogue import HEADLINE
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study
from tests.conftest import ROOT

RESULTS = ROOT / "results"
PROFILES = sorted(path.parent.name for path in RESULTS.glob("*/records.jsonl"))
HOW = "render it again: fcs-mlft study, then fcs-mlft publish, both with --profile NAME --allow-missing; cogapp -r README.md"


@cache
def opened(profile: str) -> tuple[Study, Report]:
    study = Study(profile, RESULTS)
    return study, make_report(study, allow_missing=True)


def stale(published: Path, rendered: Path) -> list[str]:
    """Names of files that are not, byte for byte, what was rendered."""
    return [path.name for path in sorted(rendered.iterdir()) if _bytes(published / path.name) != path.read_bytes()]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("profile", PROFILES)
def test_tables_verdicts_and_readme_are_those_of_the_committed_code(profile: str, tmp_path: Path) -> None:
    study, report = opened(profile)
    store = Store(tmp_path, profile)
    report.write(store)
    assert stale(study.store.published(study.store.table("x")).parent, store.table("x").parent) == [], HOW
    assert _bytes(study.store.published(study.store.claims())) == store.claims().read_bytes(), HOW
    assert (study.store.root / "README.md").read_text() == profile_readme(study, report) + "\n", HOW


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """What was written by hand: all but the values of parameters."""

    def source(cell: nbformat.NotebookNode) -> str:
        free = "parameters" in cell.metadata.get("tags", [])
        return re.sub(r" = .*?(  #|$)", r"\1", cell.source, flags=re.M) if free else cell.source

    return [(cell.cell_type, source(cell)) for cell in notebook.cells]


def rows(html: str) -> list[tuple[str, ...]]:
    """The rows of a table, head first."""
    return [tuple(re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.S)) for row in re.findall(r"<tr.*?>(.*?)</tr>", html, re.S)]


def outdated(notebook: nbformat.NotebookNode, tables: dict[str, pd.DataFrame]) -> list[str]:
    """Names of tables of which an executed notebook shows a row that the table does not have."""
    known = {name: rows(table.to_html(index=False)) for name, table in tables.items()}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [rows(output.data["text/html"]) for output in outputs if "<table" in output.get("data", {}).get("text/html", "")]
    pairs = [(name, mine, own) for mine in shown if mine for name, own in known.items() if own and own[0] == mine[0]]
    return [name for name, mine, own in pairs if not set(mine) <= set(own)]


def said(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs)


PUBLISHED = [n for n in NOTEBOOKS.values() if (RESULTS / HEADLINE / "notebooks" / f"{n.name}.ipynb").exists()]
CLAIMS = {"03": ["C1a", "C1b"], "05": ["C2"], "06": ["C3", "C3 by compute"], "09": ["C1a", "C1b", "C2", "C3", "C3 by compute"]}


@pytest.mark.parametrize("notebook", PUBLISHED, ids=lambda n: n.name)
def test_published_notebooks_are_those_of_the_committed_sources_and_report(notebook: Notebook) -> None:
    study, report = opened(HEADLINE)
    executed = nbformat.read(study.store.published(study.store.executed(notebook.name)), as_version=4)
    assert cells(executed) == cells(nbformat.read(notebook.source, as_version=4)), HOW
    assert outdated(executed, report.tables()) == [], HOW
    found = findings(report.ledger)
    assert [claim for claim in CLAIMS.get(notebook.name[:2], []) if found[claim] not in said(executed)] == [], HOW


def test_an_older_rendering_is_found(tmp_path: Path) -> None:
    table = pd.DataFrame({"claim": ["C1", "C2"], "p (Holm)": ["0.010", "(0.020)"]})
    older = table.assign(**{"p (Holm)": ["0.005", "(0.020)"]})

    def notebook(shown: pd.DataFrame) -> nbformat.NotebookNode:
        output = nbformat.v4.new_output("display_data", {"text/html": shown.to_html(index=False, border=0, classes="sortable")})
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("table()", outputs=[output])])

    assert outdated(notebook(table[:1]), {"claims": table}) == [] and outdated(notebook(older[1:]), {"claims": table}) == []
    assert outdated(notebook(older), {"claims": table}) == ["claims"]
    for name, text in (("a.csv", b"1"), ("b.csv", b"2"), ("c.csv", b"3")):
        for folder, changed in (("rendered", b""), ("published", b"." if name == "b.csv" else b"")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_bytes(text + changed)
    (tmp_path / "published" / "c.csv").unlink()
    assert stale(tmp_path / "published", tmp_path / "rendered") == ["b.csv", "c.csv"]
