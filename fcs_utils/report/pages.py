"""HTML: executed notebooks through nbconvert and one shared look; the index page from records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter

from fcs_utils.benchmarks.latency import deployment_table
from fcs_utils.benchmarks.scoring import cost_frame, cost_table
from fcs_utils.files import read_or_set_aside, write_atomic
from fcs_utils.report.chapters import NOTEBOOKS, Notebook
from fcs_utils.report.claims import STATEMENTS, claim_verdicts
from fcs_utils.report.frames import make_report
from fcs_utils.report.polish import figure_links, polish
from fcs_utils.study.study import Study

HERE = Path(__file__).parent
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)

# Code spans and fences first, so that a dollar inside one stays a dollar.
MATH = re.compile(r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<block>.+?)\$\$|(?<![\\$])\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$", re.S)


class Math:
    """Equations as MathML, which browsers draw by themselves: a page needs no network.

    Markdown would mangle MathML, so it sees placeholders that are replaced in the finished HTML.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def hide(self, markdown: str) -> str:
        def keep(match: re.Match[str]) -> str:
            if match["code"]:
                return match["code"]
            display = "block" if match["block"] else "inline"
            self.found.append(to_mathml((match["block"] or match["inline"]).strip(), display=display))
            return f"MATHML{len(self.found) - 1}END"

        return MATH.sub(keep, markdown)

    def put_back(self, html: str) -> str:
        return re.sub(r"MATHML(\d+)END", lambda match: self.found[int(match[1])], html)


def title_and_question(notebook: Notebook) -> tuple[str, str]:
    """A chapter's title and the question it answers, from its first cell: '# Title' and the line after 'Question:'."""
    first = nbformat.read(notebook.source, as_version=4).cells[0].source
    title = re.search(r"^# (.+)$", first, re.M)
    question = re.search(r"^\*\*Question\.\*\*\s*(.+?)(?:\n\n|\Z)", first, re.M | re.S)
    assert title and question, f"{notebook.source} must open with a title and a question"
    return title[1], " ".join(question[1].split())


def render_page(study: Study, notebook: Notebook) -> None:
    """The executed copy of a notebook as one HTML file that needs no other."""
    content = nbformat.read(study.store.executed(notebook.name), as_version=4)
    math, figures = Math(), {}
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = math.hide(cell.source)
        for output in cell.get("outputs", []):
            shown = output.get("metadata", {}).get("image/png", {})
            if "figure" in shown:
                figures[shown["alt"]] = shown["figure"]
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = math.hide(output.data["text/markdown"])
    exporter = HTMLExporter(template_name="notebook", extra_template_basedirs=[str(HERE / "templates")])
    body, _ = exporter.from_notebook_node(content)
    body, contents = polish(math.put_back(body), study.store, "../", figures)
    html = TEMPLATES.get_template("page.html.j2").render(
        title=title_and_question(notebook)[0], body=body, contents=contents, here=notebook.name, **_shared(study, "../")
    )
    write_atomic(study.store.page(notebook.name), html.encode())


def render_index(study: Study) -> None:
    """The page to open: verdicts, tables and key figures where the records for them are there."""
    store = study.store
    missing = list(study.missing())
    context: dict[str, Any] = {"missing": missing, "summary": study.profile.summary}
    if not missing:
        report = make_report(study)
        verdicts = claim_verdicts(report.ledger)
        context |= {
            "claims": [(claim, STATEMENTS[claim], verdict) for claim, verdict in verdicts.items()],
            "tables": {name: html_table(table) for name, table in report.tables().items()},
        }
        if found := read_or_set_aside(store.deploy()):
            context["deployment"] = html_table(deployment_table(found))
        if costs := read_or_set_aside(store.cost()):
            machine = costs["machine"]
            context |= {"cost_table": html_table(cost_table(cost_frame(costs))),
                        "cost_machine": f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"}  # fmt: skip
    chapters = [(n.name, *title_and_question(n), store.page(n.name).exists()) for n in NOTEBOOKS.values()]
    shared = _shared(study, "")
    body, contents = polish(TEMPLATES.get_template("index.html.j2").render(chapters=chapters, **context, **shared), store, "", {})
    html = TEMPLATES.get_template("page.html.j2").render(title="Overview", body=body, contents=contents, **shared)
    write_atomic(store.index(), html.encode())


def html_table(table: pd.DataFrame) -> str:
    """A table as HTML, escaped, numbers to the right."""
    return table.to_html(index=False, border=0, classes="data", justify="unset")


def _shared(study: Study, up: str) -> dict[str, Any]:
    study.rates()  # the arms are part of the grid once their learning rates are known
    runs = list({run.identity: run for stage in study.grid.values() for run in stage}.values())
    records = [record for run in runs if (record := study.record(run)) is not None]
    places = sorted({(r["provenance"]["device"], r["provenance"]["torch"], r["provenance"]["threads"]) for r in records})
    dates = sorted(r["volatile"]["date"][:10] for r in records)
    commits = list(dict.fromkeys(r["volatile"]["commit"] for r in records))
    return {
        "up": up,
        "style": (HERE / "templates" / "style.css").read_text(),
        "script": "".join(file.read_text("utf-8-sig") for file in sorted((HERE / "templates" / "vendor").glob("*.js"))),
        "profile": study.profile.name,
        "dataset": study.settings.title,
        "devices": "; ".join(
            f"{device}, {threads} thread{'s' if threads > 1 else ''}, torch {torch}" for device, torch, threads in places
        ),
        "precision": study.precision,
        "dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "none yet",
        "commits": ", ".join(commits[:3]) + (" ..." if len(commits) > 3 else ""),
        "runs": f"{len(records)} of {len(runs)}",
        "nav": [
            (n.name, number, title_and_question(n)[0]) for number, n in NOTEBOOKS.items() if study.store.executed(n.name).exists()
        ],
        "figure_links": lambda name: figure_links(study.store, name),
    }
