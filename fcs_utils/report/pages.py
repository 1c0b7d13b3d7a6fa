"""HTML: executed notebooks through nbconvert and one shared look; the index page, with its tables and figures, from records."""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import tostring

import jinja2
import nbformat
import pandas as pd
from latex2mathml import exceptions
from latex2mathml.converter import Converter
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from fcs_utils.benchmarks import scoring
from fcs_utils.benchmarks.latency import deployment_table
from fcs_utils.benchmarks.widths import widths_table
from fcs_utils.errors import counted
from fcs_utils.files import read_bytes, write_atomic
from fcs_utils.report import figures
from fcs_utils.report.answers import answers
from fcs_utils.report.chapters import NOTEBOOKS, Notebook
from fcs_utils.report.claims import STATEMENTS, claim_verdicts
from fcs_utils.report.frames import Report
from fcs_utils.report.leads import LEADS
from fcs_utils.report.notebook import html_table, save_figure
from fcs_utils.report.plots import use_house_style
from fcs_utils.report.registry import each
from fcs_utils.report.tables import write_table
from fcs_utils.study.measurements import by_machine, kept
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study

HERE = Path(__file__).parent / "templates"
TEMPLATES = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True)
LINKED = {"svg": "SVG", "png": "PNG", "csv": "data", "py": "code"}  # a figure's files, by ending
HEADING = re.compile(r'<h2 id="([^"]+)">(.+?)(?:<a class="anchor-link"|</h2>)', re.S)

# What latex2mathml writes beside its entities, less whatever names an address or a style.
LAWFUL = re.compile(
    "xmlns|display(style)?|scriptlevel|stretchy|fence|form|mathvariant|m(in|ax)size|width|height|depth|[lr]space|voffset|accent|"
    "movablelimits|largeop|linethickness|notation|(row|column)(align|lines|spacing)"
)
NO_FORMULA: tuple[type[Exception], ...] = (
    *(error for error in vars(exceptions).values() if isinstance(error, type) and issubclass(error, Exception)),
    *(LookupError, ValueError, RuntimeError, TypeError, AttributeError),
)


class Renderer(IPythonRenderer):
    """Markdown as HTML: here, and nowhere else, text becomes HTML, so a tag in it stays text and no address runs a script.

    Equations become MathML, which browsers draw by themselves: a page needs no network.
    """

    def text(self, text: str) -> str:
        return unbroken(super().text(text))

    def inline_math(self, body: str) -> str:
        return self._math(body, "inline")

    def block_math(self, body: str) -> str:
        return self._math(body, "block")

    def _math(self, latex: str, display: str) -> str:
        try:
            formula = Converter(display=display).convert_to_element(latex.strip())
        except NO_FORMULA:
            return f"<code>{html.escape(latex)}</code>"
        for node in formula.iter():
            node.text = html.unescape(node.text or "")  # it comes with entities, and would go out unescaped
            node.attrib = {name: value for name, value in node.attrib.items() if LAWFUL.fullmatch(name)}
        return tostring(formula, encoding="unicode")


def unbroken(text: str) -> str:
    """The text with each number and its ' %' on one line."""
    return re.sub(r"(?<=\d) (?=%)", "\N{NO-BREAK SPACE}", text)


TEMPLATES.filters.update(unbroken=unbroken)


def to_html(markdown: str) -> str:
    """Markdown with equations as HTML, see ``Renderer``."""
    return MarkdownWithMath(renderer=Renderer(escape=True, allow_harmful_protocols=False)).render(markdown)


def title_and_question(notebook: Notebook) -> tuple[str, str]:
    """A chapter's title and the question it answers, from its first cell: '# Title' and the line after 'Question:'."""
    first = nbformat.read(notebook.source, as_version=4).cells[0].source
    title = re.search(r"^# (.+)$", first, re.M)
    question = re.search(r"^\*\*Question\.\*\*\s*(.+?)(?:\n\n|\Z)", first, re.M | re.S)
    assert title and question, f"{notebook.source} must open with a title and a question"
    return title[1], " ".join(question[1].split())


def render_page(store: Store, notebook: Notebook, shared: Mapping[str, Any]) -> None:
    """The executed copy of a notebook as one HTML file that needs no other. shared: from ``shared_parts``."""
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(HERE)],
        filters={"markdown2html": to_html, "unbroken": unbroken, "figure_links": lambda name: figure_links(store, name, "../")},
    )
    body = exporter.from_notebook_node(nbformat.reads(read_bytes(store.executed(notebook.name)).decode(), as_version=4))[0]
    _write_page(store.page(notebook.name), title_and_question(notebook)[0], body, {**shared, "up": "../"}, notebook.name)


def render_index(
    study: Study, shared: Mapping[str, Any], report: Report | None, older: Collection[str] = (), absent: str = ""
) -> None:
    """The page to open: verdicts, and every table and figure of the registries, in the order of ``index.toml``.

    report: None where there are no records; while runs are missing, verdicts are only on claims that wait for none of them.
    older: numbers of the chapters whose pages are of an earlier start. absent: why there are no images, which some chapters need.
    """
    store = study.store
    context: dict[str, Any] = {"missing": list(study.missing()), "summary": study.profile.summary, "sections": []}
    if report:
        judged = report.ledger[report.ledger.decisive] if context["missing"] and len(report.ledger) else report.ledger
        verdicts = claim_verdicts(judged) if len(judged) else {}
        context["claims"] = [(claim, STATEMENTS[claim], verdict) for claim, verdict in verdicts.items()]
        context["sections"] = _sections(store, report)
        shown, titles = {title for title, *_ in context["sections"]}, {one.get("lead"): one["title"] for one in index_layout()}
        found = [(question, to_html(answer), titles[section]) for question, answer, section in answers(report)]
        context["answers"] = [(question, answer, title if title in shown else "") for question, answer, title in found]
    chapters = [
        (n.name, *title_and_question(n), store.page(n.name).exists(), number in older, absent if n.images else "")
        for number, n in NOTEBOOKS.items()
    ]
    body = TEMPLATES.get_template("index.html.j2").render(
        chapters=chapters, figure_links=lambda name: figure_links(store, name, ""), html_table=html_table, **context, **shared
    )
    _write_page(store.index(), "Overview", body, {**shared, "up": ""})


def index_layout() -> list[dict[str, Any]]:
    """The sections of the index, each with the figures and tables that it shows."""
    sections: list[dict[str, Any]] = tomllib.loads((HERE / "index.toml").read_text())["section"]
    return sections


def _sections(store: Store, report: Report) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Title, opening and what to show of each section: the places that ``index.toml`` gives, then whatever has none yet."""
    tables, machines = _all_tables(store, report)
    drawn = {name: (inspect.getdoc(getattr(draw, "func", draw)) or name).split("\n")[0] for name, draw in report.figures().items()}
    drawn |= {"cost_growth": ""} if "cost" in tables else {}
    layout = index_layout()
    for kind, names in (("figure", drawn), ("table", tables)):
        placed = {item.get(kind) for section in layout for item in section["show"]}
        layout[-1]["show"] += [{kind: name, "alt": drawn.get(name, "")} for name in names if name not in placed]
    sections = []
    for section in layout:
        show = [item for item in section["show"] if item.get("figure") in drawn or item.get("table") in tables]
        for item in show:
            item |= {"content": tables.get(item.get("table")), "machine": machines.get(item.get("table"))}
        opening = to_html(LEADS[section["lead"]](report, store)) if show and "lead" in section else ""
        sections += [(section["title"], opening, show)] * bool(show)
    return sections


def _all_tables(store: Store, report: Report) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Tables of records and of what was measured, by name, and the machine that measured, where there was one."""
    measured, machines = {}, {}
    for found in kept(store, "latency")[:1]:
        measured["deployment"] = deployment_table(found)
    for found in by_machine(store, "widths")[-1:]:  # the latest
        measured["widths"], machine = widths_table(found), found["machine"]
        machines["widths"] = f"{machine['device']}, threads: {machine['threads']}, torch {machine['torch']}, {found['precision']}"
    for costs in kept(store, "scoring")[:1]:
        measured["cost"], machine = scoring.cost_table(scoring.cost_frame(costs)), costs["machine"]
        machines["cost"] = f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
    for name, table in measured.items():
        write_table(store, name, table)
    return {**report.tables(), **measured}, machines


def _write_page(path: Path, title: str, body: str, shared: Mapping[str, Any], here: str = "") -> None:
    contents = HEADING.findall(body)
    page = TEMPLATES.get_template("page.html.j2").render(title=title, body=body, contents=contents, here=here, **shared)
    write_atomic(path, page.encode())


def figure_links(store: Store, name: str, up: str) -> list[tuple[str, str]]:
    """Links from a page to a figure's pictures, its data, and the code that drew it. up: the relative path to ``work``."""
    places = [(store.figure(name, suffix), title) for suffix, title in LINKED.items()]
    return [(up + path.relative_to(store.work).as_posix(), title) for path, title in places if path.exists()]


def draw_figures(store: Store, report: Report) -> None:
    """The figures of the index, from records and measurements alone."""
    use_house_style()
    ready = report.figures()
    for name, figure in each(ready, "figure"):
        data = next((part for part in ready[name].args if isinstance(part, pd.DataFrame)), None)
        save_figure(store, figure, name, data)
        _save_code(store, name, ready[name].func)
    for costs in kept(store, "scoring")[:1]:
        titles = {name: one.title for name, one in scoring.PROCEDURES.items()}
        frame = scoring.cost_frame(costs)
        save_figure(store, figures.cost_growth(frame, titles), "cost_growth", frame)
        _save_code(store, "cost_growth", figures.cost_growth)


def _save_code(store: Store, name: str, draw: Callable[..., object]) -> None:
    # Beside the picture: a page may be read where the package is not.
    write_atomic(store.figure(name, "py"), inspect.getsource(draw).encode())


def shared_parts(study: Study) -> dict[str, Any]:
    """What every page shows: style, script, and the footer's account of the records."""
    study.rates()  # the arms are part of the grid once their learning rates are known
    runs = list({run.identity: run for stage in study.grid.values() for run in stage}.values())
    records = [record for run in runs if (record := study.record(run)) is not None]
    places = sorted({(r["provenance"]["device"], r["provenance"]["torch"], r["provenance"]["threads"]) for r in records})
    dates = sorted(r["volatile"]["date"][:10] for r in records)
    commits = list(dict.fromkeys(r["volatile"]["commit"] for r in records))
    scripts = [HERE / "page.js", *sorted((HERE / "vendor").glob("*.js"))]
    script = "\n" + "".join(file.read_text("utf-8-sig") for file in scripts)
    return {
        "style": (HERE / "style.css").read_text(),
        "script": script,
        "script_sum": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "profile": study.profile.name,
        "dataset": study.settings.title,
        "devices": "; ".join(f"{device}, {counted(threads, 'thread')}, torch {torch}" for device, torch, threads in places),
        "precision": study.precision,
        "dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "none yet",
        "commits": ", ".join(commits[:3]) + (" ..." if len(commits) > 3 else ""),
        "runs": f"{len(records)} of {len(runs)}",
        "nav": [
            (n.name, number, title_and_question(n)[0]) for number, n in NOTEBOOKS.items() if study.store.executed(n.name).exists()
        ],
    }
