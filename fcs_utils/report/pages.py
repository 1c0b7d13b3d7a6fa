"""HTML: executed notebooks through nbconvert and one shared look; the index page, with its tables and figures, from records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert as to_mathml
from nbconvert import HTMLExporter

from fcs_utils.benchmarks import scoring
from fcs_utils.benchmarks.latency import deployment_table
from fcs_utils.files import read_bytes, write_atomic
from fcs_utils.report import figures
from fcs_utils.report.chapters import NOTEBOOKS, Notebook
from fcs_utils.report.claims import STATEMENTS, claim_verdicts
from fcs_utils.report.findings import headlines
from fcs_utils.report.frames import Report, make_report
from fcs_utils.report.notebook import save_figure
from fcs_utils.report.tables import write_table
from fcs_utils.study.measurements import kept
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study

HERE = Path(__file__).parent
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)

# Equations as $...$, $`...`$, $$...$$ and ```math; other code first, so that a dollar inside it stays a dollar.
MATH = re.compile(
    r"(?:(?P<fence>```math\s)|\$\$)(?P<block>.+?)(?(fence)```|\$\$)"
    r"|(?P<code>```.*?```|`[^`\n]+`)"
    r"|(?<![\\$])\$(?P<tick>`?)(?P<inline>[^\s$`](?:[^$\n]*[^\s$`])?)(?P=tick)\$",
    re.S,
)
HEADING = re.compile(r'<h2 id="([^"]+)">(.+?)(?:<a class="anchor-link"|</h2>)', re.S)


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


def render_page(study: Study, notebook: Notebook, shared: dict[str, Any]) -> None:
    """The executed copy of a notebook as one HTML file that needs no other. shared: from ``shared_parts``."""
    content, math = nbformat.reads(read_bytes(study.store.executed(notebook.name)).decode(), as_version=4), Math()
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = math.hide(cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = math.hide(output.data["text/markdown"])
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(HERE / "templates")],
        filters={"figure_links": lambda name: figure_links(study.store, name, "../")},
    )
    body = math.put_back(exporter.from_notebook_node(content)[0])
    _write_page(study.store.page(notebook.name), title_and_question(notebook)[0], body, {**shared, "up": "../"}, notebook.name)


def render_index(study: Study, shared: dict[str, Any], report: Report | None) -> None:
    """The page to open: verdicts, tables and figures. report: None while runs are missing."""
    store = study.store
    context: dict[str, Any] = {"missing": list(study.missing()), "summary": study.profile.summary}
    if report:
        said, verdicts = headlines(report.ledger), claim_verdicts(report.ledger)
        context |= {
            "claims": [(claim, STATEMENTS[claim], verdict, said[claim]) for claim, verdict in verdicts.items()],
            "tables": {name: html_table(table) for name, table in report.tables().items()},
        }
        for found in kept(store, "latency")[:1]:
            context["deployment"] = _kept_table(store, "deployment", deployment_table(found))
        for costs in kept(store, "scoring")[:1]:
            machine = costs["machine"]
            context |= {
                "cost_table": _kept_table(store, "cost", scoring.cost_table(scoring.cost_frame(costs))),
                "cost_machine": f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}",
            }
    chapters = [(n.name, *title_and_question(n), store.page(n.name).exists()) for n in NOTEBOOKS.values()]
    body = TEMPLATES.get_template("index.html.j2").render(
        chapters=chapters, figure_links=lambda name: figure_links(store, name, ""), **context, **shared
    )
    _write_page(store.index(), "Overview", body, {**shared, "up": ""})


def _write_page(path: Path, title: str, body: str, shared: dict[str, Any], here: str = "") -> None:
    contents = HEADING.findall(body)
    page = TEMPLATES.get_template("page.html.j2").render(title=title, body=body, contents=contents, here=here, **shared)
    write_atomic(path, page.encode())


def html_table(table: pd.DataFrame) -> str:
    """A table as HTML, escaped; a click on a column's head sorts it."""
    return table.to_html(index=False, border=0, classes="sortable", justify="unset")


def _kept_table(store: Store, name: str, table: pd.DataFrame) -> str:
    write_table(store, name, table)
    return html_table(table)


def figure_links(store: Store, name: str, up: str) -> list[tuple[str, str]]:
    """Links from a page to a figure's files: the scalable picture and its data. up: the relative path to ``work``."""
    places = [(store.figure(name, "svg"), "SVG"), (store.figure(name, "png"), "PNG"), (store.figure(name, "csv"), "data")]
    return [(up + path.relative_to(store.work).as_posix(), title) for path, title in places if path.exists()]


def draw_figures(store: Store, report: Report) -> None:
    """The figures of the index, from records and measurements alone."""
    figures.use_house_style()
    for name, draw in report.figures().items():
        save_figure(store, draw(), name)
    for costs in kept(store, "scoring")[:1]:
        save_figure(
            store,
            figures.cost_growth(scoring.cost_frame(costs), {name: one.title for name, one in scoring.PROCEDURES.items()}),
            "cost_growth",
        )


def read_report(study: Study) -> Report | None:
    """A study's tables and verdicts, or None while runs are missing."""
    return None if study.missing() else make_report(study)


def shared_parts(study: Study) -> dict[str, Any]:
    """What every page shows: style, script, and the footer's account of the records."""
    study.rates()  # the arms are part of the grid once their learning rates are known
    runs = list({run.identity: run for stage in study.grid.values() for run in stage}.values())
    records = [record for run in runs if (record := study.record(run)) is not None]
    places = sorted({(r["provenance"]["device"], r["provenance"]["torch"], r["provenance"]["threads"]) for r in records})
    dates = sorted(r["volatile"]["date"][:10] for r in records)
    commits = list(dict.fromkeys(r["volatile"]["commit"] for r in records))
    return {
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
    }
