"""What the READMEs say was found, rendered from records; nothing in it is typed by hand.

The main README asks for its part in a comment that ``python -m cogapp -r README.md`` carries out.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from fcs_utils.errors import counted
from fcs_utils.report.answers import KD, at_equal_epochs, which_criterion
from fcs_utils.report.chapters import NOTEBOOKS, ROOT
from fcs_utils.report.claims import NOT_YET, claims_table, standing
from fcs_utils.report.figures import FIGURES
from fcs_utils.report.findings import findings, headlines
from fcs_utils.report.frames import Report, make_report
from fcs_utils.report.pages import TEMPLATES, index_layout, title_and_question
from fcs_utils.report.planning import stages_not_run
from fcs_utils.report.tables import markdown
from fcs_utils.study.catalogue import HEADLINE
from fcs_utils.study.study import Study

TOPICS = {
    "C1a": "Redundancy (C1a)",
    "C1b": "More redundant by training (C1b, the study's own question)",
    "C2": "Choice of channels (C2, literal reading)",
    "C2, best reading": "Choice of channels (C2, best reading)",
    "C3": "Epochs (C3)",
    "C3 by compute": "Compute (C3)",
}


def found(report: Report, words: Mapping[str, str]) -> str:
    """Each claim's topic and verdict, and what was found, then which criterion to use and what KD does, as a Markdown list."""
    said = [f"- **{TOPICS[claim]}: {NOT_YET.get(word, word)}.** {words[claim]}" for claim, word in standing(report.ledger).items()]
    more = {"Which criterion to use.": which_criterion(report), "MLFT or KD.": at_equal_epochs(report.schedules, "kd", KD)}
    return "\n".join([*said, *(f"- **{topic}** {answer}" for topic, answer in more.items() if answer)])


def findings_block() -> str:
    """The main README's findings, with the figure behind them. Reads records only."""
    study = Study(HEADLINE, ROOT / "results")
    report, where = make_report(study, allow_missing=True), f"results/{study.profile.name}"
    return "\n".join(
        [
            f"On {study.settings.title}, with {_counted_seeds(study)} (profile `{study.profile.name}`):",
            "",
            found(report, headlines(report.ledger)),
            "",
            f"![{FIGURES.about('claims')}]({where}/figures/readme.png)",
            "",
            f"All comparisons, tables and figures: [{where}]({where}/README.md).",
        ]
    )


def _counted_seeds(study: Study) -> str:
    """'3 seeds, 5 for C3'."""
    seeds, further = len(study.profile.seeds), len(study.profile.arms.further_seeds)
    return counted(seeds, "seed") + (f", {seeds + further} for C3" if further else "")


def profile_readme(study: Study, report: Report) -> str:
    """The README of a profile's results, for those who read on GitHub: it links only what is published."""
    there, ledger = study.store.published, report.ledger
    shown = ledger[ledger.decisive | (ledger.role == "network")]
    placed = [item["figure"] for section in index_layout() for item in section["show"] if "figure" in item]
    order = [*placed, *sorted({*report.figures()} - {*placed})]  # as on the index, whatever was imported first
    drawn = [name for name in order if name in report.figures() and there(study.store.figure(name)).exists()]
    figures = [(name, FIGURES.about(name), _figure_links(study, name)) for name in drawn]
    chapters = [(n.name, *title_and_question(n)) for n in NOTEBOOKS.values() if there(study.store.executed(n.name)).exists()]
    tables = sorted(path.stem for path in there(study.store.table("claims")).parent.glob("*.md"))
    return TEMPLATES.get_template("readme.md.j2").render(
        profile=study.profile.name,
        summary=study.profile.summary,
        dataset=study.settings.title,
        found=found(report, findings(report.ledger)),
        figures=figures,
        chapters=chapters,
        tables=tables,
        unfinished=markdown(stages_not_run(report.unfinished)) if len(report.unfinished) else "",
        claims=markdown(claims_table(shown)),
    )


def _path_from(folder: Path, path: Path) -> str:
    """A file's path relative to a folder, as links have it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _figure_links(study: Study, name: str) -> dict[str, str]:
    """What a figure is made from: its data, where they are published, and the code that drew it."""
    data = study.store.published(study.store.figure(name, "csv"))
    links = {"data": data} if data.exists() else {}
    return {title: _path_from(study.store.root, path) for title, path in {**links, "code": FIGURES.source(name)}.items()}


def ledger_digest(report: Report) -> str:
    """Hash of the numbers that the README's figure shows; stored inside the PNG, so that a stale figure can be detected."""
    return hashlib.sha256(report.ledger.to_csv(index=False).encode()).hexdigest()
