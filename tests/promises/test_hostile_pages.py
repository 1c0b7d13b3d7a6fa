"""Pages and what notebooks say hold no code, wherever their words come from."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from fcs_utils import files
from fcs_utils.report import pages
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.pages import to_html
from fcs_utils.study.study import Study

TAG = "<script>alert(1)</script>"
HOSTILE = [TAG, "<img src=x onerror=alert(1)>", "</script><svg/onload=alert(1)>", '"><a href="javascript:alert(1)">x</a>']
LINKS = ["[x](javascript:alert(1))", "[x](data:text/html,<script>alert(1)</script>)", "![x](vbscript:alert(1))", f"```{TAG}\n```"]
FORMULAS = [
    r"$\href{javascript:alert(1)}{x}$",
    r"$\text{<script>alert(1)</script>}$",
    r"$$\text{&lt;img src=x onerror=alert(1)&gt;}$$",
    r"$\href{data:text/html,1}{x}$",
    r"$\frac{<b onclick=alert(1)>$",
    r"$\class{x}{\style{background:url(http://e)}{y}}$",
]


def unsafe(page: str) -> list[str]:
    """Whatever a browser would run or follow into a script."""
    soup = BeautifulSoup(page, "html.parser")
    found = [str(tag) for tag in soup.find_all(["script", "svg", "iframe", "object", "embed"]) if "sort-end" not in str(tag)]
    for tag in soup.find_all(True):
        for name, value in tag.attrs.items():
            addressed = name in ("href", "src") and re.match(r"\s*(javascript|vbscript|data:text)", str(value), re.I)
            if name.startswith("on") or addressed or (name == "href" and tag.find_parent("math")):
                found.append(f"{tag.name} {name}={value}")
    return found


@pytest.mark.parametrize("text", [*HOSTILE, *LINKS, *FORMULAS])
def test_markdown_of_notebooks_and_of_what_they_say_holds_no_code(text: str) -> None:
    for written in (text, f"Measured on **{text}**, 2 threads.", f"# {text}\n\n- {text}\n\n| a |\n|---|\n| {text} |\n"):
        page = to_html(written)
        assert not unsafe(page) and ("alert" in page or text not in HOSTILE)


@pytest.mark.parametrize("text", [*HOSTILE, FORMULAS[0]])
def test_pages_escape_what_settings_measurements_records_and_tables_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    study = Study("smoke", tmp_path)
    notebook, store = NOTEBOOKS["01"], study.store
    monkeypatch.setattr(study.settings, "_kept", {"dataset": text, "validation_images": 3})
    machine = {"device": text, "torch": text, "threads": 1}
    record = {"provenance": machine, "volatile": {"date": text, "commit": text}}
    monkeypatch.setattr(study, "record", lambda run: record)
    monkeypatch.setattr(study, "missing", lambda: {text: 1})
    monkeypatch.setattr(study, "rates", lambda: None)
    output = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell(
        f"print({text!r})",
        outputs=[
            output("display_data", {"text/markdown": f"Data set: **{text}**, classes {text}, `{text}`."}),
            output("display_data", {"text/html": pages.html_table(pd.DataFrame({text: [text]}))}),
            output("display_data", {"image/png": "", "text/plain": text}, metadata={"image/png": {"alt": text, "figure": "x"}}),
            output("stream", name="stdout", text=text),
        ],
    )
    cells = [nbformat.v4.new_markdown_cell(f"# {text}\n\n{text}"), cell]
    files.write_atomic(store.executed(notebook.name), nbformat.writes(nbformat.v4.new_notebook(cells=cells)).encode())
    shared = pages.shared_parts(study)
    pages.render_page(store, notebook, shared)
    pages.render_index(study, shared, None)
    for path in (store.page(notebook.name), store.index()):
        page = path.read_text()
        assert not unsafe(page) and page.count("<script") == 1
        policy = re.search(r"script-src 'sha256-([^']+)'", page)
        script = page.split("<script>")[1].split("</script>")[0]
        assert policy and base64.b64decode(policy[1]) == hashlib.sha256(script.encode()).digest()  # no other script may run


def test_the_index_escapes_tables_machines_and_titles() -> None:
    item = {"table": "cost", "content": pd.DataFrame({TAG: [TAG]}), "text": TAG, "machine": TAG}
    index = pages.TEMPLATES.get_template("index.html.j2").render(
        chapters=[(TAG, TAG, TAG, True, True, TAG)], missing={}, summary=TAG, claims=[(TAG, TAG, TAG)], html_table=pages.html_table,
        sections=[(TAG, pages.to_html(TAG), [item, {"figure": TAG, "alt": TAG}])], figure_links=lambda name: [(name, name)],
        answers=[(TAG, pages.to_html(TAG), TAG)],
    )  # fmt: skip
    assert not unsafe(index) and index.count("alert(1)") > 10
